"""A run at rest: what is on disk, and how it is read, written and kept."""
