"""Pure arithmetic on arrays: scores, overlap, ranks, registers, clusters, intervals, draws. No input or output.

All functions map arrays to arrays, in NumPy or PyTorch, so a notebook can use them without a run. Captures, analyses
and interventions use them for all their numbers.

Imported by others: itself, coverage, draws, intervals, kernels, localization, massive, means, overlap, ranks,
    registers, scores, stopping.
Imports: errors.
"""

STATISTICS = ("mean_abs", "abs_mean", "max_abs", "rms")
"""Score definitions; :func:`fewchannels.measures.scores.statistics` computes them."""
SELECTIONS = ("top", "bottom", "random", "matched", "all", "pca")
"""Selections of channels to cluster; the first is the effect, the others are its controls."""
KMEANS = ("exchange", "sklearn")
"""Methods of K-means; :func:`fewchannels.measures.localization.localize` describes each."""
STARTS = 16
"""Default number of K-means starts: in nearly every cell, at least two of them reach the lowest inertia."""
