"""A source may have columns of any name: whatever is computed, shown or chosen is the same as without them."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dash.development.base_component import Component
from flask import Flask

from fewchannels import manifest, open_run
from fewchannels.analyses.alignment.units import Alignment
from fewchannels.analyses.analysis import analyze
from fewchannels.analyses.concentration.units import Concentration
from fewchannels.analyses.masks.units import SubjectMasks
from fewchannels.analyses.selection import Selected, select
from fewchannels.analyses.stability.units import Stability
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.runs import documents
from fewchannels.runs.sql.about import TYPES
from fewchannels.runs.sql.catalog import VIEWS, Catalog
from fewchannels.runs.sql.columns import chosen
from fewchannels.runs.sql.named_queries import queries
from fewchannels.runs.storage import Stored, open_storage
from fewchannels.runs.upkeep.datasets import chosen_samples, export
from fewchannels.tables import schema, tables
from fewchannels.views.explore import console, gallery, sample
from fewchannels.views.explore.address import KEYS
from fewchannels.views.explore.keys import Keys
from fewchannels.views.explore.opened import OpenedRun
from fewchannels.views.explore.search import Search, find, measures
from fewchannels.views.report.build import build
from fewchannels.views.report.markdown import write_markdown

pytestmark = pytest.mark.usefixtures("undrawn")

ALONE = Pool(1, 0, 1)
OURS = set(schema("manifest").names)
OF_FILES = {"file_row_number", "filename", "file_index", "rowid", "source", "value", "sample_", "value_", "host"}
EVERY = sorted(
    ({name for table in tables() for name in schema(table).names} | {name for each in TYPES.values() for name in each})
    | {*VIEWS, *OF_FILES, "channel", "samples.task"}
)
EVERY = [name for name in EVERY if name not in OURS]


def with_columns(run: Path, folder: Path, columns: dict[str, list[Any]]) -> Path:
    """A copy of a run whose manifest has more columns."""
    shutil.copytree(run, folder)
    table = pq.read_table(folder / "manifest.parquet")
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, folder / "manifest.parquet")
    about = documents.from_bytes((folder / "run.json").read_bytes())
    about["objects"]["manifest.parquet"] = asdict(Stored.of([(folder / "manifest.parquet").read_bytes()]))
    (folder / "run.json").write_bytes(documents.to_bytes(about))
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Three prompts with two seeds each, captured and analyzed."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "prompts.csv").write_text("prompt,family\na red circle,1\na blue square,1\na small star,2\n")
    manifest.ingest([folder / "prompts.csv"], folder / "manifest.parquet", seeds=[0, 1])
    config = CaptureConfig(model=str(tiny_model), num_inference_steps=2, top_k=32, shard_samples=4)
    job = prepare(folder / "manifest.parquet", folder / "run", config)
    begin(job, folder / "manifest.parquet")
    worker = CaptureWorker(job, 1)
    for task in range(job.n_tasks):
        worker(task)
    selected = select(str(folder / "run"))
    analyze(SubjectMasks("saliency"), selected, "masks", ALONE)
    analyze(Alignment(k=4, trials=2), selected, "alignment", ALONE)
    analyze(Stability(ks=(2, 4), rank_pairs=4), selected, "stability", ALONE)
    analyze(Concentration(ks=(1, 4), k=4), selected, "concentration", ALONE)
    return folder / "run"


@pytest.fixture(
    scope="module",
    params=[str.lower, pytest.param(str.upper, marks=pytest.mark.exhaustive), str.capitalize],
    ids=["lower", "UPPER", "Capitalized"],
)
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, plain: Path) -> Path:
    """The same run, whose manifest has a column of every name that a table, a view or DuckDB has."""
    spelled: Callable[[str], str] = request.param
    columns = {spelled(name): [(5 * i) % 6 + 10 for i in range(6)] for name in EVERY}
    return with_columns(plain, tmp_path_factory.mktemp("named") / "run", columns)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, plain: Path) -> Path:
    """The same run, whose source says ``Task``, ``status``, ``sample`` and ``ratio`` of its own."""
    columns: dict[str, list[Any]] = {"Task": ["counting", "colors", "counting", "counting", "colors", "colors"]}
    columns |= {"status": ["new"] * 5 + ["old"], "sample": [9, 8, 7, 6, 5, 4], "ratio": [3, 1, 2, 6, 5, 4]}
    return with_columns(plain, tmp_path_factory.mktemp("tasks") / "run", columns)


def test_every_name_is_tried() -> None:
    assert {"task", "status", "sample", "image", "seconds", "score", "area", "layer", "error"} <= set(EVERY)


@pytest.mark.parametrize("name", sorted(name for name, query in queries().items() if query.of == "run"))
def test_a_named_query_answers_the_same(name: str, plain: Path, named: Path) -> None:
    with Catalog(plain) as one, Catalog(named) as other:
        wanted, found = one.query(name), other.query(name)
    assert found.columns == wanted.columns
    assert found.as_json() == wanted.as_json()


def test_an_analysis_is_of_the_same_samples_and_groups(plain: Path, named: Path) -> None:
    def said(selected: Selected) -> dict[str, Any]:
        return selected.identity() | {"prompts": selected.prompts.tolist(), "categories": selected.categories.tolist()}

    for choice in (
        {"by": "family"},
        {"where": "family = 1 and prompt like '%r%'"},
        {"by": "prompt", "where": "seed < 1"},
    ):
        assert said(select(str(named), **choice)) == said(select(str(plain), **choice))
    assert select(str(named), by="family").categories.tolist() == [0, 0, 0, 0, 1, 1]


def test_a_name_means_the_sources_column(named: Path) -> None:
    assert select(str(named), by="task").categories.tolist() == [0, 1, 2, 3, 4, 5]
    with Catalog(named) as catalog:
        for name in EVERY:
            of_names = f"select value from ({chosen(catalog, None, name)}) order by sample"
            assert catalog.sql(of_names).fetchall() == [(10,), (15,), (14,), (13,), (12,), (11,)], name
            assert catalog.sql(chosen(catalog, f'"{name}" = 15')).fetchall() == [(1,)], name


def test_groups_and_conditions_take_the_sources_column_and_both_can_be_named(tasks: Path) -> None:
    for by in ("task", "Task", "TASK", "manifest.task", "Manifest.Task"):
        assert select(str(tasks), by=by).categories.tolist() == [0, 1, 0, 0, 1, 1], by
    assert select(str(tasks), by="samples.task").categories.tolist() == [0, 0, 0, 0, 1, 1]  # shards of four samples
    for where, samples in {
        "task = 'counting'": [0, 2, 3],
        "samples.task = 1": [4, 5],
        "manifest.TASK = 'colors' and Samples.Task = 0": [1],
        "sample > 6": [0, 1, 2],
        "samples.sample < 2": [0, 1],
        "status = 'old' and samples.status = 'done'": [5],
        "sample_id in (select sample_id from samples where samples.sample = 3)": [3],
        "manifest.seed = 1": [1, 3, 5],
        "samples.width = manifest.width is null and sample = 4": [5],
    }.items():
        assert select(str(tasks), where=where).samples.tolist() == samples, where
        with Catalog(tasks) as catalog:
            assert chosen_samples(catalog, where) == samples, where
    with pytest.raises(InputError, match=r"unknown column 'Tast'. Did you mean 'Task'\?"):
        select(str(tasks), by="Tast")
    with pytest.raises(InputError, match="nothing"):
        select(str(tasks), where="samples.nothing = 1")


def test_a_blank_cell_or_a_nan_is_no_category(plain: Path, tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {
        "kind": ["x", "", "x", "", "  ", None],
        "score": [1.0, 1.0, *[float("nan")] * 3, None],
    }
    run = with_columns(plain, tmp_path / "run", values | {"word": ["nan", "nan", "1", "", "1", "1"]})
    assert select(str(run), by="kind").categories.tolist() == [0, -1, 0, -1, -1, -1]
    assert select(str(run), by="score").categories.tolist() == [0, 0, -1, -1, -1, -1]
    assert select(str(run), by="word").categories.tolist() == [0, 0, 1, -1, 1, 1]


def test_a_column_called_like_a_table_hides_none_of_its_columns(plain: Path, tmp_path: Path) -> None:
    values: dict[str, list[Any]] = {
        "Samples": [f"s{i}" for i in range(6)],
        "manifest": list(range(6)),
        "status": ["new"] * 6,
    }
    run = with_columns(plain, tmp_path / "run", values)
    for where, samples in {
        "samples.status = 'done' and status = 'new'": list(range(6)),
        "manifest.status = 'new' and samples.sample < 2": [0, 1],
        "samples = 's3'": [3],
        "manifest > 3": [4, 5],
        "manifest > 3 and samples.sample < 5": [4],
        "SAMPLES in ('s1', 's2') and manifest.seed = 0": [2],
    }.items():
        assert select(str(run), where=where).samples.tolist() == samples, where
        with Catalog(run) as catalog:
            assert chosen_samples(catalog, where) == samples, where
    with pytest.raises(InputError, match=r"names samples\.sample and the source's column 'samples'"):
        select(str(run), where="samples = 's3' and samples.sample = 3")


def test_an_export_is_the_same(plain: Path, named: Path, tmp_path: Path) -> None:
    for run in (plain, named):
        with Catalog(run) as catalog:
            samples = chosen_samples(catalog, "family = 1")
        export(open_storage(run), samples, open_storage(tmp_path / run.parent.name))
    assert samples == [0, 1, 2, 3]
    one, other = (
        {path.name: path.read_bytes() for path in (tmp_path / run.parent.name).rglob("*.parquet")}
        for run in (plain, named)
    )
    assert one == other


def reported(run: Path, folder: Path) -> str:
    """The text of a run's report, without its place and sizes."""
    write_markdown(build([str(run)], None), folder / "report.md", lambda *_: None)
    text = (folder / "report.md").read_text().replace(run.parent.name, "PLACE")
    return re.sub(r"[0-9.]+ [kM]B", "", text)


@pytest.fixture(scope="module")
def plain_report(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return reported(plain, tmp_path_factory.mktemp("report"))


def test_a_report_says_the_same(plain_report: str, named: Path, tmp_path: Path) -> None:
    assert reported(named, tmp_path) == plain_report


def test_a_report_selects_by_the_sources_column(tasks: Path, tmp_path: Path) -> None:
    write_markdown(build([str(tasks)], "sample"), tmp_path / "own.md", lambda *_: None)
    assert "highest: 9 " in (tmp_path / "own.md").read_text()
    write_markdown(build([str(tasks)], "ratio"), tmp_path / "own.md", lambda *_: None)
    assert "highest: 6 " in (tmp_path / "own.md").read_text()
    write_markdown(build([str(tasks)], "cells.ratio"), tmp_path / "own.md", lambda *_: None)
    assert "highest: 6 " not in (tmp_path / "own.md").read_text()


def strings(component: Any) -> str:
    return json.dumps(component, default=lambda one: one.to_plotly_json() if isinstance(one, Component) else repr(one))


@pytest.fixture
def page() -> Iterator[None]:
    """As if a browser asked."""
    keys = Keys()
    site = Flask(__name__)
    site.extensions[KEYS] = keys
    with site.test_request_context():
        yield


@pytest.mark.usefixtures("page")
def test_the_explorer_shows_the_same(plain: Path, named: Path, tasks: Path) -> None:
    one, other = OpenedRun("run", plain), OpenedRun("run", named)
    ids = [each.sample_id for each in manifest.read_samples(plain / "manifest.parquet", 0, 6)]
    for layout in (lambda run: sample.layout(run, ids[3], {}), lambda run: gallery.layout(run, {})[-2:]):
        assert strings(layout(other)) == strings(layout(one))
    assert strings(console.layout(other, {}))
    for text, where in (("star", ""), ("", "family = 1"), ("", "")):
        assert find(other, Search(text, where, "samples.sample")) == find(one, Search(text, where, "sample"))
    for measure in ("ratio", "gini", "channel", "iou"):
        table = "alignment_samples" if measure == "iou" else "cells"
        assert f"{table}.{measure}" in measures(other)
        search = Search.of({"by": measure, "layer": "0", "step": "0"}, one)
        assert find(other, replace(search, by=f"{table}.{measure}")) == find(one, search)
        assert Search.of({"by": f"{table}.{measure}"}, other).measure == measure
    own = OpenedRun("run", tasks)
    assert [row["value"] for row in find(own, Search.of({"by": "ratio"}, own)).rows] == [1, 2, 3, 4, 5, 6]
    assert [row["value"] for row in find(own, Search.of({"by": "Task"}, own)).rows] == ["colors"] * 3 + ["counting"] * 3


def test_every_table_can_be_read(plain: Path, named: Path) -> None:
    with Catalog(plain) as one, Catalog(named) as other:
        assert other.views == one.views
        for view in one.views:
            columns = ", ".join(f'"{name}"' for name in one.sql(f"select * from {view} limit 0").columns)
            text = f"select {columns} from {view} order by all"
            assert other.sql(text).as_json() == one.sql(text).as_json()
    assert open_run(named).summary()["n_done"] == 6


def test_an_ingest_notes_names_that_a_run_has_too(tmp_path: Path) -> None:
    source = tmp_path / "prompts.csv"
    source.write_text("prompt,Task,ratio,file_row_number\na star,counting,1,1\n")
    report = manifest.ingest([source], tmp_path / "m.parquet")
    assert [note.split(": ", 1)[1] for note in report.notes] == [
        "column 'Task' has the name of a column of a run's samples. In --where, --by and galleries Task is yours, and "
        "samples.task the run's",
        "column 'ratio' has the name of a column of a run's cells. In --where, --by and galleries ratio is yours, and "
        "cells.ratio the run's",
    ]
