"""The exception tree, as programs handle it."""

import inspect

import pytest

from fewchannels import errors
from fewchannels.errors import FewchannelsError, InputError

CLASSES = [each for _, each in inspect.getmembers(errors, inspect.isclass) if issubclass(each, FewchannelsError)]


def test_each_class_has_a_kind_of_its_own_that_stays() -> None:
    assert {each.__name__: (each.kind, each.exit_code) for each in CLASSES} == {
        "FewchannelsError": ("error", 1),
        "InputError": ("input", 2),
        "FamilyMismatchError": ("family_mismatch", 2),
        "RunConflictError": ("run_conflict", 3),
        "StorageError": ("storage", 4),
        "IncompleteRunError": ("incomplete_run", 5),
    }


def test_wrong_input_is_a_value_error_and_nothing_else_is() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        raise InputError("k is 0")
    assert [each.__name__ for each in CLASSES if issubclass(each, ValueError)] == ["FamilyMismatchError", "InputError"]
