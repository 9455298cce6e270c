"""Questions about runs, sweeps and comparisons, in SQL."""
