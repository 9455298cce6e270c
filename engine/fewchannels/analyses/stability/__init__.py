"""Stability of the top channels across samples, steps and layers."""
