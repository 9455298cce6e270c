"""What calls of a pipeline of one's own are given."""

from typing import Any

import torch


def noise(*seeds: int) -> Any:
    """A fresh generator for each seed: one, or a list."""
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made[0] if len(made) == 1 else made
