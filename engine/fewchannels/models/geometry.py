"""A model's geometry from its configurations: the properties that a capture needs before weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fewchannels.errors import InputError
from fewchannels.models.families import FAMILIES, NOISED_VAES, VAE_FACTORS
from fewchannels.models.family import Family, ModelGeometry, Pipeline

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

# How diffusers finds the class of older checkpoints without a class of their own, such as DiT's and the first PixArt's.
_FORMERLY = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
_MOST = 2**20  # of a width, a side: far above any model's


@dataclass(frozen=True)
class Configuration:
    """A model's configuration, from its files or from a loaded pipeline.

    Attributes:
        name: name of the model, for messages.
        pipeline_class: name of the pipeline's class.
        transformer_class: name of the transformer's class.
        index: configuration of the pipeline, with ``[library, class]`` by component.
        transformer: configuration of the transformer.
        vae: configuration of the VAE.
        scheduler: configuration of the scheduler.
        is_loaded: whether it is that of a loaded pipeline.
    """

    name: str
    pipeline_class: str
    transformer_class: str
    index: Mapping[str, Any]
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]
    is_loaded: bool = False

    @classmethod
    def of(cls, pipeline: "DiffusionPipeline") -> "Configuration":
        """The configuration of a loaded pipeline.

        Raises:
            InputError: the pipeline has no transformer, VAE or scheduler.
        """
        name = type(pipeline).__name__
        for part in ("transformer", "vae"):
            if getattr(pipeline, part, None) is None:
                raise InputError(
                    f"{name} has no {part}; massive channels can only be recorded from diffusion transformers with a "
                    "VAE. Pass a pipeline such as FluxPipeline or SanaPipeline."
                )
        if getattr(pipeline, "scheduler", None) is None:
            raise InputError(f"{name} has no scheduler, which every call needs. Set pipe.scheduler to one first.")
        transformer = uncompiled(pipeline.transformer)
        parts = (transformer, pipeline.vae, pipeline.scheduler)
        config, vae, scheduler = (
            dict(each.config) | {"_class_name": type(each).__name__} for each in map(uncompiled, parts)
        )
        return cls(
            name, name, type(transformer).__name__, dict(pipeline.config), config, vae, scheduler, is_loaded=True
        )

    @property
    def remedy(self) -> str:
        """Remedy for an unknown model, for messages."""
        if self.is_loaded:
            return "fc.inspect(pipe) locates its image stream; save its family file, and pass it as family"
        return (
            f"'fewchannels models inspect {self.name}' locates its image stream and writes a family file for --family"
        )


def uncompiled(module: Any) -> Any:
    """The module inside a ``torch.compile`` wrapper; a module without a wrapper is returned unchanged."""
    return getattr(module, "_orig_mod", module)


def geometry_from(described: Configuration, family: tuple[str, Family] | None = None) -> ModelGeometry:
    """A model's geometry from its configuration.

    Args:
        described: the configuration.
        family: name of a transformer class and its family, in addition to :data:`FAMILIES`.

    Raises:
        InputError: the class of the transformer or of the pipeline is unknown, or a field is missing.
    """
    families = FAMILIES | dict([family] if family else [])
    index, config, vae = described.index, described.transformer, described.vae
    name, pipeline_class = described.transformer_class, described.pipeline_class
    if name == "Transformer2DModel":
        name = _FORMERLY.get(str(config.get("norm_type", "")), name)
    if name not in families:
        raise InputError(
            f"the transformer class {name!r} is not supported; supported are {', '.join(families)}. {described.remedy}."
        )
    found = families[name]
    if pipeline_class not in found.pipelines:
        raise InputError(
            f"{name} is supported in {' and '.join(found.pipelines)}; {described.name!r} is a {pipeline_class!r}, "
            f"which may apply guidance differently. Describe it: {described.remedy}."
        )
    pipeline = found.pipelines[pipeline_class]
    if any(index.get("transformer_2") or []):
        raise InputError(
            f"{described.name!r} has a second transformer, transformer_2, which runs some of the steps; only one can "
            "be recorded, so these steps would be missing. Use a model with one transformer."
        )
    try:
        factor = _whole("the VAE's factor", _pixels_per_cell(vae))
        sides = {"vae": lambda: vae["sample_size"], "transformer": lambda: config["sample_size"] * factor}
        return ModelGeometry(
            transformer=name,
            pipeline_class=pipeline_class,
            family=found,
            pipeline=pipeline,
            blocks=found.blocks(config),
            n_channels=_whole("the width", found.n_channels(config)),
            pixels_per_token=_whole("a token's side", found.cells_per_token(config)) * factor,
            default_side=found.default_side
            if isinstance(found.default_side, int)
            else _whole("the default side", sides[found.default_side]()),
            embeds_guidance=pipeline.embedded is not None
            and bool(config.get("guidance_embeds", found.embeds_guidance)),
            can_be_guided=_can_be_guided(pipeline, index),
            takes_images=vae.get("_class_name") in NOISED_VAES
            and not pipeline.needs_reference
            and _is_flow(described.scheduler),
        )
    except KeyError as error:
        raise InputError(f"{described.name!r}: the transformer's or the VAE's config.json has no {error}.") from None
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise InputError(f"{described.name!r}: a field of its configuration has an unexpected type: {error}") from None


def _whole(what: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _MOST:
        raise ValueError(f"{what} is {value!r:.60}; it must be a whole number, 1 to {_MOST:,}")
    return value


def _can_be_guided(pipeline: Pipeline, index: Mapping[str, Any]) -> bool:
    if pipeline.guidance == "component":
        return bool((index.get("guider") or [None])[0])
    return pipeline.guidance != "none" and not index.get("is_distilled", False)


def _is_flow(scheduler: Mapping[str, Any]) -> bool:
    flow = scheduler.get("use_flow_sigmas") or scheduler.get("prediction_type") == "flow_prediction"
    return str(scheduler.get("_class_name", "")).startswith("FlowMatch") or bool(flow)


def _pixels_per_cell(vae: Mapping[str, Any]) -> int:
    value = vae[VAE_FACTORS.get(vae.get("_class_name", ""), "block_out_channels")]
    if isinstance(value, int):
        return value
    if len(value) > _MOST.bit_length():
        raise ValueError(f"the VAE has {len(value)} widths")
    # One halving between any two successive widths; the list of AutoencoderKLQwenImage has the halvings themselves.
    return 2 ** (len(value) - (vae.get("_class_name") != "AutoencoderKLQwenImage"))
