"""Published protocols by name: their published and unpublished settings, and our choices for the latter."""

from dataclasses import dataclass

from fewchannels.errors import InputError, unknown
from fewchannels.interventions.conditions import Grid


@dataclass(frozen=True)
class Protocol:
    """A published intervention.

    Attributes:
        source: publication.
        published: published settings.
        unpublished: settings that are not published, and our choices.
        grids: grids of its sweep.
        needs_run: whether channels are ranked by a capture.
    """

    source: str
    published: str
    unpublished: str
    grids: tuple[Grid, ...]
    needs_run: bool = False


def protocol_of(name: str, channels_run: str | None) -> "Protocol":
    """A protocol by its name.

    Args:
        name: a name of :data:`PROTOCOLS`.
        channels_run: captured run that ranks the channels; None without one.

    Raises:
        InputError: there is no such protocol, or it needs a run.
    """
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    if PROTOCOLS[name].needs_run and channels_run is None:
        raise InputError(f"protocol {name} takes fixed channels from a captured run; pass --channels-from RUN.")
    return PROTOCOLS[name]


PROTOCOLS = {
    "turri2026": Protocol(
        source="Turri et al. 2026, arXiv 2605.13974",
        published=(
            "zero-ablation of the top-k channels of every block's image stream, against the same number of channels "
            "with the lowest statistic; compared with the image of the same seed"
        ),
        unpublished=(
            "k (here 12, from its localization figure), layers and steps (here all), whether channels are chosen per "
            "sample (here those of its unedited trajectory at that layer and step); the controls random, redrawn, "
            "matched and scaled are additions"
        ),
        grids=(
            Grid(
                actions=("zero",),
                selections=("top", "bottom", "random", "redrawn", "matched", "scaled"),
                k=(12,),
            ),
        ),
    ),
    "gan2025": Protocol(
        source="Gan et al. 2025, arXiv 2510.11538",
        published=(
            "zero-ablation of one or two fixed massive dimensions at one layer's output; detail is lost and meaning "
            "preserved (CLIP win rate 0.512, aesthetics 0.078)"
        ),
        unpublished=(
            "which layer (here each one in turn), whether in every step (here all); the fixed dimensions are those of "
            "largest mean score in a capture; the controls are additions"
        ),
        grids=(
            Grid(
                actions=("zero",),
                selections=("top", "bottom", "random", "matched", "scaled"),
                k=(1, 2),
                trials=1,
                scores_from=("run",),
                layers=("each",),
            ),
        ),
        needs_run=True,
    ),
}
