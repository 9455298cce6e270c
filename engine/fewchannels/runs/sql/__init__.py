"""Questions to runs, sweeps and comparisons in SQL."""
