"""Messages, help, docs and docstrings are plain American English, without phrases that readers had to read twice."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A phrase, and what says it plainly. Words are matched whole, in any case.
PLAINER = {
    "a question's": "a query's",
    "all the way": "full replacement",
    "another has taken its place": "another command took over",
    "are no prompts": "is not a source of prompts",
    "as many others": "the same number of other channels",
    "as people read it": "as text",
    "asked of": "requested from",
    "at hand": "available",
    "at the least": "at least, minimum",
    "at the most": "at most",
    "begin anew": "start over",
    "begun anew": "started over",
    "begun with": "created with",
    "behind every block": "at every block's output",
    "beside those that are known": "in addition to the known ones",
    "better signed": "best sign (oracle)",
    "but for the columns": "without the columns",
    "came to": "result, summary",
    "cannot be had": "cannot be downloaded",
    "cannot be told": "cannot be distinguished, no significant difference",
    "chosen by looking": "selected post hoc",
    "disturb": "ablate, edit",
    "disturbs": "ablates, edits",
    "done again": "rerun, retried",
    "empty where": "empty if",
    "failed by themselves": "failed individually",
    "for ever": "forever",
    "go on": "continue, resume",
    "goes on": "continues, resumes",
    "handed out again": "retried",
    "held by a test": "covered by a test",
    "hold the truth": "cover the mean",
    "in no number": "excluded from all numbers",
    "is no csv": "is not CSV",
    "is no figure": "is not a figure",
    "is no file": "is not a file",
    "is no folder": "is not a folder",
    "is no json": "is not JSON",
    "is no number": "is not a number",
    "is no png": "is not a PNG",
    "is no size": "is not a size",
    "is no table": "is not a table",
    "is not there": "does not exist",
    "least inertia": "lowest inertia",
    "let go of": "release",
    "likewise": "the same for, also",
    "looked at": "checked, shown, analyzed",
    "looks at the answer": "oracle, uses the ground truth",
    "moved by as much": "norm-matched",
    "none where": "None if",
    "not done yet": "unfinished",
    "nothing can be said": "cannot be compared",
    "nothing would use it": "would have no effect",
    "numbers there are": "number of",
    "out of reach": "unreachable",
    "outlying norm": "outlier norm",
    "sample by sample they": "in paired comparison, they",
    "says how it is meant": "explains",
    "so many are asked for": "this number is requested",
    "speaks for": "replaces, covers",
    "stays done": "is kept",
    "takes no notice": "ignores",
    "the disk refused": "writing failed",
    "the store refused": "writing failed",
    "told apart": "distinguished",
    "travels to": "is sent to",
    "under way": "running, in progress",
    "what decides": "everything that determines",
    "what is done is kept": "finished work is kept",
    "what of the run": "selected part of the run",
    "what they found": "results",
    "where there is none": "if there is none",
    "whoever": "any process that, the author, a user",
    "whole or not at all": "atomically",
    "would do nothing": "would have no effect",
}
PHRASES = re.compile(rf"(?<![\w`-])(?<!there )({'|'.join(map(re.escape, PLAINER))})(?![\w`-])", re.IGNORECASE)

PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "queries").glob("*.sql"),
    ]
)
MODULES = sorted((ROOT / "engine").rglob("*.py"))


def found(text: str) -> list[str]:
    """The phrases of a text that are not plain, each with what says it plainly."""
    words = " ".join(text.split())
    return [f"{hit[0]!r}: {PLAINER[hit[0].casefold()]}" for hit in PHRASES.finditer(words)]


def prose(path: Path) -> str:
    """A page as it is; of a module its texts and comments, those over several lines joined."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return re.sub(r"(?m)^-- +", "", source)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    return " ".join(re.sub(r"(?m)^[rbf]*\"+|\"+$|^#", "", each.string) for each in tokens if each.type in kinds)


@pytest.mark.parametrize("path", [*PAGES, *MODULES], ids=lambda path: str(path.relative_to(ROOT)))
def test_texts_are_plain_english(path: Path) -> None:
    assert not found(prose(path))


def test_a_phrase_is_found_over_lines_and_a_name_is_not() -> None:
    assert found("the run goes\n  on") == ["'goes on': continues, resumes"]
    assert found("`undisturbed`, disturbed and undisturb are names") == []
    assert found("Likewise, a file is no PNG.") == ["'Likewise': the same for, also", "'is no PNG': is not a PNG"]
