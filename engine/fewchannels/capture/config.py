"""What a capture was asked to do: frozen settings, where they come from, and their fingerprint."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from fewchannels.errors import InputError, unknown
from fewchannels.measures.statistics import STATISTICS

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
        score: the statistic that ranks channels, one of :data:`fewchannels.measures.statistics.STATISTICS`.
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

    model: str = "demo"
    revision: str | None = None
    layers: str = "all"
    steps: str = "all"
    top_k: int = 12
    tokens: str = "all"
    value_precision: str = "float32"
    controls: str = "none"
    score: str = "mean_abs"
    streams: str = "image"
    branches: str = "cond"
    num_inference_steps: int = 20
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    height: int | None = None
    width: int | None = None
    dtype: str = "float32"
    from_images: bool = False
    offload: str = "none"
    quantization: str = "none"
    compile: bool = False
    attention: str | None = None
    device_map: str | None = None
    lora: str | None = None
    transformer_file: str | None = None
    encode_first: bool = False
    batch_size: int | None = None
    shard_samples: int | None = None

    def __post_init__(self) -> None:
        if self.score not in STATISTICS:
            raise unknown("score", self.score, STATISTICS)
        if self.dtype not in DTYPES:
            raise unknown("dtype", self.dtype, DTYPES)
        if self.value_precision not in PRECISIONS:
            raise unknown("value_precision", self.value_precision, PRECISIONS)
        if self.top_k < 0:
            raise InputError(f"top_k is {self.top_k}; it must be at least 0, which keeps statistics only.")
        for name in ("num_inference_steps", "batch_size", "shard_samples", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}; it must be at least 1.")
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
        for name in ("guidance_scale", "true_cfg_scale"):
            value = getattr(self, name)
            if value is not None and (not math.isfinite(value) or value < 0):
                raise InputError(f"{name} is {value}; it must be a finite number of at least 0.")

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
            **_settings(cls, file, loaded, besides)
            | {name: value for name, value in given.items() if value is not None}
        )

    @classmethod
    def of(cls, description: dict[str, Any]) -> Self:
        """The settings of a run, from its ``run.json``."""
        settings = {name: value for name, value in description["config"].items() if name in typing.get_type_hints(cls)}
        return cls(**settings | {name: ",".join(map(str, settings[name])) for name in ("layers", "steps")})


def read_yaml(file: Path | None) -> dict[str, Any]:
    """The mapping in a settings file; empty without one.

    Raises:
        InputError: it cannot be read, or holds no mapping.
    """
    if file is None:
        return {}
    try:
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"cannot read the settings file {str(file)!r}: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{str(file)!r} must hold a mapping such as 'top_k: 12'; it holds {type(loaded).__name__}.")
    return loaded


def _settings(cls: type, file: Path | None, loaded: dict[str, Any], besides: Collection[str]) -> dict[str, Any]:
    kinds = typing.get_type_hints(cls)
    settings = {}
    for name, value in loaded.items():
        if name not in kinds:
            raise unknown(f"setting in {file}", name, [*besides, *kinds])
        allowed = typing.get_args(kinds[name]) if isinstance(kinds[name], types.UnionType) else (kinds[name],)
        if float in allowed and type(value) is int:
            value = float(value)
        if str in allowed and type(value) is int:  # `layers: 3` and `layers: "3"` mean the same
            value = str(value)
        if str in allowed and isinstance(value, list):  # `layers: [0, 5]` means "0,5"
            value = ",".join(map(str, value))
        if type(value) not in allowed:
            wanted = " or ".join(kind.__name__ for kind in allowed)
            raise InputError(f"{name} in {str(file)!r} is {value!r}; it must be {wanted}.")
        settings[name] = value
    return settings


def fingerprint(identity: dict[str, Any]) -> str:
    """SHA-256, 16 hex digits, of what decides a run's data; the same for equal mappings in any order."""
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Fields in which two identities differ, as ``name: theirs -> mine`` lines; nested names are dotted."""
    lines = []
    for name in sorted(mine.keys() | theirs.keys()):
        new, old = mine.get(name), theirs.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            lines += [f"{name}.{line}" for line in differences(new, old)]
        elif new != old:
            lines.append(f"{name}: {old!r} -> {new!r}")
    return lines


def as_dict(config: CaptureConfig) -> dict[str, Any]:
    """The settings as plain values, for ``run.json``. What format 2 had not at first is left out at its default."""
    default = dataclasses.asdict(CaptureConfig())
    settings = dataclasses.asdict(config)
    return {name: value for name, value in settings.items() if name not in _LATER or value != default[name]}
