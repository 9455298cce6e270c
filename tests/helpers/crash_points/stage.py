"""What crash points are tried on: commands, what they begin from, and what they undisturbed come to."""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hub_server import OWNER, environment, hub_server

from crash_points import KILLS, How, Shim
from crash_points.contents import Contents, Seen, contents, faults
from crash_points.forks import Forks
from fewchannels import manifest

SETTINGS = "--num-inference-steps 2 --batch-size 2"
N_SHORT, N_LONG = 6, 11
_REPOSITORY = f"{OWNER}/pushed"


@dataclass(frozen=True)
class Play:
    """A command that changes one place.

    Attributes:
        command: of ``fewchannels``; PLACE is the place, the other words in capitals are what the stage has.
        start: what is in the place before: a name of the stage's, with what is done to it; nothing where empty.
        is_run: whether readers of runs and sweeps can open what is there.
        ends: the command's exit code when nothing disturbs it.
    """

    command: str
    start: str = ""
    prepare: Callable[[Path], object] = lambda place: None
    is_run: bool = True
    ends: int = 0


def _damage(place: Path) -> None:
    (place / "results" / "stability" / "summary.md").write_bytes(b"")
    (place / "activations.zarr" / "rms" / "c.1.0.0.0").unlink()


def _without_effects(place: Path) -> None:
    shutil.rmtree(place / "results")


CAPTURE = f"capture --model MODEL --out PLACE {SETTINGS} --top-k 3 --shard-samples 4 --actors 1 --manifest"
ANALYZE = "PLACE --workers 1"
PLAYS: Mapping[str, Play] = {
    "capture": Play(f"{CAPTURE} SHORT"),
    "grow": Play(f"{CAPTURE} LONG", "run"),
    "merge": Play("runs merge RUN OTHER --out PLACE"),
    "export": Play("runs export RUN --where 'seed = 0' --out PLACE"),
    "parquet": Play("runs export RUN --as parquet --out PLACE", is_run=False),
    "parquet again": Play("runs export RUN --as parquet --out PLACE", "table", is_run=False),
    "compact": Play("runs compact PLACE", "long"),
    "stability": Play(f"analyze stability {ANALYZE}", "run"),
    "concentration": Play(f"analyze concentration {ANALYZE} --k 3", "run"),
    "masks": Play(f"analyze masks {ANALYZE} --from saliency", "run"),
    "given masks": Play(f"analyze masks {ANALYZE} --from manifest", "run"),
    "alignment": Play(f"analyze alignment {ANALYZE} --k 2 --selections top", "masked"),
    "repair": Play("runs verify PLACE --repair", "analyzed", _damage, ends=4),
    "compare": Play("compare RUN LARGER --out PLACE --k 3 --workers 1", is_run=False),
    "probe": Play(f"probe disruption --model MODEL --manifest SHORT --out PLACE {SETTINGS} --k 2 --actors 1"),
    "transport": Play(
        "transport text --model MODEL --manifest SHORT --out PLACE --num-inference-steps 2 --batch-size 4 --pairs 2 "
        "--k 2 --actors 1 --selection top --baselines none"
    ),
    "pull": Play("runs pull REPOSITORY PLACE"),
    "plot": Play("plot PLACE", "sweep", _without_effects),
}


class Stage:
    """A folder with a model, manifests and what plays start from, made when it is asked for.

    Args:
        folder: an empty one.
        model: of the captures.
        shim: that counts; None where something else does.
        environment: of the commands.

    Attributes:
        place: the folder that is looked at.
        url: where commands write: the place, or what is copied into it.
    """

    def __init__(
        self, folder: Path, model: Path, shim: Shim | None, environment: Mapping[str, str] | None = None
    ) -> None:
        self.folder, self.model, self.place = folder, model, folder / "place"
        self.url = str(self.place)
        self.forks = Forks(folder, shim, [self.place], environment)
        mask = folder / "mask.png"
        _write_mask(mask)
        for name, prompts, seed in (("short", N_SHORT, 0), ("long", N_LONG, 0), ("other", N_SHORT, 1)):
            lines = "".join(f"a shape of {i} sides,{mask}\n" for i in range(prompts))
            (folder / f"{name}.csv").write_text(f"prompt,mask\n{lines}", encoding="utf-8")
            manifest.ingest([folder / f"{name}.csv"], folder / f"{name}.parquet", seeds=[seed])

    def close(self) -> None:
        """End its process."""
        self.forks.close()

    def run(self, arguments: Sequence[str], at: int = 0, how: How = How.NOTHING) -> tuple[int, list[str]]:
        """Run a command that is struck, or none; its exit code, and the calls that it made."""
        assert self.forks.armed
        code = self.forks.run(arguments, at, how)
        return code, self.forks.armed.points()

    def arguments(self, command: str) -> list[str]:
        """A play's command with its words in capitals filled in."""
        known = {"PLACE": self.url, "MODEL": self.model}
        known |= {name: self.folder / f"{name.lower()}.parquet" for name in ("SHORT", "LONG")}
        named = {"RUN": "run", "OTHER": "second", "LARGER": "long"}
        if "REPOSITORY" in command:
            self.start("pushed")
            known["REPOSITORY"] = _REPOSITORY
        return [str(known.get(w) or (self.start(named[w]) if w in named else w)) for w in shlex.split(command)]

    def start(self, name: str) -> Path:
        """The folder of something that plays start from."""
        path = self.folder / "starts" / name
        if not path.exists():
            recipes: dict[str, tuple[str, str]] = {
                "run": ("", f"{CAPTURE} SHORT"),
                "long": ("", f"{CAPTURE} LONG"),
                "second": ("", f"{CAPTURE} {self.folder / 'other.parquet'}"),
                "table": ("", PLAYS["parquet"].command),
                "masked": ("run", PLAYS["masks"].command),
                "analyzed": ("run", PLAYS["stability"].command),
                "pushed": ("masked", f"runs push PLACE {_REPOSITORY}"),
                "sweep": ("", PLAYS["probe"].command),
            }
            base, command = recipes[name]
            arguments = self.arguments(command)  # what it needs is made before, in the same place
            self.put(base)
            assert self.run(arguments)[0] == 0, self.forks.said()
            shutil.copytree(self.place, path)
        return path

    def put(self, name: str) -> None:
        """Put the place as it is before a play."""
        source = self.start(name) if name else None
        shutil.rmtree(self.place, ignore_errors=True)
        if source:
            shutil.copytree(source, self.place)


class Act:
    """One play on a stage: undisturbed once, then struck at points.

    Attributes:
        points: the calls of the undisturbed command.
    """

    def __init__(self, stage: Stage, play: Play) -> None:
        self.stage, self.play = stage, play
        self._arguments = stage.arguments(play.command)
        self._begin()
        self.old = self._seen()
        code, self.points = stage.run(self._arguments)
        assert code == play.ends, stage.forks.said()
        self.new, self.end = self._seen(), contents(stage.place)
        self._known: dict[int, list[str]] = {}

    def strike(self, at: int, how: How) -> list[str]:
        """Strike at a point, look, run the command again, and compare: all that is wrong, each with the point."""
        self._begin()
        code, calls = self.stage.run(self._arguments, at, how)
        said = self.stage.forks.said()
        point = f"{how.name} at {at} ({calls[at - 1] if at <= len(calls) else 'beyond the last'})"
        wrong = []
        if how in KILLS and at <= len(calls) and code != -9:
            wrong.append(f"exit {code}, not killed")
        if "Traceback" in said or (how not in KILLS and code not in (0, 4, self.play.ends)):
            wrong.append(f"exit {code}: {said[-300:]}")
        return [f"{point}: {each}" for each in wrong + self.aftermath()]

    def aftermath(self) -> list[str]:
        """What readers find wrong, and what the same command, run again, leaves wrong. Of one state, found once."""
        state = frozenset((_unnamed(key), repr(each)) for key, each in contents(self.stage.place).items())
        known = hash(frozenset((key, "" if "/." in f"/{key}" else each) for key, each in state))
        if known not in self._known:
            self._known[known] = [*self._faults_now(), *self._after_again()]
        return self._known[known]

    def _faults_now(self) -> list[str]:
        try:
            return list(faults(self._seen(), self.old, self.new))
        except Exception as error:  # a reader that cannot read is a finding
            return [f"a reader fails: {type(error).__name__}: {error}"]

    def _after_again(self) -> list[str]:
        code, _ = self.stage.run(self._arguments)
        if code not in (self.play.ends, 0):
            return [f"the second time it ends with {code}: {self.stage.forks.said()[-300:]}"]
        found = contents(self.stage.place)
        return [f"{key} is {_differs(found, self.end, key)}" for key in sorted(_unlike(found, self.end))]

    def _begin(self) -> None:
        self.stage.put(self.play.start)
        self.play.prepare(self.stage.place)

    def _seen(self) -> Seen:
        return Seen(self.stage.place if self.play.is_run else self.stage.folder / "nowhere")


def _unnamed(key: str) -> str:
    """A file's name without the process that writes it."""
    return re.sub(r"\.[\w-]+-\d+-[0-9a-f]+\.tmp$", ".tmp", re.sub(r"(changes/\w+)\.[0-9a-f]{16}/", r"\1/", key))


def _unlike(found: Contents, expected: Contents) -> set[str]:
    return {key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)}


def _differs(found: Contents, expected: Contents, key: str) -> str:
    return "left over" if key not in expected else "missing" if key not in found else "another"


def _write_mask(path: Path) -> None:
    from PIL import Image

    mask = Image.new("L", (16, 16))
    mask.paste(255, (4, 4, 12, 12))
    mask.save(path)


@contextmanager
def stage(folder: Path, model: Path, shim: Shim) -> Iterator[Stage]:
    """A stage, for as long as the context lasts."""
    with hub_server() as hub:
        made = Stage(folder, model, shim, environment(hub) | {"HF_HOME": str(folder / "hf")})
        try:
            yield made
        finally:
            made.close()
