"""A manifest, a model and settings become a run."""
