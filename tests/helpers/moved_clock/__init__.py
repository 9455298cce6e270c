"""A wall clock that jumps while a process runs: a small library in C that is preloaded (``clock.c``)."""

from dataclasses import dataclass
from pathlib import Path

from preload import compiled

YEAR_S = 365 * 86_400


@dataclass(frozen=True)
class MovedClock:
    """A clock for processes, built.

    Attributes:
        library: to preload.
        offset: the file that says by how much the clock is moved.
    """

    library: Path
    offset: Path

    def move(self, seconds: int) -> None:
        """Move the clock of every process that has it, from now on; 0 puts it right."""
        beside = self.offset.with_suffix(".new")
        beside.write_text(str(seconds), encoding="ascii")
        beside.replace(self.offset)

    def environment(self) -> dict[str, str]:
        """What a process needs to have this clock."""
        return {"LD_PRELOAD": str(self.library), "MOVED_CLOCK": str(self.offset)}


def build(folder: Path) -> MovedClock | None:
    """Compile the library into a folder; None where that cannot be done."""
    library = compiled(Path(__file__).with_name("clock.c"), folder)
    if library is None:
        return None
    clock = MovedClock(library, folder / "offset")
    clock.move(0)
    return clock
