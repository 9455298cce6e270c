"""The card of a run on the Hub: what it says, and what of an earlier one it keeps."""

import re
from pathlib import Path

import pytest
import yaml
from two_runs import ROWS, captured

from fewchannels.errors import StorageError
from fewchannels.runs.storage import open_storage
from fewchannels.runs.upkeep.card import card
from fewchannels.runs.upkeep.contents import Contents, checked

NAME = "my-lab/stars"


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Contents:
    run = captured(tmp_path_factory.mktemp("cards"), "RUN", tiny_model, ROWS[:4])
    return checked(open_storage(run), quick=True)


def metadata(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_what_the_run_is_and_how_to_open_it(contents: Contents) -> None:
    text = card(contents, NAME, None)
    rows = dict(re.findall(r"(?m)^\| (.+?) \| (.+) \|$", text))
    about = contents.description
    assert rows["weights, SHA-256"] == f"`{about['model']['weights_sha256']}`"
    assert rows["fingerprint"] == f"`{about['fingerprint']}`"
    assert [rows[name] for name in ("samples", "layers", "denoising steps")] == ["4 of 4", "4", "2"]
    assert rows["channels"].startswith("32, token maps of 3 ")
    assert rows["`num_inference_steps`"] == "2"
    assert "torch" in rows["versions"]
    assert f"fewchannels runs pull {NAME} RUN" in text
    assert 'fc.open_run("RUN")' in text
    assert "Prompts and images are included." in text
    found = metadata(text)
    assert "license" not in found
    assert found["size_categories"] == ["n<1K"]
    assert [each["config_name"] for each in found["configs"]] == ["samples", "cells"]


def test_a_repeated_card_is_the_same(contents: Contents) -> None:
    text = card(contents, NAME, None)
    assert card(contents, NAME, text) == text


def test_what_someone_wrote_stays_and_the_page_is_replaced(contents: Contents) -> None:
    text = card(contents, NAME, None)
    mine = text.replace("pretty_name: stars", "pretty_name: My stars\nlicense: cc0-1.0\nsize_categories:\n- n>10M")
    mine = (
        mine.replace("n<1K", "")
        .replace("4 of 4", "3 of 4")
        .replace("<!-- fewchannels: this", "Above.\n\n<!-- fewchannels: this")
    )
    again = card(contents, NAME, f"{mine}\nBelow.\n")
    found = metadata(again)
    assert (found["license"], found["pretty_name"], found["size_categories"]) == ("cc0-1.0", "My stars", ["n<1K"])
    assert "Above.\n" in again
    assert "Below.\n" in again
    assert "3 of 4" not in again
    assert again.count("# stars") == 1


def test_the_page_is_added_to_a_card_without_one(contents: Contents) -> None:
    text = card(contents, NAME, "\ufeff---\r\nlicense: mit\r\n---\r\n# Stars\r\n\r\nThe paper: ...\r\n")
    assert metadata(text)["license"] == "mit"
    assert text.index("The paper") < text.index("fewchannels runs pull")
    assert text.count("---\n") >= 2


def test_metadata_that_are_no_fields_are_named(contents: Contents) -> None:
    for broken in ("---\n- a\n---\n", "---\na: [\n---\n"):
        with pytest.raises(StorageError, match=r"README\.md"):
            card(contents, NAME, broken)


def test_texts_of_a_run_from_elsewhere_stay_in_their_cells(contents: Contents) -> None:
    about = contents.description
    odd = Contents(
        **vars(contents)
        | {"description": about | {"model": about["model"] | {"name": "a|b\n<!-- fewchannels: end -->"}}}
    )
    text = card(odd, NAME, None)
    assert "| model | a\\|b &lt;!-- fewchannels: end --> (" in text
    assert card(odd, NAME, text) == text
