"""The score definitions, by name; :func:`fewchannels.measures.scores.statistics` computes them."""

STATISTICS = ("mean_abs", "abs_mean", "max_abs", "rms")
