"""Runs verified, merged, exported and compacted."""
