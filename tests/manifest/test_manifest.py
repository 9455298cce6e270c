"""Manifests against ids made here with hashlib, and tables read with csv, pandas and pyarrow."""

import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_files import FORMATS, PROMPTS, expected_id, expected_prompt, rows_of, write

from fewchannels import manifest
from fewchannels.errors import InputError
from fewchannels.manifest.rows import OPTIONAL_COLUMNS
from fewchannels.tables import schema


def test_an_id_is_that_of_its_written_definition() -> None:
    assert manifest.sample_id("a red star", 7) == expected_id("a red star", 7)
    guidance = struct.pack(">f", 3.5).hex()
    assert manifest.sample_id("a", 0, guidance=3.5, width=512, negative_prompt="blur", mask=None) == expected_id(
        "a", 0, ("negative_prompt", "blur"), ("width", "512"), ("guidance", guidance)
    )
    assert manifest.sample_id("a red star", 0) == "cea614bfda9c5929"  # as sha256sum prints it: an id is for ever


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_samples(kind: str, tmp_path: Path) -> None:
    prompts = [prompt for prompt in PROMPTS if kind != "tsv" or "\t" not in prompt]
    source = write(tmp_path / f"prompts.{kind}", [{"prompt": prompt} for prompt in prompts])
    manifest.ingest([source], tmp_path / "m.parquet")
    rows = rows_of(tmp_path / "m.parquet")
    assert [row["prompt"] for row in rows] == [expected_prompt(prompt) for prompt in prompts]
    assert [row["sample_id"] for row in rows] == [expected_id(expected_prompt(prompt)) for prompt in prompts]


_text = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0"), min_size=1, max_size=30)
_one_line = st.text(
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\n\r\t"), min_size=1, max_size=30
)


@settings(max_examples=12)
@given(
    prompts=st.lists(_one_line.filter(lambda text: text.strip()), min_size=1, max_size=8),
    seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3, unique=True),
)
def test_any_prompts_and_seeds_give_the_same_ids_in_every_format(
    prompts: list[str], seeds: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("formats")
    expected = dict.fromkeys(expected_id(expected_prompt(prompt), seed) for prompt in prompts for seed in seeds)
    for kind in FORMATS:
        source = write(folder / f"prompts.{kind}", [{"prompt": prompt} for prompt in prompts])
        report = manifest.ingest([source], folder / "m.parquet", seeds=seeds)
        assert manifest.sample_ids(folder / "m.parquet") == list(expected), kind
        assert report.n_written + report.n_duplicates == len(prompts) * len(seeds), kind


@settings(max_examples=12)
@given(
    prompts=st.lists(_text.filter(lambda text: text.strip()), min_size=1, max_size=8), seed=st.integers(0, 2**63 - 1)
)
def test_prompts_with_line_ends_and_tabs_survive_formats_that_quote(
    prompts: list[str], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("quoting")
    rows = [{"n": n, "seed": seed, "prompt": prompt} for n, prompt in enumerate(prompts)]
    swapped = [{name: row[name] for name in ("prompt", "n", "seed")} for row in rows]
    expected = list(dict.fromkeys(expected_id(expected_prompt(prompt), seed) for prompt in prompts))
    for kind in ("csv", "jsonl", "json", "parquet"):
        for order in (rows, swapped):
            manifest.ingest([write(folder / f"prompts.{kind}", order)], folder / "m.parquet")
            assert manifest.sample_ids(folder / "m.parquet") == expected, kind


@pytest.mark.parametrize("guidance", [3.5, 0.1, 7, 0.0, 1e-30])
def test_guidance_is_the_same_number_in_text_float32_and_float64(guidance: float, tmp_path: Path) -> None:
    ids = []
    write(tmp_path / "a.csv", [{"prompt": "x", "guidance": guidance}])
    write(tmp_path / "b.jsonl", [{"prompt": "x", "guidance": guidance}])
    for name, kind in (("c", pa.float32()), ("d", pa.float64())):
        pq.write_table(
            pa.table({"prompt": ["x"], "guidance": pa.array([guidance], kind)}), tmp_path / f"{name}.parquet"
        )
    for name in ("a.csv", "b.jsonl", "c.parquet", "d.parquet"):
        manifest.ingest([tmp_path / name], tmp_path / "m.parquet")
        (row,) = rows_of(tmp_path / "m.parquet")
        assert row["guidance"] == np.float32(guidance)
        ids.append(row["sample_id"])
    assert set(ids) == {expected_id("x", 0, ("guidance", np.array(guidance, ">f4").tobytes().hex()))}


def test_minus_zero_is_zero(make) -> None:
    (row,) = rows_of(make("a.csv", "prompt,guidance\nx,-0.0\n").output)
    assert row["sample_id"] == expected_id("x", 0, ("guidance", "00000000"))


def test_optional_columns_are_found_by_name_or_alias_and_converted(make, tmp_path: Path) -> None:
    report = make(
        "a.csv",
        "Text,SEED,Negative Prompt,width,Height,num_inference_steps,cfg_scale,mask,reference,Tag\n"
        "a star,5, blur ,512,768.0,20,3.5,m.png,r.png,x\n"
        "a ring,,,,,,,,,\n",
    )
    table = pq.read_table(report.output)
    assert table.schema.names == [*schema("manifest").names, "Tag"]
    assert [table.schema.field(name).type for name in schema("manifest").names] == list(schema("manifest").types)
    first, second = table.to_pylist()
    own = {"negative_prompt": "blur", "width": 512, "height": 768, "steps": 20, "guidance": 3.5}
    own |= {"mask": f"{tmp_path}/m.png", "reference": f"{tmp_path}/r.png"}
    star, ring = manifest.sample_id("a star", 5, **own), expected_id("a ring")
    assert first == {"sample_id": star, "prompt": "a star", "seed": 5, **own, "Tag": "x"}
    assert second == {"sample_id": ring, "prompt": "a ring", "seed": 0, **dict.fromkeys(own), "Tag": ""}
    assert report.prompt_column == "Text"


def test_paths_are_those_of_the_tables_folder_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, elsewhere = tmp_path / "set" / "a.csv", tmp_path / "elsewhere"
    for folder in (table.parent / "masks", elsewhere / "masks"):
        folder.mkdir(parents=True)
    (table.parent / "masks" / "0.png").touch()
    (elsewhere / "masks" / "1.png").touch()
    table.write_text(
        "prompt,mask,reference\na,masks/0.png,\nb,./masks/1.png,~/r.png\nc,/abs/m.png,s3://b/r.png\na b,,\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(elsewhere)
    report = manifest.ingest(["../set/a.csv"], "m.parquet")
    rows = [(row["mask"], row["reference"]) for row in rows_of(elsewhere / "m.parquet")]
    folder = f"{elsewhere}/../set/masks"
    assert rows[0] == (f"{folder}/0.png", None)
    assert rows[1] == (f"{folder}/1.png", f"{tmp_path}/home/r.png")
    assert rows[2] == ("/abs/m.png", "s3://b/r.png")
    assert rows[3] == (None, None)
    assert (report.n_files, report.n_missing) == (5, 3)
    assert report.notes == ("3 of the 5 files in the columns mask and reference do not exist, such as '/abs/m.png'",)


def test_the_code_names_the_optional_columns_of_the_schema() -> None:
    assert ("sample_id", "prompt", "seed", *OPTIONAL_COLUMNS) == tuple(schema("manifest").names)
    assert tuple(manifest.Sample.__dataclass_fields__) == tuple(schema("manifest").names)


def test_an_ingested_manifest_ingests_to_itself(make, tmp_path: Path) -> None:
    make("a.csv", "caption,width,guidance,sample_id,note\nx,64,3.3,stale,one\ny,,,stale,two\n", seeds=[4, 9])
    first = (tmp_path / "manifest.parquet").read_bytes()
    report = manifest.ingest([tmp_path / "manifest.parquet"], tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == first
    assert (report.n_written, report.n_duplicates) == (4, 0)


def test_the_same_input_gives_the_same_bytes(make, tmp_path: Path) -> None:
    text = "prompt,b,a\n" + "".join(f"prompt {i},{i},{i % 3}\n" for i in range(20_000))
    make("a.csv", text)
    first = (tmp_path / "manifest.parquet").read_bytes()
    make("a.csv", text)
    assert (tmp_path / "manifest.parquet").read_bytes() == first


@pytest.mark.parametrize(
    ("columns", "prompt"),
    [
        ("CAPTIONS,id", "CAPTIONS"),
        ("description,Prompt,text", "Prompt"),
        ("Prompts,Category", "Prompts"),
        ("n,instruction", "instruction"),
    ],
)
def test_the_obvious_prompt_column_is_picked_and_named_whatever_its_case_and_number(
    make, columns: str, prompt: str
) -> None:
    report = make("a.csv", f"{columns}\n" + ",".join(f"of {name}" for name in columns.split(",")) + "\n")
    assert report.prompt_column == prompt
    assert rows_of(report.output)[0]["prompt"] == f"of {prompt}"


def test_a_named_prompt_column_wins_and_the_column_called_prompt_is_kept_beside_it(make) -> None:
    report = make("a.csv", "prompt,Story\np,s\n", prompt_column="story")
    row = rows_of(report.output)[0]
    assert (row["prompt"], row["source_prompt"]) == ("s", "p")
    assert "source_prompt" in report.notes[0]


def test_extra_columns_keep_their_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"prompt": ["a", "b"], "n": np.array([1, 2], "int16"), "when": pd.to_datetime(["2024-01-01", "2025-01-01"])}
    ).assign(kind=pd.Categorical(["x", "y"]), score=[0.5, None])
    frame.to_parquet(tmp_path / "a.parquet")
    manifest.ingest([tmp_path / "a.parquet"], tmp_path / "m.parquet")
    table = pq.read_table(tmp_path / "m.parquet")
    kinds = {name: str(table.schema.field(name).type).split("[")[0] for name in ("n", "when", "kind", "score")}
    assert kinds == {"n": "int16", "when": "timestamp", "kind": "string", "score": "double"}
    pd.testing.assert_frame_equal(table.to_pandas()[["n", "when", "score"]], frame[["n", "when", "score"]])

    write(tmp_path / "b.jsonl", [{"prompt": "a", "n": 1, "x": True, "list": [1, "é"]}, {"prompt": "b", "n": 1.5}])
    manifest.ingest([tmp_path / "b.jsonl"], tmp_path / "m.parquet")
    assert [{k: row[k] for k in ("n", "x", "list")} for row in rows_of(tmp_path / "m.parquet")] == [
        {"n": 1.0, "x": True, "list": '[1, "é"]'},
        {"n": 1.5, "x": None, "list": None},
    ]


def test_several_sources_have_the_union_of_their_columns_and_differing_types_become_text(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", [{"caption": "x", "n": "1", "only_a": "q"}])
    two = write(tmp_path / "b.parquet", [{"prompt": "y", "N": 2, "only_b": 0.5}])
    three = write(tmp_path / "c.txt", [{"prompt": "z"}, {"prompt": "x"}])
    report = manifest.ingest([one, two, three], tmp_path / "m.parquet")
    assert [{k: row[k] for k in ("prompt", "n", "only_a", "only_b")} for row in rows_of(report.output)] == [
        {"prompt": "x", "n": "1", "only_a": "q", "only_b": None},
        {"prompt": "y", "n": "2", "only_a": None, "only_b": 0.5},
        {"prompt": "z", "n": None, "only_a": None, "only_b": None},
    ]
    assert report.n_duplicates == 1
    assert report.prompt_column == "caption, prompt"
    assert any("'n' is int64, elsewhere string; kept as text" in note for note in report.notes)


def test_json_values_of_several_kinds_become_text_and_the_report_says_so(make) -> None:
    report = make("a.jsonl", '{"prompt": "a", "v": 1, "seed": "3"}\n{"prompt": "b", "v": "one", "seed": 3}\n')
    rows = rows_of(report.output)
    assert [row["v"] for row in rows] == ["1", "one"]
    assert [row["seed"] for row in rows] == [3, 3]
    (note,) = report.notes
    assert "'v' is text or whole number" in note


def test_duplicates_are_counted_and_the_first_is_kept(make) -> None:
    report = make("a.csv", "prompt,n\nx,1\n x ,2\ny,3\nx,4\nCafe\u0301,5\nCaf\u00e9,6\n")
    assert (report.n_rows, report.n_written, report.n_duplicates) == (6, 3, 3)
    assert [row["n"] for row in rows_of(report.output)] == ["1", "3", "5"]


def test_seeds_expand_each_prompt_in_order(make) -> None:
    report = make("a.txt", "x\ny\n", seeds=manifest.parse_seeds("7,0:2"))
    assert [(row["prompt"], row["seed"]) for row in rows_of(report.output)] == [
        (prompt, seed) for prompt in "xy" for seed in (7, 0, 1)
    ]


@given(st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 50)), min_size=1, max_size=4))
def test_ranges_of_seeds_are_half_open(ranges: list[tuple[int, int]]) -> None:
    expected = [seed for start, n in ranges for seed in range(start, start + n)]
    text = ",".join(f"{start}:{start + n}" for start, n in ranges)
    if len(set(expected)) < len(expected):
        with pytest.raises(InputError, match="given twice"):
            manifest.parse_seeds(text)
    else:
        assert list(manifest.parse_seeds(text)) == expected


@pytest.mark.parametrize(
    "text", ["", "a", "-1", "1,,2", "4:4", "4:4,1", "5:2", "0:9999999", "1.5", str(2**63), "0:1:2", "٣"]
)
def test_seeds_that_make_no_sense_are_refused_in_words(text: str) -> None:
    with pytest.raises(InputError, match="seed"):
        manifest.parse_seeds(text)


def test_seeds_given_twice_over_are_refused_with_the_remedy(make) -> None:
    with pytest.raises(InputError, match=r"'Seed', and --seeds was given as well\. Omit --seeds"):
        make("a.csv", "prompt,Seed\nx,1\n", seeds=[0])
