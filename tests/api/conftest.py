"""A pipeline as a user has loaded it."""

from pathlib import Path

import pytest
from diffusers import DiffusionPipeline, FluxPipeline


@pytest.fixture
def pipe(tiny_model: Path) -> DiffusionPipeline:
    """The tiny FLUX pipeline, loaded by diffusers itself."""
    loaded = FluxPipeline.from_pretrained(tiny_model)
    loaded.set_progress_bar_config(disable=True)
    return loaded
