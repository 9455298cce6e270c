"""The score definitions, by name; :func:`engine.channels.statistics` computes them."""

STATISTICS = ("mean_abs", "abs_mean", "max_abs", "rms")
