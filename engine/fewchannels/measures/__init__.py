"""Pure arithmetic on arrays: scores, overlap, ranks, registers, clusters, intervals, draws. No input or output.

Arrays go in and arrays come out, in NumPy or PyTorch, so that a notebook can use them without a run. Captures, analyses
and interventions take their numbers from here.

Imported by others: itself, coverage, draws, intervals, localization, massive, means, overlap, ranks, registers, scores,
    stopping.
Imports: errors.
"""

STATISTICS = ("mean_abs", "abs_mean", "max_abs", "rms")
"""Score definitions; :func:`fewchannels.measures.scores.statistics` computes them."""
SELECTIONS = ("top", "bottom", "random", "matched", "all", "pca")
"""Which channels are clustered; the first is the effect, the others are its controls."""
KMEANS = ("exchange", "sklearn")
"""How K-means ends; :func:`fewchannels.measures.localization.localize` says what each does."""
STARTS = 16
"""First centers that K-means is run from by default: two of them find the lowest inertia of nearly every cell."""
