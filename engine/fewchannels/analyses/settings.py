"""What each analysis and a comparison can be asked, with their ranges; the arithmetic is in their own packages."""

from dataclasses import dataclass, field

from fewchannels.errors import unknown
from fewchannels.measures import KMEANS, SELECTIONS, STARTS, STATISTICS
from fewchannels.settings.ranges import MOST_INDEX, MOST_SEED, Text, Whole, check, flag, name, several, text, within

RULES = ("ratio", "mad")
REGISTERS = ("keep", "drop", "clip")
_SCORE = text("mean_abs, abs_mean, max_abs or rms: ranks channels.")
_SEED = within(0, MOST_SEED, "Of all that is drawn at random.")
_LARGE = 1e9


@dataclass(frozen=True)
class StabilitySettings:
    """Settings of the analysis ``stability``.

    Attributes:
        ks: sizes of the top-k sets.
        score: the statistic that ranks channels; agreement of definitions is with the others.
        rank_pairs: pairs of samples, drawn at random for each kind, whose rankings of all channels are compared.
        persistence: of rank-biased overlap.
        by: column of the manifest whose categories are compared within; None for none.
        seed: of the draw of pairs and of the orders that SPARK's rule is tried in.
    """

    ks: tuple[int, ...] = field(
        default=(4, 8, 12), metadata=several(Whole(1, MOST_INDEX), "Sizes of the top sets, comma-separated.")
    )
    score: str = field(default="mean_abs", metadata=_SCORE)
    rank_pairs: int = field(
        default=64, metadata=within(2, 100_000, "Pairs drawn to compare the rankings of all channels.")
    )
    persistence: float = field(default=0.9, metadata=within(0.0, 1.0, "Of rank-biased overlap.", exclusive=True))
    by: str | None = field(default=None, metadata=text("Column of the manifest with categories to compare within."))
    seed: int = field(default=0, metadata=_SEED)

    def __post_init__(self) -> None:
        check(self)
        if self.score not in STATISTICS:
            raise unknown("score", self.score, STATISTICS)


@dataclass(frozen=True)
class ConcentrationSettings:
    """Settings of the analysis ``concentration``.

    Attributes:
        ks: numbers of top channels whose share of the squared values is wanted.
        k: the massive channels that are taken out of token norms, and asked whether registers explain them.
        score: the statistic that ranks channels.
        threshold: of the channel test, times the lower median score.
        absolute: of the scalar test; Sun et al. 2024 take 100.
        relative: of the scalar test, times the lower median ``|x|``; Sun et al. 2024 take 1000.
        registers: rule for outlying tokens: ``ratio`` to the lower median norm, or ``mad``, robust standard deviations.
        register_threshold: of the rule.
    """

    ks: tuple[int, ...] = field(
        default=(1, 2, 4, 8, 12),
        metadata=several(Whole(1, MOST_INDEX), "Numbers of top channels whose share of energy is told."),
    )
    k: int = field(default=8, metadata=within(1, MOST_INDEX, "Massive channels that are taken out of token norms."))
    score: str = field(default="mean_abs", metadata=_SCORE)
    threshold: float = field(
        default=10.0, metadata=within(0.0, _LARGE, "Of the channel test, times the median score.", exclusive=True)
    )
    absolute: float = field(default=100.0, metadata=within(0.0, _LARGE, "Of the scalar test.", exclusive=True))
    relative: float = field(
        default=1000.0, metadata=within(0.0, _LARGE, "Of the scalar test, times the median |x|.", exclusive=True)
    )
    registers: str = field(default="ratio", metadata=text("Rule for outlying tokens: ratio or mad."))
    register_threshold: float = field(default=4.0, metadata=within(0.0, _LARGE, "Of that rule.", exclusive=True))

    def __post_init__(self) -> None:
        check(self)
        if self.score not in STATISTICS:
            raise unknown("score", self.score, STATISTICS)
        if self.registers not in RULES:
            raise unknown("rule for registers", self.registers, RULES)


@dataclass(frozen=True)
class AlignmentSettings:
    """Settings of the analysis ``alignment``.

    Attributes:
        k: channels of a selection; 12 in the localization figure of arXiv 2605.13974.
        selections: which channels are clustered, of :data:`fewchannels.measures.SELECTIONS`.
        trials: how often random channels are drawn for each sample, step and layer.
        n_clusters: values of K.
        kmeans: how K-means ends, of :data:`fewchannels.measures.KMEANS`: ``exchange``, or ``sklearn``, which with one
            start is scikit-learn's default and so what published code uses.
        starts: first centers that K-means is run from, by k-means++.
        registers: tokens of outlying norm are kept; have no say in clusters (``drop``); or every channel is cut at its
            outermost tokens (``clip``).
        register_threshold: of ``drop``: times the lower median of a cell's token norms.
        clip: of ``clip``: share of tokens at either end.
        masks: label of the masks' result.
        seed: of starts and of random channels.
    """

    k: int = field(default=12, metadata=within(1, MOST_INDEX, "Channels of a selection."))
    selections: tuple[str, ...] = field(
        default=SELECTIONS, metadata=several(Text(), "Of top, bottom, random, matched, all, pca.")
    )
    trials: int = field(
        default=5, metadata=within(1, 1000, "Draws of random channels for each sample, step and layer.")
    )
    n_clusters: tuple[int, ...] = field(default=(2,), metadata=several(Whole(2, 6), "Values of K, comma-separated."))
    kmeans: str = field(
        default="exchange",
        metadata=text("Ends of K-means: exchange, or sklearn, with --starts 1 scikit-learn's default."),
    )
    starts: int = field(
        default=STARTS, metadata=within(1, 1000, "First centers that K-means is run from, by k-means++.")
    )
    registers: str = field(
        default="keep", metadata=text("Tokens of outlying norm: keep, drop, or clip every channel's outermost tokens.")
    )
    register_threshold: float = field(
        default=4.0, metadata=within(0.0, _LARGE, "Of drop: times the median token norm.", exclusive=True)
    )
    clip: float = field(
        default=0.01, metadata=within(0.0, 0.5, "Of clip: share of tokens at either end.", exclusive=True)
    )
    masks: str = field(default="masks", metadata=name("Label of the masks."))
    seed: int = field(default=0, metadata=_SEED)

    def __post_init__(self) -> None:
        check(self)
        for word in self.selections:
            if word not in SELECTIONS:
                raise unknown("selection", word, SELECTIONS)
        if self.kmeans not in KMEANS:
            raise unknown("kmeans", self.kmeans, KMEANS)
        if self.registers not in REGISTERS:
            raise unknown("registers", self.registers, REGISTERS)


@dataclass(frozen=True)
class MaskSettings:
    """Settings of the analysis ``masks``.

    Attributes:
        source: ``manifest``, ``demo``, ``saliency``, or a segmentation model's folder or hub id.
        labels: of a model that labels, which are the subject.
        revision: of a hub model.
        trust_remote_code: whether Python code that comes with the model may run on this machine.
        side: at which a model with its own code looks at images, pixels.
    """

    source: str = field(metadata=text("Where masks come from."))
    labels: tuple[str, ...] = field(
        default=(),
        metadata=several(Text(), "Labels of a labelling model that are the subject, comma-separated.", least=0),
    )
    revision: str | None = field(default=None, metadata=text("Of a hub id."))
    trust_remote_code: bool = field(default=False, metadata=flag("Let Python code that comes with the model run."))
    side: int | None = field(
        default=None, metadata=within(16, 4096, "Pixels at which a model with its own code looks.")
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Criteria:
    """By what two runs are compared.

    Attributes:
        score: the statistic that ranks channels, in both.
        k: size of the sets of top channels, in both.
    """

    score: str = field(default="mean_abs", metadata=_SCORE)
    k: int = field(default=12, metadata=within(1, MOST_INDEX, "Size of the sets of top channels."))

    def __post_init__(self) -> None:
        check(self)
        if self.score not in STATISTICS:
            raise unknown("score", self.score, STATISTICS)
