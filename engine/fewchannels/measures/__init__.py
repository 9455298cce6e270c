"""Pure arithmetic on arrays: scores, overlap, ranks, registers, clusters, intervals, draws. No input or output."""

STATISTICS = ("mean_abs", "abs_mean", "max_abs", "rms")
"""Score definitions; :func:`fewchannels.measures.scores.statistics` computes them."""
SELECTIONS = ("top", "bottom", "random", "matched", "all", "pca")
"""Which channels are clustered; the first is the effect, the others are its controls."""
