"""Description of one call of a pipeline: its samples, prompts, noise, number of steps, and image size."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fewchannels.errors import InputError
from fewchannels.manifest.rows import canonical, sample_id
from fewchannels.models.family import ModelGeometry
from fewchannels.models.generation import Settings

PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt")
_EMBEDDINGS = ("prompt_embeds", "encoder_hidden_states")


@dataclass(frozen=True)
class Call:
    """One call of a pipeline.

    Attributes:
        arguments: arguments by name, with the defaults of omitted ones.
        settings: settings that all samples share.
        prompts: each sample's prompt; None if the call has embeddings instead.
        negative_prompts: each sample's negative prompt; None if the unconditional branch does not run.
        seeds: seed of each sample's noise; None if the sample has no fresh generator of its own.
        n_run: number of denoising steps that run.
        changes: describes what the open contexts change in the call, as text that is equal only for equal changes.
    """

    arguments: Mapping[str, Any]
    settings: Settings
    prompts: tuple[str | None, ...]
    negative_prompts: tuple[str | None, ...]
    seeds: tuple[int | None, ...]
    n_run: int
    changes: Callable[[], tuple[str, ...]] = tuple

    @property
    def ids(self) -> tuple[str, ...]:
        """Each sample's id: the manifest's id for its prompt and seed, or an id for its index if it has no seed."""
        return tuple(self.id_of(prompt, i) for i, prompt in enumerate(self.prompts))

    def id_of(self, prompt: str | None, i: int) -> str:
        """The id of a sample with a given prompt.

        Args:
            prompt: the prompt.
            i: index in the call of the sample whose seed and negative prompt are used.
        """
        seed, negative = self.seeds[i], self.negative_prompts[i]
        if prompt is None or seed is None:
            return sample_id(f"no seed: {prompt}", i)
        return sample_id(canonical(prompt), seed, negative_prompt=negative or None)

    @property
    def n_samples(self) -> int:
        """Number of images that the call generates."""
        return len(self.prompts)


def described(pipeline: Any, geometry: ModelGeometry, positional: Sequence[Any], keywords: Mapping[str, Any]) -> Call:
    """Describe a call with these arguments.

    Args:
        pipeline: the pipeline.
        geometry: geometry of its model.
        positional: positional arguments of the call.
        keywords: keyword arguments of the call.

    Raises:
        InputError: an argument that determines how the transformer runs has an unsupported value.
        TypeError: the pipeline does not accept these arguments.
    """
    bound = inspect.signature(type(pipeline).__call__).bind(pipeline, *positional, **keywords)
    bound.apply_defaults()
    given = {name: value for name, value in bound.arguments.items() if name != "self"}
    n_each = next((given[name] for name in PER_PROMPT if given.get(name)), 1)
    prompts = [each for each in _prompts(given, geometry) for _ in range(n_each)]
    steps = _n_steps(given)
    guided = _is_guided(given, geometry)
    settings = Settings(
        *_size(given, geometry, _default_side(pipeline, geometry)),
        steps=steps,
        guidance=_scale(given, geometry.pipeline.embedded or geometry.pipeline.classifier_free, 1.0),
        true_cfg_scale=_scale(given, "true_cfg_scale", 1.0) if guided else 1.0,
    )
    return Call(
        arguments=given,
        settings=settings,
        prompts=tuple(prompts),
        negative_prompts=_negative_prompts(given, len(prompts), n_each, guided=guided),
        seeds=_seeds(given.get("generator"), len(prompts), has_latents=given.get("latents") is not None),
        n_run=geometry.n_run(steps, _scale(given, "strength", geometry.pipeline.strength)),
    )


def _prompts(given: Mapping[str, Any], geometry: ModelGeometry) -> list[str | None]:
    value = given.get(geometry.pipeline.prompt)
    if value is None:
        embedded = next((given[name] for name in _EMBEDDINGS if given.get(name) is not None), None)
        if embedded is None:
            raise InputError(
                f"the call has no {geometry.pipeline.prompt} and no embeddings. Pass {geometry.pipeline.prompt}."
            )
        return [None] * len(embedded)
    if isinstance(value, str | int):
        return [str(value)]
    return [str(each) for each in value]


def _negative_prompts(given: Mapping[str, Any], n_samples: int, n_each: int, *, guided: bool) -> tuple[str | None, ...]:
    value = given.get("negative_prompt")
    if not guided or value is None:
        return (None,) * n_samples
    if isinstance(value, str):
        return (value,) * n_samples
    return tuple(each for each in value for _ in range(n_each))


def _n_steps(given: Mapping[str, Any]) -> int:
    for name in ("timesteps", "sigmas"):
        if (value := given.get(name)) is not None:
            return len(value)
    return int(given["num_inference_steps"])


def _scale(given: Mapping[str, Any], name: str | None, default: float) -> float:
    value = given.get(name) if name else None
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{name} is {value!r:.60}; it must be a finite number. Pass one scale for all images.")
    return float(value)


def _is_guided(given: Mapping[str, Any], geometry: ModelGeometry) -> bool:
    """Whether an unconditional branch runs: a true CFG scale has no effect without a negative prompt."""
    how = geometry.pipeline
    if how.has_true_cfg:
        is_negative = any(
            value is not None for name, value in given.items() if name in ("negative_prompt", "negative_prompt_embeds")
        )
        return is_negative and geometry.is_guided(1.0, _scale(given, "true_cfg_scale", 1.0))
    return geometry.is_guided(_scale(given, how.classifier_free, how.default_guidance), 1.0)


def _default_side(pipeline: Any, geometry: ModelGeometry) -> int:
    """The side of an image, in pixels, if a call does not specify it."""
    cells, factor = (getattr(pipeline, name, None) for name in ("default_sample_size", "vae_scale_factor"))
    return cells * factor if isinstance(cells, int) and isinstance(factor, int) else geometry.default_side


def _size(given: Mapping[str, Any], geometry: ModelGeometry, side: int) -> tuple[int, int]:
    height, width = given.get("height"), given.get("width")
    if (height is None or width is None) and given.get(geometry.pipeline.reference or "") is not None:
        raise InputError(
            f"height is {height} and width is {width}; with a reference image, {geometry.pipeline_class} may choose "
            "the size itself. Pass height and width."
        )
    return (side if height is None else int(height)), (side if width is None else int(width))


def _seeds(generators: Any, n_samples: int, *, has_latents: bool) -> tuple[int | None, ...]:
    """The seed of each sample whose noise comes from a fresh CPU generator of its own; None for other samples."""
    if has_latents or generators is None:
        return (None,) * n_samples
    each = list(generators) if isinstance(generators, Sequence) else [generators]
    if len(each) != n_samples:  # one generator for the noise of several images
        return (None,) * n_samples
    return tuple(map(_seed, each))


def _seed(generator: torch.Generator) -> int | None:
    seed = generator.initial_seed()
    fresh = torch.Generator(generator.device).manual_seed(seed)
    is_fresh = torch.equal(fresh.get_state(), generator.get_state())
    return seed if is_fresh and generator.device.type == "cpu" else None
