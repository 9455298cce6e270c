"""Settings of generation: model, loading, steps, guidance, and size."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fewchannels.errors import InputError, unknown
from fewchannels.manifest import Sample, SettingsUsed
from fewchannels.models.family import ModelGeometry
from fewchannels.models.load_options import Loading
from fewchannels.settings.file import read_yaml, settled
from fewchannels.settings.ranges import IS_LATER, text, within

MOST_SIDE = 65_536
"""Maximum side of an image in pixels, the same as in a manifest."""
DTYPES = ("float32", "bfloat16", "float16")
OF_THE_PLACE = ("model", "revision", "offload", "device_map", "transformer_file")
"""Fields that say where weights are, and not what is computed."""


@dataclass(frozen=True)
class Settings:
    """Settings that all samples of a batch share.

    Attributes:
        height: height of the images, pixels.
        width: width of the images, pixels.
        steps: denoising steps.
        guidance: the guidance scale: distilled, or classifier-free if the pipeline has no other.
        true_cfg_scale: scale of classifier-free guidance in addition to distilled guidance; 1 is off.
        reference: path of the reference image; a batch with one has one sample.
        image: path of the image that is noised to each step's level, instead of generating one; same conventions.
        only_steps: for ``image``, the steps in which the transformer runs.
    """

    height: int
    width: int
    steps: int
    guidance: float
    true_cfg_scale: float
    reference: str | None = None
    image: str | None = None
    only_steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Generation(Loading):
    """Settings that determine an image, in addition to its prompt and seed.

    Attributes:
        model: ``demo``, a folder, or a hub id.
        revision: revision of a hub id; None for its default branch.
        num_inference_steps: number of denoising steps, unless the manifest row has its own.
        guidance_scale: distilled (embedded) guidance or, if the pipeline has none, classifier-free guidance, unless
            the manifest row has its own; None for the pipeline's own.
        true_cfg_scale: classifier-free guidance in addition to distilled guidance (FLUX.1, Qwen-Image); 1 is off, None
            for the pipeline's own.
        height: height of the images in pixels; None for the model's own size.
        width: width in pixels; same conventions as ``height``.
        batch_size: samples generated together; None for the command's default.
    """

    model: str = field(default="demo", metadata=text("Model: demo, a folder, or a hub id."))
    revision: str | None = field(default=None, metadata=text("Branch, tag or commit of a hub id."))
    num_inference_steps: int = field(default=20, metadata=within(1, 10_000, "Number of denoising steps."))
    guidance_scale: float | None = field(
        default=None,
        metadata=within(0.0, 1000.0, "Guidance scale: embedded guidance if the model has it, else CFG."),
    )
    true_cfg_scale: float | None = field(
        default=None, metadata=within(0.0, 1000.0, "CFG scale in addition to embedded guidance; 1 is off.")
    )
    height: int | None = field(default=None, metadata=within(1, MOST_SIDE, "Image height, pixels."))
    width: int | None = field(default=None, metadata=within(1, MOST_SIDE, "Image width, pixels."))
    batch_size: int | None = field(default=None, metadata=within(1, 10_000, "Samples per batch."))

    def check_together(self) -> None:
        """Refuse values that are unknown, or that do not work together.

        Raises:
            InputError: naming them.
        """
        super().check_together()
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)

    @classmethod
    def from_sources(cls, file: Path | None, given: dict[str, Any], besides: Collection[str] = ()) -> Self:
        """Resolve every field: the value from the command line, else from the YAML file, else the default.

        Args:
            file: a YAML mapping from field names to values, or None.
            given: field values from the command line; None if not given.
            besides: names in the file that belong to other settings.

        Raises:
            InputError: an unknown field or a value of the wrong kind.
        """
        loaded = {name: value for name, value in read_yaml(file).items() if name not in besides}
        return cls(
            **settled(cls, loaded, repr(str(file)), besides)
            | {name: value for name, value in given.items() if value is not None}
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values, for documents. Fields added later to format 2 are omitted at their defaults."""
        return {
            each.name: value
            for each in dataclasses.fields(self)
            if (value := getattr(self, each.name)) != each.default or not each.metadata.get(IS_LATER)
        }

    def settled(self, geometry: ModelGeometry) -> Self:
        """The same settings, with the model's own scales and size if none are given.

        Raises:
            InputError: the model's pipeline has no such scale.
        """
        how, side = geometry.pipeline, geometry.default_side
        if self.true_cfg_scale is not None and self.true_cfg_scale != 1 and not how.has_true_cfg:
            raise InputError(
                f"true_cfg_scale is {self.true_cfg_scale:g}; {geometry.pipeline_class} has only one scale, "
                "guidance_scale."
            )
        return dataclasses.replace(
            self,
            guidance_scale=how.default_guidance if self.guidance_scale is None else self.guidance_scale,
            true_cfg_scale=how.default_true_cfg if self.true_cfg_scale is None else self.true_cfg_scale,
            height=self.height or side,
            width=self.width or side,
        )

    def settings(self, sample: Sample) -> Settings:
        """A sample's settings: those of its manifest row, else these, which must be :meth:`settled`."""
        assert self.guidance_scale is not None
        assert self.true_cfg_scale is not None
        height, width = sample.height or self.height, sample.width or self.width
        assert height is not None
        assert width is not None
        return Settings(
            height=height,
            width=width,
            steps=sample.steps or self.num_inference_steps,
            guidance=self.guidance_scale if sample.guidance is None else sample.guidance,
            true_cfg_scale=self.true_cfg_scale,
            reference=sample.reference,
        )


def is_guided(generation: Generation, geometry: ModelGeometry, used: SettingsUsed) -> bool:
    """Return whether an unconditional branch runs for every sample.

    Args:
        generation: settled.
        geometry: geometry of the model.
        used: settings that samples override.
    """
    assert generation.guidance_scale is not None
    assert generation.true_cfg_scale is not None
    return geometry.is_guided(min([generation.guidance_scale, *used.guidance]), generation.true_cfg_scale)


def check_guidance(generation: Generation, geometry: ModelGeometry, used: SettingsUsed) -> None:
    """Reject negative prompts that would have no effect.

    Args:
        generation: settled.
        geometry: geometry of the model.
        used: settings that samples override.

    Raises:
        InputError: there are some.
    """
    takes = geometry.pipeline.negative
    if used.has_negative_prompt and not (takes and is_guided(generation, geometry, used)):
        reason = "which would have no effect" if takes else f"which {geometry.pipeline_class} does not support"
        raise InputError(
            f"the manifest has negative prompts, {reason}. {guidance_remedy(geometry)}, or drop the column."
        )


def guidance_remedy(geometry: ModelGeometry) -> str:
    """Remedy for messages: how to run an unconditional branch."""
    how = geometry.pipeline
    if not geometry.can_be_guided:
        return "This model runs without an unconditional branch"
    return f"Give {'--true-cfg-scale' if how.has_true_cfg else '--guidance-scale'} above {how.unguided:g}"


def sizes(generation: Generation, used: SettingsUsed) -> set[tuple[int, int]]:
    """Heights and widths of all images, pixels.

    Args:
        generation: settled.
        used: settings that samples override.
    """
    own_height, own_width = generation.height, generation.width
    assert own_height is not None
    assert own_width is not None
    return {(height or own_height, width or own_width) for height, width in used.sizes}
