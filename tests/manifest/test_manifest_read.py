"""Manifests read back, and whatever bytes a source may hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_files import FORMATS, rows_of

from fewchannels import manifest
from fewchannels.errors import FewchannelsError, InputError
from fewchannels.manifest.rows import OPTIONAL_COLUMNS
from fewchannels.manifest.write import ROW_GROUP_ROWS


def test_the_demo_world_gives_captions_with_the_scene_they_tell(tmp_path: Path) -> None:
    from fewchannels.demo.world import Scene, choose_scenes

    report = manifest.ingest(["demo:30"], tmp_path / "m.parquet")
    rows = rows_of(report.output)
    assert [row["prompt"] for row in rows] == [scene.caption for scene in choose_scenes(30, seed=0)]
    for row in rows:
        assert (
            Scene(*(row[name] for name in ("shape", "colour", "size", "position", "background"))).caption
            == row["prompt"]
        )


def test_samples_come_from_the_rows_asked_for_across_row_groups(make) -> None:
    n = 2 * ROW_GROUP_ROWS + 5
    lines = [f"p{i},{i},{i + 1}\n" + "p0,0,1\n" * (i % 1000 == 999) for i in range(n)]
    path = make("a.csv", "prompt,seed,width\n" + "".join(lines)).output
    assert manifest.Manifest.read(path).n_samples == n
    assert pq.ParquetFile(path).metadata.num_row_groups == 3
    for start, stop in [(0, 3), (ROW_GROUP_ROWS - 1, ROW_GROUP_ROWS + 2), (n - 2, n), (5, 5), (0, n)]:
        samples = manifest.read_samples(path, start, stop)
        assert [(s.prompt, s.seed, s.width) for s in samples] == [(f"p{i}", i, i + 1) for i in range(start, stop)]
    with pytest.raises(InputError, match=rf"has samples 0 to {n - 1}; "):
        manifest.read_samples(path, n, n + 1)


def test_samples_are_read_from_their_own_row_groups_only(make) -> None:
    path = make("a.txt", "x\n", seeds=range(ROW_GROUP_ROWS + 3)).output
    group = pq.ParquetFile(path).metadata.row_group(1)
    starts = [
        group.column(i).dictionary_page_offset or group.column(i).data_page_offset for i in range(group.num_columns)
    ]
    content = path.read_bytes()
    path.write_bytes(b"PAR1".ljust(min(starts), b"?") + content[min(starts) :])
    assert [s.seed for s in manifest.read_samples(path, ROW_GROUP_ROWS, ROW_GROUP_ROWS + 3)] == [
        ROW_GROUP_ROWS + i for i in range(3)
    ]
    with pytest.raises(InputError, match="not readable Parquet"):
        manifest.read_samples(path, 0, 1)


def test_the_digest_is_of_the_content_and_not_of_the_file(make, tmp_path: Path) -> None:
    path = make("a.csv", "prompt,seed,note\nx,1,a\ny,2,b\n").output
    table = pq.read_table(path)
    digest = manifest.digest(path)
    assert len(digest) == 64
    pq.write_table(table.drop_columns("note"), tmp_path / "b.parquet", row_group_size=1, compression="gzip")
    assert manifest.digest(tmp_path / "b.parquet") == digest
    for changed in (
        table.slice(0, 1),
        table.take([1, 0]),
        _with(table, "seed", [1, 3]),
        _with(table, "width", [None, 8]),
    ):
        pq.write_table(changed, tmp_path / "b.parquet")
        assert manifest.digest(tmp_path / "b.parquet") != digest


def _with(table: pa.Table, column: str, values: list[Any]) -> pa.Table:
    field = table.schema.field(column)
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


def test_only_a_manifest_is_valid(make, tmp_path: Path) -> None:
    path = make("a.csv", "prompt,seed\nx,1\ny,2\n").output
    manifest.Manifest.read(path)
    table = pq.read_table(path)
    other = tmp_path / "other.parquet"
    for broken, says in [
        (table.drop_columns("seed"), "it has no column 'seed'"),
        (table.set_column(2, "seed", pa.array([1.0, 2.0])), "'seed' is double, not int64"),
        (pa.concat_tables([table, table]), "row 3, .* occurs twice"),
        (_with(table, "prompt", ["x", "z"]), "sample_id of row 2, .* does not match its prompt"),
        (
            _with(table.cast(pa.schema([f.with_nullable(True) for f in table.schema])), "seed", [1, None]),
            "row 2 has no seed",
        ),
        (table.slice(0, 0), "no rows"),
    ]:
        pq.write_table(broken, other)
        with pytest.raises(InputError, match=f"is not a manifest: .*{says}.*fewchannels manifest ingest"):
            manifest.Manifest.read(other)
    for bad in (tmp_path / "none.parquet", tmp_path / "a.csv"):
        with pytest.raises(InputError, match="manifest"):
            manifest.Manifest.read(bad)


def test_a_summary_counts_what_pandas_counts(make) -> None:
    lines = [f"{'x' * (i % 40 + 1)},{i},{64 if i % 4 else ''},{'ab'[i % 2]},{i}" for i in range(12_000)]
    path = make("a.csv", "prompt,seed,width,letter,unique\n" + "\n".join(lines)).output
    frame = pd.read_parquet(path)
    about = manifest.summary(path)
    assert json.loads(json.dumps(about)) == about
    assert about["n_samples"] == len(frame)
    assert about["n_prompts"] == frame.prompt.nunique()
    assert about["seeds"] == {"n": frame.seed.nunique(), "min": frame.seed.min(), "max": frame.seed.max()}
    lengths = np.percentile(frame.prompt.str.len(), [0, 5, 25, 50, 75, 95, 100], method="inverted_cdf")
    assert list(about["prompt_characters"].values()) == list(lengths)
    assert about["optional"] == {name: int(frame[name].notna().sum()) for name in OPTIONAL_COLUMNS}
    assert about["sizes"][0] == {"height": None, "width": 64, "n": 9000}
    assert about["extra"]["letter"]["n_distinct"] == 2
    assert {pair["value"]: pair["n"] for pair in about["extra"]["letter"]["commonest"]} == dict(
        frame.letter.value_counts()
    )
    assert about["extra"]["unique"]["n_distinct"] is None  # more than are told apart
    assert about["bytes"] == path.stat().st_size


def test_settings_used_are_those_of_any_row(make, tmp_path: Path) -> None:
    plain = manifest.Manifest.read(make("a.csv", "prompt\nx\n").output).used
    nothing = frozenset()
    assert plain == manifest.SettingsUsed(False, 0, nothing, nothing, frozenset({(None, None)}), frozenset({None}))
    head = "prompt,negative_prompt,width,height,steps,guidance,reference\n"
    text = head + "x,n,64,32,4,2.5,\ny,,,,,,r.png\nz,,,,,2.5,r.png\n"
    assert manifest.Manifest.read(make("a.csv", text).output).used == manifest.SettingsUsed(
        has_negative_prompt=True,
        n_references=2,
        references=frozenset({f"{tmp_path}/r.png"}),
        guidance=frozenset({2.5}),
        sizes=frozenset({(32, 64), (None, None)}),
        steps=frozenset({4, None}),
    )


def test_progress_grows_to_all_bytes_and_rows(make, tmp_path: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    text = "prompt\n" + "".join(f"p{i}\n" for i in range(20_000))
    make("a.csv", text, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (len(text), len(text), 20_000)


_scraps = [
    b"a",
    b'"',
    b",",
    b"\t",
    b"\n",
    b"\r",
    b" ",
    b"\xff",
    b"\0",
    b"[",
    b"]",
    b"{",
    b"}",
    b":",
    b'{"prompt": "x"}',
    b"1",
]


@settings(max_examples=100)
@given(content=st.lists(st.sampled_from(_scraps), max_size=30).map(b"".join), kind=st.sampled_from(FORMATS))
def test_any_bytes_are_ingested_or_refused_in_words(
    content: bytes, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    source, output = folder / f"a.{kind}", folder / "m.parquet"
    source.write_bytes(
        b"prompt\n" + content if kind in ("csv", "tsv") else b"[" + content + b"]" if kind == "json" else content
    )
    try:
        manifest.ingest([source], output, on_error="skip")
    except FewchannelsError:
        assert [path.name for path in folder.iterdir()] == [source.name]
    else:
        manifest.Manifest.read(output)


def test_of_several_manifests_columns_that_differ_in_case_are_one(manifest_of) -> None:
    one = manifest_of("prompt,seed,Cat,only\na,1,x,7\n", "one")
    other = manifest_of("prompt,seed,CAT\nb,1,y\n", "other")
    with one.open("rb") as first, other.open("rb") as second:
        chosen = pq.read_table(pa.BufferReader(manifest.select([first, second], [(1, 0), (0, 0)])))
    assert [name for name in chosen.column_names if name.casefold() == "cat"] == ["Cat"]
    assert chosen["Cat"].to_pylist() == ["y", "x"]
    assert chosen["only"].to_pylist() == [None, "7"]
