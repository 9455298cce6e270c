"""Alignment of clusters of tokens, by their massive channels, with the subject."""
