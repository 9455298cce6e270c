"""Two runs of the same samples, side by side."""
