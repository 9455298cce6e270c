"""Whether the top channels stay the same across samples, steps and layers."""
