"""Check every document of a run's or a sweep's results, finished or not, against the objects that it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewchannels.runs import documents
from fewchannels.runs.results import BEGUN, END, Results, labels, objects_of
from fewchannels.runs.storage import Storage, Stored
from fewchannels.runs.upkeep.problems import Problem, check_object


@dataclass
class CheckedResults:
    """Outcome of the check of results.

    Attributes:
        named: keys of the documents, and of all objects that they name.
        problems: differences from the written data.
        analyses: analysis of each result that has a problem, by label; ``""`` if it is unknown.
    """

    named: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    analyses: dict[str, str] = field(default_factory=dict)


def check_results(storage: Storage, sizes: Mapping[str, int], quick: bool) -> CheckedResults:
    """Check every result: ``begun.json``, the units' records, ``result.json``, and the objects that those name.

    Args:
        storage: storage of the run, or the sweep.
        sizes: its listing.
        quick: whether to check only presence and sizes of objects; documents are always read.
    """
    checked = CheckedResults()
    for label in labels(sizes):
        one = _Result(Results(storage, label), sizes, quick)
        one.check()
        checked.named |= one.named
        checked.problems += one.problems
        if one.problems:
            checked.analyses[label] = one.analysis
    return checked


class _Named(documents.Fields):
    objects: documents.Objects


class _Result:
    def __init__(self, results: Results, sizes: Mapping[str, int], quick: bool) -> None:
        self._results, self._storage, self._sizes, self._quick = results, results.storage, sizes, quick
        self.named: set[str] = set()
        self.problems: list[Problem] = []
        self.analysis = ""
        self._seen: dict[tuple[str, Stored], bool] = {}

    def check(self) -> None:
        begun, end, units = self._results.key(BEGUN), self._results.key(END), self._results.key("units/")
        self.analysis = _analysis_of(self._document(begun), self._document(end) if end in self._sizes else None)
        for key in [key for key in self._sizes if key.startswith(units)]:
            self._with_objects(key)
        if end in self._sizes:
            self._with_objects(end)

    def _document(self, key: str) -> dict[str, Any] | None:
        self.named.add(key)
        try:
            return documents.from_bytes(self._storage.get(key))
        except FileNotFoundError:
            self.problems.append(Problem(key, None, "missing", "the settings of the result are unknown"))
        except ValueError as error:
            if key != self._results.key(END):  # reported once, with its objects
                self.problems.append(Problem(key, None, "record", str(error)))
        return None

    def _with_objects(self, key: str) -> None:
        """Check a record and its objects. If an object is damaged, so is the record, which must be recreated."""
        self.named.add(key)
        try:
            expected = objects_of(documents.from_bytes(self._storage.get(key), _Named))
        except ValueError as error:
            self.problems.append(Problem(key, None, "record", f"it is not a record of a result: {error}"))
            return
        self.named |= expected.keys()
        if damaged := [name for name, stored in expected.items() if not self._is_whole(name, stored)]:
            self.problems.append(Problem(key, None, "disagrees", f"{len(damaged)} of its objects are damaged"))

    def _is_whole(self, key: str, expected: Stored) -> bool:
        """Return whether an object is unchanged; the units and the end name the same objects."""
        if (key, expected) not in self._seen:
            found: list[Problem] = []
            check_object(self._storage, self._sizes, key, expected, None, self._quick, found)
            self._seen[key, expected] = not found
            self.problems += found
        return self._seen[key, expected]


def _analysis_of(*contents: Mapping[str, Any] | None) -> str:
    return next((str(each["analysis"]) for each in contents if each and "analysis" in each), "")


def records_of(problems: Sequence[Problem], label: str) -> list[str]:
    """The damaged records of a result that its analysis can recreate, the end first."""
    units, end = f"results/{label}/units/", f"results/{label}/{END}"
    keys = {problem.key for problem in problems}
    return [key for key in sorted(keys, key=lambda key: key != end) if key == end or key.startswith(units)]
