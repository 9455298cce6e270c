"""Any file of a run, a sweep or a comparison may be damaged or forged: every command that reads it gives the same
answer as before, or says what is wrong and where. Never a traceback.

A random part is tried for as long as there is time; ``pytest -m exhaustive`` tries much more.
"""

import random
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from command import command
from mutations import mutate
from two_runs import ROWS, captured

from fewchannels import manifest
from fewchannels.captures.config import CaptureConfig
from fewchannels.interventions.begin import begin_sweep
from fewchannels.interventions.conditions import Grid
from fewchannels.interventions.effects.measure import end_sweep
from fewchannels.interventions.sweep import SweepSettings, prepare_sweep
from fewchannels.interventions.worker import SweepWorker

pytestmark = pytest.mark.usefixtures("undrawn")

SECONDS = 20.0
MORE = 150

# What reads each place; `{out}` is a new place for what is made of it.
COMMANDS = {
    "RUN": [
        "runs show {place} --json",
        "runs verify {place} --json",
        "query {place} massive_channels --json",
        "sql {place} --json|select * exclude (image) from samples join cells using (sample) order by all",
        "sql {place} --json|select count(*) as n, count(image) as images from samples",
        "sql {place} --json|select * exclude (seconds) from tasks order by task",
        "sql {place} --json|select * from stability_pairs order by all",
        "analyze concentration {place} --k 2 --workers 1 --label again --json",
        "analyze stability {place} --workers 1 --k 2 --json --replace",
        "runs export {place} --out {out} --json",
        "runs export {place} --as parquet --out {out} --json",
        "report {place} --json -o {out}.md",
        "compare {place} {other} --k 2 --workers 1 --out {out} --json",
    ],
    "SWEEP": [
        "runs show {place} --json",
        "runs verify {place} --json",
        "sql {place} --json|select * exclude (image, seconds) from edits order by all",
        "sql {place} --json|select * from effects_means order by all",
        "plot {place} --json",
        "report {place} --json -o {out}.md",
    ],
    "COMPARISON": [
        "sql {place} --json|select * from profiles order by all",
        "sql {place} --json|select * from samples order by all",
        "report {place} --json -o {out}.md",
    ],
}
CHANGING = re.compile(r'"(seconds|bytes|files|seconds_per_sample|n_bytes|n_objects|out|created)": [^,}\]]*')


@dataclass
class Places:
    """Whole places, a copy of each that may be damaged, and what every command answers where nothing is."""

    folder: Path
    answers: dict[tuple[str, str], str]

    def ask(self, name: str, line: str) -> tuple[int, str, str]:
        out = self.folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.with_suffix(".md").unlink(missing_ok=True)
        options, _, text = line.partition("|")
        filled = options.format(place=self.folder / "copy" / name, other=self.folder / "whole" / "OTHER", out=out)
        answer = command(*filled.split(), *([text] if text else []))
        page = out.with_suffix(".md")
        written = page.read_text(encoding="utf-8") if page.exists() else ""
        return answer.code, CHANGING.sub("", answer.stdout), answer.stderr + answer.stdout + written

    def fresh(self, name: str) -> Path:
        shutil.rmtree(self.folder / "copy" / name, ignore_errors=True)
        return Path(shutil.copytree(self.folder / "whole" / name, self.folder / "copy" / name))

    def files(self, name: str) -> list[Path]:
        folder = self.folder / "whole" / name
        files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
        return sorted(path.relative_to(folder) for path in files)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Places:
    folder = tmp_path_factory.mktemp("mutations")
    whole = folder / "whole"
    whole.mkdir()
    for name, settings in (("RUN", {}), ("OTHER", {"guidance_scale": 2.0})):
        captured(whole, name, tiny_model, ROWS, **settings)
    assert command("runs", "compact", whole / "RUN").code == 0
    for words in (["concentration", "--k", "2"], ["stability", "--k", "2"]):
        done = command("analyze", words[0], whole / "RUN", *words[1:], "--workers", "1")
        assert done.code == 0, done.stderr
    made = command("compare", whole / "RUN", whole / "OTHER", "--k", "2", "--workers", 1, "--out", whole / "COMPARISON")
    assert made.code == 0, made.stderr
    manifest.ingest(["demo:2"], whole / "sweep.parquet", seeds=[0])
    generation = CaptureConfig(model=str(tiny_model), num_inference_steps=2, batch_size=8)
    grid = Grid(("zero",), (1.0,), ("top", "random"), k=(2, 4))
    prepared = prepare_sweep(whole / "sweep.parquet", whole / "SWEEP", SweepSettings("disruption", generation, (grid,)))
    begin_sweep(prepared)
    worker = SweepWorker(prepared.sweep, 1)
    for task in range(prepared.sweep.n_tasks):
        worker(task)
    end_sweep(prepared.sweep.storage, prepared.sweep.metrics)
    made_places = Places(folder, {})
    for name, lines in COMMANDS.items():
        for line in lines:
            made_places.fresh(name)
            code, answer, said = made_places.ask(name, line)
            assert code == 0, said
            made_places.answers[name, line] = answer
    return made_places


def tried(places: Places, chance: random.Random) -> list[str]:
    """Change one file in one way, ask one command of it; what was wrong with how it ended."""
    name, line = chance.choice(sorted(places.answers))
    folder = places.fresh(name)
    kinds: dict[str, list[Path]] = {}
    for path in places.files(name):
        kinds.setdefault("/".join((*path.parts[:-1], path.suffix)), []).append(path)
    path = chance.choice(kinds[chance.choice(sorted(kinds))])
    how = mutate(folder / path, chance)
    try:
        code, answer, said = places.ask(name, line)
    except Exception as error:
        return [f"{line}: {path}: {how}: {type(error).__name__}: {str(error)[:200]}"]
    if code not in (0, 2, 3, 4) or (code and not said.strip()):
        return [f"{line}: {path}: {how}: exit {code}: {said[-200:]}"]
    if code == 0 and answer != places.answers[name, line] and f"{path} is missing" not in said:
        return [f"{line}: {path}: {how}: another answer"]
    return []


def test_a_damaged_or_forged_file_changes_no_answer_without_a_word(places: Places) -> None:
    seed = random.randrange(2**32)
    print(f"drawn with seed {seed}")  # noqa: T201
    chance, deadline, wrong = random.Random(seed), time.monotonic() + SECONDS, list[str]()
    while time.monotonic() < deadline:
        wrong += tried(places, chance)
    assert not wrong, "\n".join(wrong)


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(24))
def test_many_damaged_or_forged_files_change_no_answer_without_a_word(places: Places, seed: int) -> None:
    chance = random.Random(seed)
    wrong = [each for _ in range(MORE) for each in tried(places, chance)]
    assert not wrong, f"{len(wrong)} of {MORE}:\n" + "\n".join(wrong)
