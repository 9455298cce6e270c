"""``fewchannels plot``: one figure of a sweep, by its name."""

from pathlib import Path

import pytest
from made_sweep import make_sweep
from PIL import Image
from planted_edits import planted
from typer.testing import CliRunner

from fewchannels.cli import app
from fewchannels.errors import InputError


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = [{"selection": word, "k": k} for k in (4, 8) for word in ("top", "random")]
    edits = planted(settings, {"top": 0.012, "random": 0.0}, n_prompts=2)
    return make_sweep(tmp_path_factory.mktemp("made") / "sweep", edits)


def test_one_figure_is_drawn_where_it_is_wanted(sweep: Path, tmp_path: Path) -> None:
    asked = ["plot", str(sweep), "--of", "mse"]
    assert CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "mse.png")]).exit_code == 0
    assert CliRunner().invoke(app, [*asked, "--axis", "k", "--out", str(tmp_path / "mse.svg")]).exit_code == 0
    with Image.open(tmp_path / "mse.png") as image:
        assert image.format == "PNG"
    text = (tmp_path / "mse.svg").read_text()
    assert all(word in text for word in ("k, channels", "random", "top", "mean squared difference"))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["--axis", "k"], "choose it with --of METRIC or --item N"),
        (["--of", "mse", "--item", "0", "--out", "a.png"], "select two different figures"),
        (["--of", "mse"], "FILE.png or FILE.svg"),
        (["--of", "mse", "--out", "a.jpg"], "'a.jpg'"),
        (["--of", "dino", "--out", "a.png"], "'dino'"),
        (["--of", "mse", "--axis", "depth", "--out", "a.png"], "'depth'"),
        (["--item", "99", "--out", "a.png"], "item 99 has no edited images"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_refused(asked: list[str], says: str, sweep: Path) -> None:
    answer = CliRunner().invoke(app, ["plot", str(sweep), *asked])
    assert isinstance(answer.exception, InputError)
    assert says in str(answer.exception)
