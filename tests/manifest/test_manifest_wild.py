"""Tables as people publish and export them: DiffusionDB, DPG-Bench, Excel, datasets with images."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from manifest_files import rows_of, write

from fewchannels import manifest
from fewchannels.errors import InputError
from fewchannels.manifest import OwnSetting


def _diffusion_db(path: Path) -> Path:
    """Six rows of DiffusionDB's published schema."""
    pq.write_table(
        pa.table(
            {
                "image_name": [f"{i}.png" for i in range(6)],
                "prompt": [f"prompt {i}" for i in range(6)],
                "part_id": pa.array([1] * 6, pa.uint16()),
                "seed": pa.array([4, 2, 9, 7, 5, 6], pa.uint32()),
                "step": pa.array([50, 25, 50, 30, 50, 50], pa.uint16()),
                "cfg": pa.array([7, 7.5, 12, 7, 7, 7], pa.float32()),
                "width": pa.array([512, 448, 512, 512, 512, 512], pa.uint16()),
                "height": pa.array([512, 704, 512, 512, 512, 512], pa.uint16()),
            }
        ),
        path,
    )
    return path


def test_columns_that_set_samples_own_settings_are_reported_with_their_ranges(tmp_path: Path) -> None:
    report = manifest.ingest([_diffusion_db(tmp_path / "a.parquet")], tmp_path / "m.parquet")
    assert set(report.settings) == {
        OwnSetting("seed", "seed", 6, 2, 9),
        OwnSetting("steps", "step", 6, 25, 50),
        OwnSetting("guidance", "cfg", 6, 7, 12),
        OwnSetting("width", "width", 6, 448, 512),
        OwnSetting("height", "height", 6, 512, 704),
    }
    assert {each.name: each.values for each in report.settings} == {
        "seed": "2 to 9",
        "steps": "25 to 50",
        "guidance": "7 to 12",
        "width": "448 to 512",
        "height": "512 to 704",
    }


def test_ignored_columns_set_nothing_and_are_not_kept(tmp_path: Path) -> None:
    source = _diffusion_db(tmp_path / "a.parquet")
    report = manifest.ingest(
        [source], tmp_path / "m.parquet", ignore_columns=["STEP", "cfg", "width", "height", "seed"], seeds=[3]
    )
    assert report.settings == ()
    assert report.ignored_columns == ("STEP", "cfg", "width", "height", "seed")
    rows = rows_of(report.output)
    assert [row["sample_id"] for row in rows] == [manifest.sample_id(f"prompt {i}", 3) for i in range(6)]
    assert list(rows[0])[-2:] == ["image_name", "part_id"]


def test_values_of_some_rows_and_of_several_sources_are_counted_together(make, tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", [{"prompt": "a", "steps": 10, "negative": "x"}, {"prompt": "b", "steps": ""}])
    two = write(tmp_path / "b.jsonl", [{"prompt": "c", "steps": 5}, {"prompt": "d", "steps": 7}])
    report = manifest.ingest([one, two], tmp_path / "m.parquet")
    assert set(report.settings) == {
        OwnSetting("steps", "steps", 3, 5, 10),
        OwnSetting("negative_prompt", "negative", 1, None, None),
    }


def test_a_column_that_no_source_has_and_the_prompts_own_cannot_be_ignored(make) -> None:
    with pytest.raises(InputError, match=r"unknown column to ignore 'stepp'\. Did you mean 'step'"):
        make("a.csv", "prompt,step\nx,1\n", ignore_columns=["stepp"])
    with pytest.raises(InputError, match="'Prompt' is both the prompt column and one to ignore"):
        make("a.csv", "prompt,step\nx,1\n", ignore_columns=["Prompt"], prompt_column="prompt")
    with pytest.raises(InputError, match="no column is called prompt"):
        make("a.csv", "prompt,step\nx,1\n", ignore_columns=["prompt"])


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_a_field_of_any_size_is_taken(make, ending: str) -> None:
    image, comma = "x" * 300_000, "," if ending == "csv" else "\t"
    report = make(f"a.{ending}", f"prompt{comma}note\na{comma}{image}\nb{comma}short\n")
    assert [row["note"] for row in rows_of(report.output)] == [image, "short"]


def test_a_field_that_cannot_be_one_names_the_limit_and_the_quote(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewchannels.manifest.text_sources._MAX_FIELD", 1000)
    with pytest.raises(
        InputError, match=r"a\.csv:2.*more than 1,000 characters, probably because of an unclosed quote"
    ):
        make("a.csv", 'prompt,note\na,"' + "x" * 2000 + "\n")


def test_large_fields_come_in_batches_of_bounded_size(make, monkeypatch: pytest.MonkeyPatch) -> None:
    from fewchannels.manifest.text_sources import Delimited

    sizes = []
    own = Delimited._batch
    monkeypatch.setattr("fewchannels.manifest.text_sources.BATCH_BYTES", 100_000)
    monkeypatch.setattr(
        Delimited, "_batch", lambda self, lines, *rest: sizes.append(len(lines)) or own(self, lines, *rest)
    )
    report = make("a.csv", "prompt,note\n" + "".join(f"p{i},{'x' * 30_000}\n" for i in range(20)))
    assert report.n_written == 20
    assert sum(sizes) == 20
    assert max(sizes) <= 5


def test_a_separator_that_the_first_line_declares_is_taken(make) -> None:
    report = make("a.csv", 'sep=;\nprompt;seed\n"a cat, black";1\nsecond;2\n')
    assert [(row["prompt"], row["seed"]) for row in rows_of(report.output)] == [("a cat, black", 1), ("second", 2)]
    with pytest.raises(manifest.BadRowsError, match=r"a\.csv:4"):
        make("a.csv", "sep=;\nprompt;seed\na;1\nb;no\n")


def test_a_semicolon_in_a_column_name_among_commas_is_a_name(make) -> None:
    assert make("a.csv", "prompt,tags; all\na,b\n").n_written == 1
    assert make("a.csv", '"prompt;seed",prompt\na,b\n').n_written == 1


def test_images_times_many_seeds_take_bounded_memory(tmp_path: Path) -> None:
    image = {"bytes": np.random.default_rng(0).bytes(3 * 2**20), "path": "0.png"}
    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "image": image}]), tmp_path / "a.parquet")
    code = f"""
        from fewchannels import manifest
        report = manifest.ingest({str(tmp_path / "a.parquet")!r}, {str(tmp_path / "m.parquet")!r}, seeds=range(750))
        # Not ru_maxrss: a process begins with its parent's, which is this test's.
        (peak,) = (line for line in open("/proc/self/status") if line.startswith("VmHWM"))
        print(report.n_written, int(peak.split()[1]) // 1024)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True, timeout=300
    )
    n_written, peak_mib = map(int, done.stdout.split())
    assert n_written == 750
    assert peak_mib < 1000  # 750 images are 2,250 MiB
    file = pq.ParquetFile(tmp_path / "m.parquet")
    assert max(file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)) <= 44  # two times 64 MiB
    assert file.read_row_group(file.num_row_groups - 1, columns=["image"])["image"][-1].as_py() == image


def test_rows_of_unequal_size_keep_their_values_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewchannels.manifest.row_groups._ROW_GROUP_BYTES", 10_000)
    rows = [{"prompt": f"p{i}", "blob": bytes([i]) * (10 if i % 3 else 4000), "n": i} for i in range(40)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    manifest.ingest([tmp_path / "a.parquet"], tmp_path / "m.parquet", seeds=[0, 1])
    assert [(row["prompt"], row["seed"], row["blob"]) for row in rows_of(tmp_path / "m.parquet")] == [
        (row["prompt"], seed, row["blob"]) for row in rows for seed in (0, 1)
    ]


def test_images_that_are_ignored_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(
        pa.Table.from_pylist([{"prompt": "a", "image": {"bytes": b"x", "path": "p"}}]), tmp_path / "a.parquet"
    )
    asked = []
    own = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda self, *a, **k: asked.append(k.get("columns")) or own(self, *a, **k)
    )
    report = manifest.ingest([tmp_path / "a.parquet"], tmp_path / "m.parquet", ignore_columns=["image"])
    assert asked == [["prompt"]]
    assert "image" not in rows_of(report.output)[0]


def test_a_folder_of_texts_is_one_source_and_every_sample_has_its_files_name(tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    folder.mkdir()
    for i in range(1065):
        (folder / f"{i}.txt").write_text(f"a long prompt, number {i}")
    (folder / "lost+found").mkdir()
    (folder / "README.md").write_text("about")
    (folder / ".DS_Store").write_text("")
    report = manifest.ingest([folder], tmp_path / "m.parquet")
    rows = rows_of(report.output)
    assert {row["source_file"]: row["prompt"] for row in rows} == {
        f"{i}.txt": f"a long prompt, number {i}" for i in range(1065)
    }
    assert report.sources == (str(folder),)
    assert report.notes == (f"{folder}: ignored, not prompts: 'README.md', 'lost+found'",)


def test_files_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.txt").write_text(f"{name}\n")
    sources = [tmp_path / name / "p.txt" for name in ("one", "two")]
    report = manifest.ingest(sources, tmp_path / "m.parquet")
    assert [row["source_file"] for row in rows_of(report.output)] == [str(path) for path in sources]


def test_a_users_own_source_columns_are_not_shadowed(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", [{"prompt": "a", "source": "laion", "Source_File": "mine"}])
    two = write(tmp_path / "b.csv", [{"prompt": "b", "source": "coco", "Source_File": "too"}])
    report = manifest.ingest([one, two], tmp_path / "m.parquet")
    assert [(row["source"], row["Source_File"], row["source_file_2"]) for row in rows_of(report.output)] == [
        ("laion", "mine", "a.csv"),
        ("coco", "too", "b.csv"),
    ]
    assert "'source_file_2'" in report.notes[0]
    assert "source_file" not in rows_of(manifest.ingest([one], tmp_path / "m.parquet").output)[0]
    plain = [write(tmp_path / f"{name}.txt", [{"prompt": name}]) for name in "xy"]
    report = manifest.ingest(plain, tmp_path / "m.parquet", ignore_columns=["source_file"])
    assert list(rows_of(report.output)[0])[-1] == "reference"


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match=r"none' has no file with the suffix \.csv"):
        manifest.ingest([tmp_path / "none"], tmp_path / "m.parquet")


def test_duplicates_whose_other_columns_differ_are_counted_with_the_columns(make) -> None:
    """A row per proposition, as in DPG-Bench's table: 12 rows of 2 prompts."""
    lines = [f"{i // 6},prompt {i // 6},same,{i % 6},q{i}\n" for i in range(12)]
    report = make(
        "a.csv", "item_id,text,keywords,proposition_id,question\n" + "".join(lines) + "1,prompt 1,same,0,q6\n"
    )
    assert (report.n_written, report.n_duplicates, report.n_differing) == (2, 11, 10)
    assert report.differing_columns == ("proposition_id", "question")


@pytest.mark.parametrize(
    ("first", "second", "differ"),
    [
        (0.5, 0.25, True),
        (1, 2**32 + 1, True),
        (None, 0.0, True),
        (float("nan"), float("nan"), False),
        (2.0, 2.0, False),
    ],
)
def test_duplicates_are_compared_by_value(tmp_path: Path, first: Any, second: Any, differ: bool) -> None:
    kind = pa.int64() if isinstance(first, int) else pa.float64()
    table = pa.table({"prompt": ["a", "a"], "x": pa.array([first, second], kind)})
    pq.write_table(table, tmp_path / "a.parquet")
    report = manifest.ingest([tmp_path / "a.parquet"], tmp_path / "m.parquet")
    assert (report.n_duplicates, report.n_differing) == (1, int(differ))


def test_lists_and_samples_of_other_sources_are_compared_as_well(tmp_path: Path) -> None:
    one = write(tmp_path / "a.parquet", [{"prompt": "a", "tags": ["x"]}, {"prompt": "b", "tags": ["x"]}])
    two = write(tmp_path / "b.parquet", [{"prompt": "a", "tags": ["y"]}, {"prompt": "b", "tags": ["x"]}])
    report = manifest.ingest([one, two, write(tmp_path / "c.txt", [{"prompt": "b"}])], tmp_path / "m.parquet")
    assert (report.n_duplicates, report.n_differing, report.differing_columns) == (3, 2, ("tags",))


def test_json_lines_under_another_ending_are_taken(make) -> None:
    lines = "".join(json.dumps({"prompt": p, "seed": s}) + "\n" for p, s in (("a", 1), ("b", 2)))
    assert [(row["prompt"], row["seed"]) for row in rows_of(make("a.json", lines).output)] == [("a", 1), ("b", 2)]


def test_nan_is_no_value_in_columns_of_floats(tmp_path: Path) -> None:
    nan = float("nan")
    columns = {name: pa.array([nan, 64.0], pa.float64()) for name in ("seed", "width", "height", "steps", "guidance")}
    pq.write_table(pa.table({"prompt": ["a", "b"], **columns}), tmp_path / "a.parquet")
    report = manifest.ingest([tmp_path / "a.parquet"], tmp_path / "m.parquet")
    first, second = rows_of(report.output)
    assert first["sample_id"] == manifest.sample_id("a", 0)
    assert [first[name] for name in columns] == [0, None, None, None, None]
    assert [second[name] for name in columns] == [64, 64, 64, 64, 64.0]
    assert {each.n_rows for each in report.settings} == {1}


@pytest.mark.parametrize(
    ("seed", "says"),
    [
        ("18446744073709551615", "would reduce it modulo 2\\*\\*64"),
        ("1.8446744073709552e19", "would reduce it modulo 2\\*\\*64"),
        ("9223372036854775808", "would reduce it modulo 2\\*\\*64"),
        ("-1", "if -1 means a random seed"),
    ],
)
def test_seeds_of_other_tools_are_refused_with_the_reason(make, seed: str, says: str) -> None:
    with pytest.raises(manifest.BadRowsError, match=says):
        make("a.csv", f"prompt,seed\na,{seed}\n")
