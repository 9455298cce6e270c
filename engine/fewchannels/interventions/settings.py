"""Settings of a sweep: from options and from a YAML file, with their ranges."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fewchannels.errors import InputError, unknown
from fewchannels.interventions.conditions import Grid
from fewchannels.measures import STATISTICS
from fewchannels.models.generation import Generation
from fewchannels.settings.file import read_yaml, settled
from fewchannels.settings.ranges import MOST_INDEX, MOST_SEED, Text, check, several, text, within

KINDS = ("disruption", "text", "image")
NOISE = ("shared", "separate")
MOST_PAIRS = 1_000_000
TRANSPORT: Mapping[str, Any] = {
    "actions": ("transport",),
    "selections": ("top", "bottom", "random", "matched", "scaled", "all"),
    "scores_from": ("source",),
    "trials": 1,
}
"""Fields of a grid of patching, where a sweep leaves them open."""
_GRIDS = "grids"
_SEED = within(0, MOST_SEED, "Random seed of the pairs.")  # the class below has a field called `within`


@dataclass(frozen=True)
class PairRule:
    """Rule for choosing pairs.

    Attributes:
        n: number of pairs; None takes all that the rule allows.
        within: columns of the manifest in which target and source must agree.
        across: columns in which they must differ.
        noise: ``shared``: the source starts from the target's noise; ``separate``: from its own.
        seed: random seed of the draw.
    """

    n: int | None = field(default=None, metadata=within(1, MOST_PAIRS, "Number of random pairs, or all."))
    within: tuple[str, ...] = field(
        default=(),
        metadata=several(Text(), "Column in which target and source must agree; repeatable.", least=0, repeats=True),
    )
    across: tuple[str, ...] = field(
        default=(),
        metadata=several(Text(), "Column in which target and source must differ; repeatable.", least=0, repeats=True),
    )
    noise: str = field(
        default="shared", metadata=text("Initial noise of the source: shared (the target's), or separate (its own).")
    )
    seed: int = field(default=0, metadata=_SEED)

    def __post_init__(self) -> None:
        check(self)
        if self.noise not in NOISE:
            raise unknown("noise", self.noise, NOISE)


@dataclass(frozen=True)
class SweepSettings:
    """Settings of a sweep.

    Attributes:
        kind: one of :data:`KINDS`.
        generation: settings of generation.
        grids: grids of conditions.
        protocol: name of the published protocol that defines the grids; None for the user's own grids.
        score: the statistic that ranks channels.
        cluster_k: top channels by which tokens are clustered, for conditions that select tokens.
        channels_run: run whose mean scores rank channels, for conditions that use it.
        pairs: rule for pairing targets and sources.
        pairs_file: table of pairs, instead of the rule.
        references: manifest of reference images, for kind ``image``.
        metrics: learned metrics, such as ``clip=FOLDER``.
    """

    kind: str
    generation: Generation
    grids: tuple[Grid, ...]
    protocol: str | None = None
    score: str = field(
        default="mean_abs", metadata=text("Statistic that ranks channels: mean_abs, abs_mean, max_abs or rms.")
    )
    cluster_k: int = field(
        default=12,
        metadata=within(1, MOST_INDEX, "Number of top channels that cluster the tokens, for --tokens foreground."),
    )
    channels_run: str | None = field(default=None, metadata=text("Captured run whose scores rank channels."))
    pairs: PairRule = field(default_factory=PairRule)
    pairs_file: Path | None = None
    references: Path | None = None
    metrics: tuple[str, ...] = field(
        default=(),
        metadata=several(
            Text(),
            "Learned metric: clip=, dino=, pickscore= or aesthetic= a FOLDER or hub id, or lpips=alex; repeatable.",
            least=0,
            repeats=True,
        ),
    )

    def __post_init__(self) -> None:
        check(self)
        if self.kind not in KINDS:
            raise unknown("kind of sweep", self.kind, KINDS)
        if self.score not in STATISTICS:
            raise unknown("score", self.score, STATISTICS)
        if not self.grids:
            raise InputError("grids is empty. Pass at least one grid.")
        own = replace(self.pairs, noise=PairRule.noise)
        if self.kind == "disruption" and (self.pairs != PairRule() or self.pairs_file is not None):
            raise InputError("pairs were given, but a disruption has no pairs. Omit them.")
        if self.kind == "image" and self.pairs_file is not None:
            raise InputError("pairs_file was given, but pairs with images are drawn at random, or all. Omit it.")
        if self.pairs_file is not None and own != PairRule():
            raise InputError("both pairs_file and a rule for random pairs were given. Omit one of them.")
        if self.kind != "image" and self.references is not None:
            raise InputError(f"references was given, but a sweep of kind {self.kind!r} has no references. Omit it.")


def unused(grid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields of a grid that none of its selections or actions uses, each with the reason.

    Args:
        grid: fields of the grid, not validated yet.
    """
    selections = grid.get("selections", Grid.selections)
    chosen, listed = set(selections), ",".join(selections)
    if not chosen & {"random", "redrawn", "scaled"}:
        yield "trials", f"the selection {listed} is not random"
    if chosen <= {"all", "listed"}:
        yield "k", f"the selection {listed} fixes the number of channels"
    if "listed" not in chosen:
        yield "channels", f"the selection is {listed}; only listed uses channel indices"
    if not chosen & {"top", "bottom", "matched", "scaled"}:
        yield "scores_from", f"the selection {listed} does not use scores"
    if all(action.startswith("scale:") for action in grid.get("actions", ("transport",))):
        yield "amounts", "scale:F already sets the strength"


def with_baselines(grids: Sequence[Grid], baselines: Sequence[str]) -> tuple[Grid, ...]:
    """Grids of patching, and their baselines: blends at the strengths of the first grid, for the whole image.

    Args:
        grids: grids of patching.
        baselines: values of :data:`fewchannels.interventions.conditions.BASELINES`; none for no baselines.
    """
    if not baselines:
        return tuple(grids)
    blends = replace(grids[0], actions=tuple(baselines), selections=("all",), layers=("all",), steps=("last",))
    return (*grids, replace(blends, tokens=("all",), placements=("same",)))


def generation(file: Path | None, given: dict[str, Any]) -> Generation:
    """Settings of generation: options first, then the file's, then the defaults.

    Raises:
        InputError: an unknown setting, a value of the wrong kind, or one out of its range.
    """
    return Generation.from_sources(file, given, besides=(_GRIDS,))


def grids_of(file: Path | None) -> tuple[Grid, ...]:
    """The file's grids; none if it has none.

    Raises:
        InputError: an unknown setting, a value of the wrong kind, or one out of its range.
    """
    listed = read_yaml(file).get(_GRIDS, [])
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise InputError(f"grids in {str(file)!r} must be a list of mappings, such as '- k: [4, 8]'.")
    return tuple(Grid(**settled(Grid, each, f"a grid of {str(file)!r}")) for each in listed)
