"""Queries about runs, sweeps and comparisons, in SQL."""
