"""Runs a pipeline for samples, one noise generator each, and declares where in the sampling it is."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from engine.manifest import Sample

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Settings:
    """What every sample of a batch shares.

    Attributes:
        height: of the pictures, pixels.
        width: of the pictures, pixels.
        steps: denoising steps.
        guidance: embedded guidance scale.
        true_cfg_scale: classifier-free guidance; 1 is off.
    """

    height: int
    width: int
    steps: int
    guidance: float
    true_cfg_scale: float


class Sampler:
    """A pipeline that knows, while it runs, which step and which guidance branch it is at.

    The step comes from the pipeline's own end-of-step callback and the branch from the name under which the pipeline
    enters its transformer's cache context: both are what the pipeline says, never counted from forwards.

    Attributes:
        step: 0-based loop index of the step that runs now.
        branch: ``cond`` or ``uncond``, whichever forward runs now.
    """

    def __init__(self, pipeline: "DiffusionPipeline") -> None:
        self.pipeline = pipeline
        self.step = 0
        self.branch = "cond"

    def schedule(self) -> tuple[list[float], list[float] | None]:
        """Timestep and noise level (sigma; None when the scheduler has none) of every step of the last generation."""
        scheduler = self.pipeline.scheduler
        timesteps = [float(t) for t in scheduler.timesteps]
        sigmas = getattr(scheduler, "sigmas", None)
        return timesteps, None if sigmas is None else [float(sigma) for sigma in sigmas[: len(timesteps)]]

    def max_prompt_tokens(self) -> int:
        """Longest prompt that the sequence text encoder takes, tokens (FluxPipeline's own limit is 512)."""
        return min(512, self.pipeline.tokenizer_2.model_max_length)

    def prompt_lengths(self, prompts: Sequence[str]) -> list[tuple[int, bool]]:
        """For each prompt: its tokens for the sequence text encoder before truncation, and whether that one cuts it.

        The pooled CLIP encoder may read a shorter prefix of a long prompt; that does not count as cut.
        """
        limit = self.max_prompt_tokens()
        lengths = [len(ids) for ids in self.pipeline.tokenizer_2(list(prompts), verbose=False).input_ids]
        return [(length, length > limit) for length in lengths]

    def generate(self, samples: Sequence[Sample], settings: Settings) -> list[Image.Image]:
        """Generate one picture per sample.

        Each sample's noise comes from its own CPU generator, so it is the same in any batch and on any device.

        Args:
            samples: the batch.
            settings: shared by all of it.
        """
        arguments: dict[str, Any] = {
            "prompt": [sample.prompt for sample in samples],
            "generator": [torch.Generator("cpu").manual_seed(sample.seed) for sample in samples],
            "height": settings.height,
            "width": settings.width,
            "num_inference_steps": settings.steps,
            "guidance_scale": settings.guidance,
            "max_sequence_length": self.max_prompt_tokens(),
            "callback_on_step_end": self._end_of_step,
        }
        if settings.true_cfg_scale > 1:
            arguments["true_cfg_scale"] = settings.true_cfg_scale
            arguments["negative_prompt"] = [sample.negative_prompt or "" for sample in samples]
        with self._declaring(), torch.inference_mode():
            return self.pipeline(**arguments).images

    def _end_of_step(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self.step = step + 1
        return {}

    @contextmanager
    def _declaring(self) -> Iterator[None]:
        transformer = self.pipeline.transformer
        enter = transformer.cache_context

        def cache_context(name: str) -> Any:
            self.branch = name
            return enter(name)

        self.step, self.branch = 0, "cond"
        transformer.cache_context = cache_context
        try:
            yield
        finally:
            del transformer.cache_context
