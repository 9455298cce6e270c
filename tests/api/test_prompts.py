"""Prompts in memory: from tables, lists and frames; selected and drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import fewchannels as fc
from fewchannels import manifest
from fewchannels.errors import FewchannelsWarning, InputError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Ten prompts: six of a, three of b, one of c."""
    path = tmp_path / "table.tsv"
    rows = [f"prompt {i}\t{'aaaaaabbbc'[i]}" for i in range(10)]
    path.write_text("\n".join(["Prompt\tCategory", *rows]), encoding="utf-8")
    return path


def test_every_source_gives_the_same_samples(table: Path, tmp_path: Path) -> None:
    manifest.ingest([table], tmp_path / "manifest.parquet")
    frame = pd.read_csv(table, sep="\t")
    expected = pd.read_parquet(tmp_path / "manifest.parquet")
    for source in (
        table,
        str(table),
        frame,
        tmp_path / "manifest.parquet",
        fc.prompts(table).save(tmp_path / "s.parquet"),
    ):
        pd.testing.assert_frame_equal(fc.prompts(source).df(), expected)
    listed = fc.prompts(frame.Prompt.tolist())
    assert listed.df().sample_id.tolist() == expected.sample_id.tolist()


def test_a_draw_by_category_is_as_even_as_there_are_samples(table: Path) -> None:
    prompts = fc.prompts(table)
    for n, counts in ((3, [1, 1, 1]), (5, [2, 2, 1]), (8, [4, 3, 1]), (10, [6, 3, 1]), (1, [1])):
        drawn = prompts.sample(n, by="Category").df()
        assert sorted(drawn.Category.value_counts().tolist(), reverse=True) == counts
        assert drawn.prompt.tolist() == sorted(drawn.prompt)
        assert drawn.prompt.is_unique


def test_a_draw_is_that_of_its_seed(table: Path) -> None:
    prompts = fc.prompts(table)
    drawn = [prompts.sample(4, seed=seed).df().prompt.tolist() for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1]
    assert len({tuple(each) for each in drawn}) > 2
    expected = np.sort(np.random.default_rng(3).choice(10, 4, replace=False))
    assert drawn[4] == [f"prompt {i}" for i in expected]


def test_samples_are_selected_by_slices_and_truth_values(table: Path) -> None:
    prompts = fc.prompts(table)
    frame = prompts.df()
    assert prompts[2:4].df().prompt.tolist() == ["prompt 2", "prompt 3"]
    assert prompts[::-4].df().prompt.tolist() == ["prompt 9", "prompt 5", "prompt 1"]
    assert prompts[frame.Category == "b"].df().prompt.tolist() == ["prompt 6", "prompt 7", "prompt 8"]
    assert len(prompts) == 10


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda p: p.sample(11), "n is 11; there are 10 samples"),
        (lambda p: p.sample(0), "n is 0"),
        (lambda p: p.sample(2.0), "n is 2.0"),
        (lambda p: p.sample(2, by="category"), "unknown column of the prompts 'category'. Did you mean 'Category'"),
        (lambda p: p[[True]], "a boolean mask of length 10"),
        (lambda p: p["3"], "selected by an index, a slice, or a boolean mask of length 10"),
        (lambda p: p[:0], "Select at least one"),
        (lambda p: fc.prompts("a red fox"), r"there is no file named 'a red fox'. To use it as a prompt, pass a list"),
        (lambda p: fc.prompts("nothing.csv"), "nothing.csv"),
        (lambda p: fc.prompts([]), r"\[\] is not a source of prompts"),
        (lambda p: fc.prompts([1, 2]), r"\[1, 2\] is not a source of prompts"),
        (lambda p: fc.prompts(7), "7 is not a source of prompts"),
        (lambda p: fc.prompts(["a"], seeds=[1, 1]), "seed 1 is given twice"),
        (lambda p: fc.prompts(["a"], seeds=-1), "seed -1"),
        (lambda p: fc.prompts(["a"], seeds="abc"), "seeds is 'abc'"),
        (lambda p: fc.prompts(["a"], seeds=[1.5]), r"seeds is \[1.5\]"),
        (lambda p: fc.prompts(["\ud800"]), "a list of 1 prompt"),
        (lambda p: fc.prompts(pd.DataFrame({"prompt": ["a", "b"], "x": [1, "y"]})), "cannot be kept as a table"),
        (lambda p: fc.prompts(pd.DataFrame([["a", "b"]], columns=["prompt", "prompt"])), "cannot be kept as a table"),
        (lambda p: fc.prompts(["a", " "]), "a list of 2 prompts:2: 'prompt': ' ' is empty"),
        (lambda p: fc.prompts(pd.DataFrame({"size": [1]})), "prompt"),
    ],
)
def test_what_cannot_be_prompts_is_refused(table: Path, act: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        act(fc.prompts(table))


def test_samples_without_a_category_are_not_passed_over(tmp_path: Path) -> None:
    prompts = fc.prompts(pd.DataFrame({"prompt": ["a", "b", "c"], "kind": ["x", None, "x"]}))
    with pytest.raises(InputError, match=r"1 of 3 samples have no kind.*notna") as raised:
        prompts.sample(2, by="kind")
    remedy = str(raised.value).split(": ")[1].removesuffix(".")
    assert len(eval(remedy, {"prompts": prompts}).sample(2, by="kind")) == 2


def test_a_manifest_is_not_given_other_seeds(table: Path, tmp_path: Path) -> None:
    path = fc.ingest(table, tmp_path / "manifest.parquet", seeds=range(2)).save(tmp_path / "again.parquet")
    assert len(fc.prompts(path)) == 20
    with pytest.raises(InputError, match="is a manifest, which already has prompts and seeds"):
        fc.prompts(path, seeds=1)


def test_notes_of_a_source_are_warnings_that_name_it(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,reference\na,nowhere.png\n", encoding="utf-8")
    with pytest.warns(FewchannelsWarning, match="do not exist"):
        fc.prompts(path)


def test_notebooks_show_what_there_is(table: Path) -> None:
    shown = fc.prompts(table)._repr_html_()
    assert "Category, 3 values" in shown
    assert ">10<" in shown


def test_natural_containers_are_prompts(table: Path) -> None:
    texts = ["a", "b"]
    for source in (texts, tuple(texts), pd.Series(texts), np.array(texts), (text for text in texts)):
        assert fc.prompts(source).df().prompt.tolist() == texts
    prompts = fc.prompts(table)
    assert fc.prompts(prompts) is prompts
    assert prompts[-1].df().prompt.tolist() == ["prompt 9"]
    assert [len(each) for each in prompts] == [1] * 10
    assert len(fc.prompts(texts, seeds=np.int64(3))) == 2


def test_who_gets_what_does_not_divide_is_drawn(table: Path) -> None:
    prompts = fc.prompts(table)
    drawn = {prompts.sample(1, by="Category", seed=seed).df().Category[0] for seed in range(30)}
    assert drawn == {"a", "b", "c"}


def test_files_of_a_frame_are_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("m.png")
    prompts = fc.prompts(pd.DataFrame({"prompt": ["a"], "mask": ["m.png"]}))
    assert prompts.df()["mask"].tolist() == [str(tmp_path / "m.png")]


def test_a_column_that_is_taken_for_a_setting_by_another_name_is_said(tmp_path: Path) -> None:
    with pytest.warns(FewchannelsWarning, match=r"the column 'step' of .* sets the samples' steps") as warned:
        fc.prompts(pd.DataFrame({"prompt": ["a"], "step": [5]}))
    assert warned[0].filename == __file__


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(fc.prompts("~/table.tsv")) == 10
    assert fc.prompts(table).save("~/m.parquet") == tmp_path / "m.parquet"
