"""Check every record of a run against every object that it names: presence, size, checksum, and agreement."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from fewchannels import manifest
from fewchannels.errors import InputError, StorageError
from fewchannels.runs import arrays
from fewchannels.runs.changes import RUN, Change, manifest_key, settled_changes
from fewchannels.runs.description import EMBEDDINGS, MANIFEST, NAME, SWEEP, objects_of, read_description, read_sweep
from fewchannels.runs.layout import Layout
from fewchannels.runs.lease import LEASE
from fewchannels.runs.ledger import Ledger, Record
from fewchannels.runs.parts import FOLDER, TABLES, Compaction, Parts, part
from fewchannels.runs.storage import Storage, Stored
from fewchannels.runs.upkeep.checked_results import check_results
from fewchannels.runs.upkeep.consistency import disagreements
from fewchannels.runs.upkeep.problems import Problem, Report, check_object
from fewchannels.tables import from_parquet

_TASKS_AT_ONCE = 2
_NAMED_BY_NOTHING = ("results/", "ledger/failed/", EMBEDDINGS, "README.md")  # the last of a run from the Hub


@dataclass(frozen=True)
class _Run:
    storage: Storage
    layout: Layout
    score: str
    fingerprint: str
    sizes: Mapping[str, int]
    sample_ids: list[str]
    documents: Mapping[str, bytes]


def verify(
    storage: Storage, *, quick: bool = False, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> Report:
    """Check a run or a sweep. Reads only; memory is limited to a few tasks' data.

    Args:
        storage: storage of the run, or the sweep.
        quick: presence and sizes only, by one listing; otherwise every byte is read.
        on_progress: called with the tasks checked so far and in all.

    Raises:
        InputError: there is neither, or a run of format version 1.
        StorageError: ``run.json`` or ``sweep.json`` itself is damaged, or writing failed.
    """
    if storage.exists(SWEEP):
        return _verify_sweep(storage, quick, on_progress)
    description = read_description(storage)
    layout = Layout.of(description)
    sizes = storage.list()
    problems: list[Problem] = []
    changes = settled_changes(storage, sizes)
    rows = manifest_key(storage, description)
    shared = {
        rows if key == MANIFEST else key: stored
        for key, stored in _old_or_new(storage, objects_of(description), changes).items()
    }
    documents_read = {}
    for key, expected in shared.items():
        data = check_object(storage, sizes, key, expected, None, quick, problems)
        if data is not None and key.startswith(arrays.NAME):
            documents_read[key] = data
    whole = not problems
    sample_ids: list[str] = []
    if whole and not quick:
        try:
            with manifest.Manifest.of(storage.get(rows), rows).open() as file:
                sample_ids = manifest.sample_ids(file)[: layout.n_samples]
        except InputError as error:
            problems.append(Problem(rows, None, "undecodable", str(error)))
    run = _Run(
        storage, layout, description["config"]["score"], description["fingerprint"], sizes, sample_ids, documents_read
    )
    records = _records(storage, problems, lambda task, record: _misplaced(run, task, record))
    parts = _parts(run, records, problems)
    records = {
        task: replace(record, objects=_old_or_new(storage, record.objects, changes)) if changes else record
        for task, record in records.items()
    }
    named = {NAME, LEASE, *shared, *arrays.spare_keys(), *(Ledger.key(task) for task in records)}
    for change in changes:
        named |= {change.key, *change.objects, *storage.list(change.folder)}
    for compaction in parts.compactions:
        named |= {compaction.key, *compaction.objects}
        for key, expected in compaction.objects.items():
            found: list[Problem] = []
            check_object(storage, sizes, key, expected, None, quick, found)
            problems += [
                Problem(p.key, task, p.kind, p.detail) for p in found for task in compaction.speaks_for(records)
            ]
    damaged = {problem.task for problem in problems}
    unsettled = damaged | {int(change.name) for change in changes if change.name != RUN}
    checks = list(records.items())

    def check(item: tuple[int, Record]) -> list[Problem]:
        return list(_task(run, parts, *item, deep=whole and not quick and item[0] not in unsettled, quick=quick))

    with ThreadPoolExecutor(_TASKS_AT_ONCE) as pool:
        for done, found in enumerate(pool.map(check, checks), start=1):
            problems += found
            on_progress(done, len(checks))
    for record in records.values():
        named |= record.objects.keys()
    made_by = "merge's or export's" if "copied_from" in description else "capture's"
    return _report(storage, layout.n_tasks, records, named, sizes, problems, quick=quick, made_by=made_by)


def check_exists(storage: Storage) -> None:
    """Refuse a place without a run or a sweep. Reads only.

    Raises:
        InputError: there is neither, or one of a newer format.
        StorageError: ``run.json`` or ``sweep.json`` itself is damaged, or writing failed.
    """
    read_sweep(storage) if storage.exists(SWEEP) else read_description(storage)


def _old_or_new(storage: Storage, objects: Mapping[str, Stored], changes: Sequence[Change]) -> Mapping[str, Stored]:
    """Objects in their old state or, if a change that is being finished has already replaced them, in the new one."""
    new = {key: stored for change in changes for key, stored in change.objects.items() if key in objects}
    return {**objects, **{key: stored for key, stored in new.items() if storage.holds(key, stored)}}


def _report(
    storage: Storage,
    n_tasks: int,
    records: Mapping[int, Record],
    named: set[str],
    sizes: Mapping[str, int],
    problems: list[Problem],
    *,
    quick: bool,
    made_by: str,
) -> Report:
    of_results = check_results(storage, sizes, quick)
    named, problems = named | of_results.named, problems + of_results.problems
    unrecorded = [key for key in sizes if key not in named and not key.startswith(_NAMED_BY_NOTHING)]
    bad_records = {problem.key for problem in problems if problem.kind == "record"}
    return Report(
        n_tasks=n_tasks,
        n_recorded=len(records),
        n_objects=len(named & sizes.keys()),
        n_bytes=sum(size for key, size in sizes.items() if key in named),
        problems=tuple(sorted(problems, key=lambda problem: (problem.key, problem.task or 0))),
        unrecorded=tuple(key for key in unrecorded if key not in bad_records),
        left_over=storage.left_over(),
        made_by=made_by,
        analyses=of_results.analyses,
    )


def _verify_sweep(storage: Storage, quick: bool, on_progress: Callable[[int, int], None]) -> Report:
    """Check every record of a sweep, and every object that a record, ``sweep.json`` or a result names."""
    description = read_sweep(storage)
    sizes = storage.list()
    problems: list[Problem] = []
    shared = objects_of(description)
    for key, expected in shared.items():
        check_object(storage, sizes, key, expected, None, quick, problems)
    fingerprint = description["fingerprint"]

    def misplaced(task: int, record: Record) -> str | None:
        same = record.fingerprint == fingerprint
        return None if same else f"its fingerprint is {record.fingerprint}, the sweep's is {fingerprint}"

    changes = settled_changes(storage, sizes)
    records = {
        task: replace(record, objects=_old_or_new(storage, record.objects, changes))
        for task, record in _records(storage, problems, misplaced).items()
    }
    for done, (task, record) in enumerate(records.items(), start=1):
        for name, expected in record.objects.items():
            check_object(storage, sizes, name, expected, task, quick, problems)
        on_progress(done, len(records))
    named = {SWEEP, LEASE, *shared, *(Ledger.key(task) for task in records)}
    for change in changes:
        named |= {change.key, *storage.list(change.folder)}
    for record in records.values():
        named |= record.objects.keys()
    made_by = "probe's" if description["identity"]["kind"] == "disruption" else "transport's"
    return _report(storage, description["n_tasks"], records, named, sizes, problems, quick=quick, made_by=made_by)


def _records(
    storage: Storage, problems: list[Problem], misplaced: Callable[[int, Record], str | None]
) -> dict[int, Record]:
    """Every record that is intact and in its place, by task; the others are added to the problems."""
    records = {}
    for task, key in Ledger(storage).keys().items():
        try:
            record = Record.from_bytes(storage.get(key))
            if reason := misplaced(task, record):
                raise ValueError(reason)
            records[task] = record
        except (ValueError, FileNotFoundError) as error:
            problems.append(Problem(key, task, "record", str(error)))
    return dict(sorted(records.items()))


def _misplaced(run: _Run, task: int, record: Record) -> str | None:
    layout = run.layout
    if record.fingerprint != run.fingerprint:
        return f"its fingerprint is {record.fingerprint}, the run's is {run.fingerprint}"
    if record.task != task or not 0 <= task < layout.n_tasks:
        return f"it is for task {record.task}; the run has tasks 0 to {layout.n_tasks - 1}"
    rows = layout.rows(task)
    if record.start != rows.start or not rows.start < record.stop <= rows.stop:
        return f"it has samples [{record.start}, {record.stop}), the task owns [{rows.start}, {rows.stop})"
    expected = {f"{arrays.NAME}/{array.key(task)}" for array in layout.arrays()} | {part(t, task) for t in TABLES}
    if record.objects.keys() != expected:
        return f"its objects are not those of a task: {sorted(record.objects.keys() ^ expected)[0]}"
    return None


def _parts(run: _Run, records: Mapping[int, Record], problems: list[Problem]) -> Parts:
    damaged: dict[str, str] = {}
    parts = Parts(run.storage, records, damaged)
    for key, reason in damaged.items():
        first, last = key.removeprefix(FOLDER).removesuffix(".json").split("-")
        tasks = [task for task in records if int(first) <= task <= int(last)]
        problems += [Problem(key, task, "record", reason) for task in (None, *tasks)]
    return parts


def _task(run: _Run, parts: Parts, task: int, record: Record, *, deep: bool, quick: bool) -> Iterator[Problem]:
    problems: list[Problem] = []
    compacted: Compaction | None = parts.compacted.get(task)
    data = {}
    for key, expected in record.objects.items():
        if compacted is None or key.startswith(arrays.NAME):
            data[key] = check_object(run.storage, run.sizes, key, expected, task, quick, problems)
    yield from problems
    if problems or not deep:
        return
    shards = {key: value for key, value in data.items() if value is not None and key.startswith(arrays.NAME)}
    try:
        names = [array.name for array in run.layout.arrays()]
        values = arrays.decompress(run.documents, shards, names, record.start, record.stop)
    except Exception as error:  # each codec raises its own errors
        yield Problem(next(iter(shards)), task, "undecodable", f"{type(error).__name__}: {error}")
        return
    rows = {}
    for table in TABLES:
        key = compacted.part(table) if compacted else part(table, task)
        try:
            rows[table] = parts.rows(table, task) if compacted else from_parquet(data[key] or b"")
        except (ValueError, StorageError) as error:
            yield Problem(key, task, "undecodable", str(error))
            return
    sample_ids = run.sample_ids[record.start : record.stop]
    for table, detail in disagreements(
        run.layout, run.score, record, sample_ids, values, rows["samples"], rows["cells"]
    ):
        yield Problem(part(table, task), task, "disagrees", detail)
