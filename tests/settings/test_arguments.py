"""Arguments of public functions are checked against their annotations."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fewchannels
from fewchannels.errors import InputError
from fewchannels.runs.opened import Opened
from fewchannels.settings.arguments import checked


class Unlike:
    """A value of no type that any argument takes."""

    def __repr__(self) -> str:
        return "<unlike>"


@checked
def example(
    place: str | Path,
    n: int = 1,
    *rest: int,
    share: float | None = None,
    names: "Sequence[str] | np.ndarray" = (),
    **more: int,
) -> list[Any]:
    return [place, n, rest, share, names, more]


@pytest.mark.parametrize(
    ("arguments", "keywords"),
    [
        (("a", 3), {}),
        ((Path("a"), np.int64(3)), {"share": np.float32(0.5)}),
        (("a", 3, "not checked"), {"share": 2, "names": 3, "more": "not checked"}),
    ],
)
def test_values_of_the_annotated_types_arrive_unchanged(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    place, n, rest, share, names, more = example(*arguments, **keywords)
    assert (place, n, *rest) == arguments
    assert {"share": share, "names": names} | more == {"share": None, "names": ()} | keywords


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"place": 3}, "place is 3; it must be text or a path."),
        ({"place": "a", "n": 2.0}, "n is 2.0; it must be a whole number."),
        ({"place": "a", "n": True}, "n is True; it must be a whole number."),
        ({"place": "a", "share": "half"}, "share is 'half'; it must be a number or None."),
    ],
)
def test_another_type_is_refused_with_the_name_the_value_and_the_rule(keywords: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError) as raised:
        example(**keywords)
    assert str(raised.value) == says


def test_an_iterator_arrives_unread() -> None:
    @checked
    def listed(names: Sequence[str]) -> list[str]:
        return list(names)

    assert listed(name for name in ("a", "b")) == ["a", "b"]
    with pytest.raises(InputError, match="names is \\['a', 3\\]; it must be a list of texts"):
        listed(["a", 3])


def test_a_wrong_number_of_arguments_is_python_s_own_error() -> None:
    with pytest.raises(TypeError, match="missing a required argument: 'place'"):
        example()


ARGUMENTS = {
    "capture": "out workers gpus_per_worker threads_per_worker address family max_bytes progress",
    "compare": "out k score match where stream branch replace workers progress",
    "explore": "port timeout browser",
    "ingest": "output",
    "inspect": "height width",
    "open_run": "path",
    "open_sweep": "path",
    "probe": "out grids protocol channels_from workers gpus_per_worker threads_per_worker address family progress",
    "probe_transport": "out pairs within across noise pair_seed baselines grids workers address family progress",
    "prompts": "prompt_column ignore_columns progress",
    "record": "top_k score family",
    "report": "out by progress",
    "Prompts.sample": "n by seed",
    "Prompts.save": "path",
    "Run.analyze": "analysis where stream branch label replace workers address progress",
    "Run.image": "sample",
    "Run.map": "sample layer step channel branch",
    "Run.query": "name",
    "Run.report": "out by progress",
    "Run.sql": "text",
    "Run.top": "sample layer step stream branch",
    "Sweep.image": "item condition role",
    "Sweep.plot": "metric item axis",
    "Recorded.map": "layer step channel sample branch",
    "Recorded.plot": "layer step k sample branch",
    "Recorded.save": "path",
    "Recorded.top": "layer step sample stream branch",
    "Result.plot": "figure interactive",
    "Result.table": "name",
}
NUMBERS = ("channel", "item", "layer", "n", "sample")


@pytest.mark.parametrize(
    ("name", "argument"), [(name, each) for name, some in ARGUMENTS.items() for each in some.split()]
)
def test_a_public_function_names_an_argument_of_another_type(name: str, argument: str) -> None:
    owner, _, method = name.rpartition(".")
    call = getattr(getattr(fewchannels, owner) if owner else fewchannels, method)
    own = Opened.__new__(Opened) if name == "Run.report" else None
    needed = {
        each.name: own if each.name == "self" else 0 if each.name in NUMBERS else "x"
        for each in inspect.signature(call).parameters.values()
        if each.default is each.empty and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    given = needed | {argument: Unlike()}
    with pytest.raises(InputError, match=f"^{argument} is <unlike>; it must be "):
        call(*([given.pop("self")] if "self" in given else []), **given)
