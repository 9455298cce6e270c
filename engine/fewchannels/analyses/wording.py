"""What selections of channels are called in sentences and tables."""

CHANNELS = {
    "random": "as many random channels (random)",
    "redrawn": "as many random channels, drawn anew at every layer and step (redrawn)",
    "matched": "as many other channels as hold the same energy (matched)",
    "scaled": "as many random channels, moved by as much (scaled)",
    "bottom": "as many channels of smallest score (bottom)",
    "all": "all channels",
    "pca": "as many principal components (pca)",
}
"""Controls of the top channels, those that say most first."""
