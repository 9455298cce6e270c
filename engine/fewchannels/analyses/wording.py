"""Names of channel selections in sentences and tables."""

CHANNELS = {
    "random": "the same number of random channels (random)",
    "redrawn": "the same number of random channels, resampled at every layer and step (redrawn)",
    "matched": "energy-matched other channels (matched)",
    "scaled": "the same number of random channels, norm-matched (scaled)",
    "bottom": "the same number of lowest-scoring channels (bottom)",
    "all": "all channels",
    "pca": "the same number of principal components (pca)",
}
"""Controls of the top channels, those that say most first."""
