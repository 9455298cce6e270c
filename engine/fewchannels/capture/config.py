"""What a capture was asked to do: frozen settings, where they come from, and their fingerprint."""

import dataclasses
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from fewchannels.errors import InputError, unknown
from fewchannels.measures import STATISTICS
from fewchannels.settings.file import read_yaml, settled
from fewchannels.settings.ranges import MOST_INDEX, check, text, within

MOST_SIDE = 65_536
"""Pixels of a picture's side; a manifest takes as much."""
DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("float32", "bfloat16")
_LATER = {
    "from_images",
    "streams",
    "branches",
    "offload",
    "quantization",
    "compile",
    "attention",
    "device_map",
    "lora",
    "transformer_file",
    "encode_first",
    "controls",
}


@dataclass(frozen=True)
class CaptureConfig:
    """Settings that decide what a capture's data are. Two runs with the same fingerprint hold the same data.

    Attributes:
        model: ``demo``, a folder, or a hub id.
        revision: of a hub id; None for its default branch.
        layers: ``all``, ``dual``, ``single``, or global block indices such as ``0,5``.
        steps: ``all``, ``last``, or step indices such as ``0,9,19``.
        top_k: channels whose token maps are kept, per sample, step and layer; 0 keeps statistics only.
        tokens: ``all``, or ``pool:N``: token maps averaged over squares of N x N tokens.
        value_precision: ``float32`` keeps token maps as they are; ``bfloat16`` rounds them to its 8 bits of mantissa.
        controls: ``none``, or further selections of top_k channels whose token maps are kept: ``bottom``, ``random:N``.
        score: the statistic that ranks channels, one of :data:`fewchannels.measures.STATISTICS`.
        streams: ``image``, ``text`` or both: tokens of which hidden states.
        branches: ``cond``, ``uncond`` or both: of which guidance branch.
        num_inference_steps: denoising steps, unless the manifest row says otherwise.
        guidance_scale: distilled (embedded) guidance or, where the pipeline has none, classifier-free guidance, unless
            the manifest row says otherwise; None for the pipeline's own.
        true_cfg_scale: classifier-free guidance beside a distilled one (FLUX.1, Qwen-Image); 1 is off, None for the
            pipeline's own.
        height: of the pictures in pixels; None for the model's own size.
        width: likewise.
        dtype: of the model's weights and arithmetic; statistics are float32 always.
        from_images: whether the manifest's reference pictures are noised to each step's level and run through the
            model, instead of generating pictures.
        offload: ``none``, ``model``, ``sequential`` or ``group``: what moves to the GPU only while it runs.
        quantization: of the transformer's weights, as :data:`fewchannels.models.load_options.QUANTIZATIONS` names it.
        compile: whether each block is compiled.
        attention: diffusers' attention backend; None for its own.
        device_map: how the model is spread over several GPUs; None for one.
        lora: adapters, ``FILE@STRENGTH``, comma-separated; None for none.
        transformer_file: single file whose weights replace the transformer's; None for none.
        encode_first: whether all prompts are encoded before the transformer is loaded, and never beside it.
        batch_size: samples generated together; None for 16, or a task's samples where those are fewer; 1 where prompts
            are encoded first.
        shard_samples: samples in one task and one shard; None for as many as fit 512 MiB of values, at most 16.
    """

    model: str = field(default="demo", metadata=text("demo, a folder, or a hub id."))
    revision: str | None = field(default=None, metadata=text("Branch, tag or commit of a hub id."))
    layers: str = field(default="all", metadata=text("all, dual, single, or indices: 0,5."))
    steps: str = field(default="all", metadata=text("all, last, or indices: 0,9,19."))
    top_k: int = field(
        default=12, metadata=within(0, MOST_INDEX, "Channels whose token maps are kept; 0: statistics only.")
    )
    tokens: str = field(default="all", metadata=text("all, or pool:N: means over N x N tokens."))
    value_precision: str = field(
        default="float32", metadata=text("float32, or bfloat16: token maps rounded, under half the bytes.")
    )
    controls: str = field(default="none", metadata=text("Also keep the maps of as many others: bottom, random:N."))
    score: str = field(default="mean_abs", metadata=text("mean_abs, abs_mean, max_abs or rms: ranks channels."))
    streams: str = field(default="image", metadata=text("image, text or image,text: whose tokens."))
    branches: str = field(default="cond", metadata=text("cond, uncond or cond,uncond: guidance branches."))
    num_inference_steps: int = field(default=20, metadata=within(1, 10_000, "Denoising steps."))
    guidance_scale: float | None = field(
        default=None,
        metadata=within(0.0, 1000.0, "Distilled guidance; classifier-free where there is no other."),
    )
    true_cfg_scale: float | None = field(
        default=None, metadata=within(0.0, 1000.0, "Classifier-free guidance beside a distilled one; 1 is off.")
    )
    height: int | None = field(default=None, metadata=within(1, MOST_SIDE, "Picture height, pixels."))
    width: int | None = field(default=None, metadata=within(1, MOST_SIDE, "Picture width, pixels."))
    dtype: str = field(default="float32", metadata=text("float32, bfloat16 or float16."))
    from_images: bool = False
    offload: str = field(
        default="none", metadata=text("model, sequential or group: what is on the GPU only while it runs.")
    )
    quantization: str = field(
        default="none",
        metadata=text("bitsandbytes-8bit, -4bit, torchao-int8, -int4, -float8: the transformer's."),
    )
    compile: bool = False
    attention: str | None = field(default=None, metadata=text("diffusers' attention backend, such as native or flash."))
    device_map: str | None = field(default=None, metadata=text("balanced: one model over several GPUs."))
    lora: str | None = field(default=None, metadata=text("Adapters: FILE@STRENGTH, comma-separated."))
    transformer_file: str | None = field(
        default=None,
        metadata=text("Single file (safetensors, GGUF) whose weights replace the transformer's."),
    )
    encode_first: bool = False
    batch_size: int | None = field(default=None, metadata=within(1, 10_000, "Samples generated together."))
    shard_samples: int | None = field(default=None, metadata=within(1, 100_000, "Samples in a task and a shard."))

    def __post_init__(self) -> None:
        check(self)
        for name, known in (("score", STATISTICS), ("dtype", DTYPES), ("value_precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.encode_first and self.batch_size not in (None, 1):
            raise InputError(
                f"batch_size is {self.batch_size}; with encode_first it is 1: prompts are encoded one by one, each "
                "without the padding that others beside it would give it."
            )
        if self.encode_first and self.lora:
            raise InputError(
                "encode_first and lora do not work together: an adapter may change the text encoders, which are loaded "
                "without it. Leave one out."
            )

    @classmethod
    def from_sources(cls, file: Path | None, given: dict[str, Any], besides: Collection[str] = ()) -> Self:
        """Settle every field: what was given on the command line, else the YAML file, else the default.

        Args:
            file: a YAML mapping from field names to values, or None.
            given: field values, None where the command line was silent.
            besides: names in the file that are no fields, and somebody else's.

        Raises:
            InputError: an unknown field or a value of the wrong kind.
        """
        loaded = {name: value for name, value in read_yaml(file).items() if name not in besides}
        return cls(
            **settled(cls, loaded, repr(str(file)), besides)
            | {name: value for name, value in given.items() if value is not None}
        )

    @classmethod
    def of(cls, description: dict[str, Any]) -> Self:
        """The settings of a run, from its ``run.json``."""
        settings = {name: value for name, value in description["config"].items() if name in typing.get_type_hints(cls)}
        return cls(**settings | {name: ",".join(map(str, settings[name])) for name in ("layers", "steps")})


def as_dict(config: CaptureConfig) -> dict[str, Any]:
    """The settings as plain values, for ``run.json``. What format 2 had not at first is left out at its default."""
    default = dataclasses.asdict(CaptureConfig())
    settings = dataclasses.asdict(config)
    return {name: value for name, value in settings.items() if name not in _LATER or value != default[name]}
