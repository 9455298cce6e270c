"""One file of runs, sweeps and comparisons: HTML, Markdown or PDF."""
