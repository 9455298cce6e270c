"""Settings of each analysis and of comparisons, with their ranges."""

from dataclasses import dataclass, field

from fewchannels.errors import unknown
from fewchannels.measures import KMEANS, SELECTIONS, STARTS, STATISTICS
from fewchannels.settings.ranges import MOST_INDEX, MOST_SEED, Text, Whole, check, flag, name, several, text, within

RULES = ("ratio", "mad")
REGISTERS = ("keep", "drop", "clip")
_SCORE = text("mean_abs, abs_mean, max_abs or rms: ranks channels.")
_SEED = within(0, MOST_SEED, "Random seed.")
_LARGE = 1e9


@dataclass(frozen=True)
class StabilitySettings:
    """Settings of the analysis ``stability``.

    Attributes:
        ks: sizes of the top-k sets.
        score: the statistic that ranks channels; its agreement with the other statistics is computed.
        rank_pairs: number of random pairs of samples, for each kind, whose rankings of all channels are compared.
        persistence: persistence p of rank-biased overlap.
        by: column of the manifest with categories to compare within; None for none.
        seed: random seed for pairs of samples and for the random orders of SPARK's rule.
    """

    ks: tuple[int, ...] = field(
        default=(4, 8, 12), metadata=several(Whole(1, MOST_INDEX), "Sizes of the top-k sets, comma-separated.")
    )
    score: str = field(default="mean_abs", metadata=_SCORE)
    rank_pairs: int = field(
        default=64, metadata=within(2, 100_000, "Random pairs of samples whose rankings of all channels are compared.")
    )
    persistence: float = field(
        default=0.9, metadata=within(0.0, 1.0, "Persistence p of rank-biased overlap.", exclusive=True)
    )
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
        ks: numbers of top channels whose share of the squared values is reported.
        k: number of top channels that are removed from token norms, and tested for being explained by registers.
        score: the statistic that ranks channels.
        threshold: threshold of the channel test, as a multiple of the lower median score.
        absolute: absolute threshold of the scalar test; 100 in Sun et al. 2024.
        relative: threshold of the scalar test as a multiple of the lower median ``|x|``; 1000 in Sun et al. 2024.
        registers: rule for outlier tokens: ``ratio`` to the lower median norm, or ``mad``, robust standard deviations.
        register_threshold: threshold of that rule.
    """

    ks: tuple[int, ...] = field(
        default=(1, 2, 4, 8, 12),
        metadata=several(Whole(1, MOST_INDEX), "Numbers of top channels whose energy share is reported."),
    )
    k: int = field(default=8, metadata=within(1, MOST_INDEX, "Number of top channels to remove from token norms."))
    score: str = field(default="mean_abs", metadata=_SCORE)
    threshold: float = field(
        default=10.0,
        metadata=within(
            0.0, _LARGE, "Threshold of the channel test, as a multiple of the median score.", exclusive=True
        ),
    )
    absolute: float = field(
        default=100.0, metadata=within(0.0, _LARGE, "Absolute threshold of the scalar test.", exclusive=True)
    )
    relative: float = field(
        default=1000.0,
        metadata=within(
            0.0, _LARGE, "Relative threshold of the scalar test, as a multiple of the median |x|.", exclusive=True
        ),
    )
    registers: str = field(default="ratio", metadata=text("Rule for register tokens (outlier norms): ratio or mad."))
    register_threshold: float = field(
        default=4.0, metadata=within(0.0, _LARGE, "Threshold of the register rule.", exclusive=True)
    )

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
        k: number of channels in a selection; 12 in the localization figure of arXiv 2605.13974.
        selections: selections of channels to cluster, from :data:`fewchannels.measures.SELECTIONS`.
        trials: random draws of channels per sample, step and layer.
        n_clusters: values of K.
        kmeans: method of K-means, one of :data:`fewchannels.measures.KMEANS`: ``exchange``, or ``sklearn``, which with
            one start is scikit-learn's default, the one that published code uses.
        starts: number of k-means++ initializations.
        registers: handling of tokens with outlier norms: keep them, exclude them from clustering (``drop``), or clip
            every channel at its most extreme tokens (``clip``).
        register_threshold: threshold of ``drop``, as a multiple of the lower median of a cell's token norms.
        clip: share of tokens that ``clip`` cuts at either end.
        masks: label of the mask result.
        seed: random seed of initializations and of random channels.
    """

    k: int = field(default=12, metadata=within(1, MOST_INDEX, "Number of channels in a selection."))
    selections: tuple[str, ...] = field(
        default=SELECTIONS,
        metadata=several(Text(), "Channels to cluster: top, bottom, random, matched, all, pca; comma-separated."),
    )
    trials: int = field(default=5, metadata=within(1, 1000, "Random draws of channels per sample, step and layer."))
    n_clusters: tuple[int, ...] = field(
        default=(2,), metadata=several(Whole(2, 6), "Numbers of clusters K, comma-separated.")
    )
    kmeans: str = field(
        default="exchange",
        metadata=text("K-means variant: exchange, or sklearn (with --starts 1, scikit-learn's default)."),
    )
    starts: int = field(default=STARTS, metadata=within(1, 1000, "Number of k-means++ initializations."))
    registers: str = field(
        default="keep", metadata=text("Register tokens: keep, drop, or clip every channel at its most extreme tokens.")
    )
    register_threshold: float = field(
        default=4.0,
        metadata=within(
            0.0, _LARGE, "Threshold of --registers drop, as a multiple of the median token norm.", exclusive=True
        ),
    )
    clip: float = field(
        default=0.01,
        metadata=within(0.0, 0.5, "Share of tokens that --registers clip cuts at either end.", exclusive=True),
    )
    masks: str = field(default="masks", metadata=name("Label of the mask result to compare with."))
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
        labels: labels of the subject, for a model that predicts labels.
        revision: branch, tag or commit of a hub model.
        trust_remote_code: whether Python code that comes with the model may run on this machine.
        side: input side of a model with its own code, in pixels.
    """

    source: str = field(metadata=text("Source of the masks."))
    labels: tuple[str, ...] = field(
        default=(),
        metadata=several(
            Text(), "Labels of the subject, for a segmentation model with labels; comma-separated.", least=0
        ),
    )
    revision: str | None = field(default=None, metadata=text("Branch, tag or commit of a hub id."))
    trust_remote_code: bool = field(default=False, metadata=flag("Allow Python code that comes with the model to run."))
    side: int | None = field(
        default=None, metadata=within(16, 4096, "Input side in pixels, for a model with its own code.")
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Criteria:
    """Criteria by which two runs are compared.

    Attributes:
        score: the statistic that ranks channels, in both.
        k: size of the sets of top channels, in both.
    """

    score: str = field(default="mean_abs", metadata=_SCORE)
    k: int = field(default=12, metadata=within(1, MOST_INDEX, "Size of the top-k sets."))

    def __post_init__(self) -> None:
        check(self)
        if self.score not in STATISTICS:
            raise unknown("score", self.score, STATISTICS)
