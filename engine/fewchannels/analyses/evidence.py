"""Evidence for findings: a run, a sweep or a comparison, its queries, and equivalent commands."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewchannels.analyses.document import How, shell
from fewchannels.errors import StorageError
from fewchannels.runs.description import COMPARISON, read_comparison, read_description, read_sweep
from fewchannels.runs.results import END, Results
from fewchannels.runs.sql.catalog import Catalog
from fewchannels.runs.sql.named_queries import queries
from fewchannels.runs.sql.ranking import usable
from fewchannels.runs.storage import Storage, open_storage

ANALYSES = ("stability", "concentration", "masks", "alignment")


@dataclass(frozen=True)
class Evidence:
    """A run, a sweep or a comparison that is read.

    Attributes:
        place: location as it was named.
        catalog: catalog of its tables.
        storage: location.
        description: ``run.json``, ``sweep.json`` or ``comparison.json``.
        stream: stream of a run, whose tokens the findings are about: the image's where kept; of a comparison its own.
        branch: branch, ``cond`` if it was recorded.
        results: content of the result of each analysis of that stream, by the analysis.
        labels: the results' labels, by the analysis: what their tables' names begin with.
    """

    place: str
    catalog: Catalog
    storage: Storage
    description: Mapping[str, Any]
    stream: str
    branch: str
    results: Mapping[str, Mapping[str, Any]]
    labels: Mapping[str, str]

    def unreadable(self, name: str, error: Exception) -> StorageError:
        """The error for an unreadable array of the store."""
        return StorageError(
            f"the array {name} of {self.place!r} cannot be read: {error}. fewchannels runs verify {self.place} "
            "lists the damage, and with --repair removes the damaged records."
        )

    def ask(self, text: str) -> Any:
        """The answer to SQL, a pandas frame."""
        return self.catalog.sql(text).df()

    def query(self, name: str, **parameters: object) -> Any:
        """The answer to a named query, a pandas frame."""
        return self.catalog.query(name, **parameters).df()

    def sql(self, text: str) -> How:
        """The command that asks SQL."""
        return replace(shell("fewchannels", "sql", self.place, text), asks=(("sql", text),))

    def named(self, name: str, **parameters: object) -> How:
        """The command for a named query, without parameters that have their defaults."""
        defaults = {each.name: each.default for each in queries()[name].parameters}
        given = {key: str(value) for key, value in parameters.items() if value != defaults[key]}
        options = [word for key, value in given.items() for word in ("--param", f"{key}={value}")]
        asks = (("query", name), *((f"p.{key}", value) for key, value in given.items()))
        return replace(shell("fewchannels", "query", self.place, name, *options), asks=asks)

    def command(self, *words: str) -> How:
        """Another command."""
        return shell("fewchannels", *words)

    def table(self, analysis: str, name: str) -> str:
        """The view of a table of an analysis."""
        return f"{self.labels[analysis]}_{name}"

    @property
    def of_track(self) -> str:
        """The SQL condition on ``cells`` for usable cells of the stream and branch."""
        return usable(self.stream, self.branch)


def open_evidence(place: str, pending: Mapping[str, dict[str, Any]] | None = None) -> Evidence:
    """Open a run, a sweep or a comparison as evidence for findings. Close its catalog after use.

    Args:
        place: folder or URL.
        pending: result that is not finished yet (see :class:`fewchannels.runs.sql.catalog.Catalog`); it replaces
            the one of its analysis, and findings are about its stream and branch.

    Raises:
        InputError: there is no run, sweep or comparison.
        StorageError: it is damaged.
    """
    catalog = Catalog(place, pending)
    try:
        return evidence_of(place, catalog, open_storage(place), pending)
    except BaseException:
        catalog.close()
        raise


def evidence_of(
    place: str, catalog: Catalog, storage: Storage, pending: Mapping[str, dict[str, Any]] | None = None
) -> Evidence:
    """Create evidence from an open catalog.

    Args:
        place: location as it was named.
        catalog: catalog of its tables; the caller closes it.
        storage: location.
        pending: pending results, as :func:`open_evidence` takes it, and as the catalog was given it.

    Raises:
        StorageError: it is damaged.
    """
    pending = pending or {}
    if catalog.of == "sweep":
        return Evidence(place, catalog, storage, read_sweep(storage), "image", "cond", {}, {})
    if catalog.of == "comparison":
        about = pending.get(COMPARISON) or read_comparison(storage)
        of_a = about["identity"]["a"]
        return Evidence(place, catalog, storage, about, of_a["stream"], of_a["branch"], {}, {})
    track = next((_track(each) for each in pending.values()), None) or _usual_track(catalog)
    results, labels = _results(storage, catalog, track, pending)
    return Evidence(place, catalog, storage, read_description(storage), *track, results, labels)


def _track(result: Mapping[str, Any]) -> tuple[str, str]:
    return result["selected"]["stream"], result["selected"]["branch"]


def _usual_track(catalog: Catalog) -> tuple[str, str]:
    """The image's tokens before the text's, and what is guided before what it is guided away from."""
    tracks = catalog.sql("select distinct stream, branch from cells order by stream, branch desc").fetchall()
    return min(tracks, key=lambda each: (each[0] != "image", each[1] != "cond"), default=("image", "cond"))


def _results(
    storage: Storage, catalog: Catalog, track: tuple[str, str], pending: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """Results of a track by their analysis: the pending one, else that of the analysis' name, else the first."""
    found: dict[str, tuple[tuple[bool, bool], str, Mapping[str, Any]]] = {}
    for label in catalog.results:
        result = Results(storage, label)
        content = pending.get(result.key(END)) or result.read()
        analysis, selected = content.get("analysis", ""), content.get("selected", {})
        if analysis in ANALYSES and (selected.get("stream"), selected.get("branch")) == track:
            rank = result.key(END) in pending, label == analysis
            if analysis not in found or rank > found[analysis][0]:
                found[analysis] = rank, label, content
    contents = {analysis: content for analysis, (_, _, content) in found.items()}
    return contents, {analysis: label for analysis, (_, label, _) in found.items()}
