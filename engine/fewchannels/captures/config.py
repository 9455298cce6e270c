"""Settings of a capture: how images are generated, and which data of their hidden states are recorded."""

import typing
from dataclasses import dataclass, field
from typing import Any, Self

from fewchannels.errors import InputError, unknown
from fewchannels.measures import STATISTICS
from fewchannels.models.generation import Generation
from fewchannels.settings.ranges import LATER, MOST_INDEX, flag, text, within

PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class CaptureConfig(Generation):
    """Settings that determine a capture's data. Two runs with the same fingerprint have the same data.

    Attributes:
        layers: ``all``, ``dual``, ``single``, or indices such as ``0,5``, ``2-4`` or ``-1``.
        steps: ``all``, ``last``, or indices such as ``0,9,19``, ``2-4`` or ``-1``.
        top_k: channels whose token maps are kept, per sample, step and layer; 0 keeps statistics only.
        tokens: ``all``, or ``pool:N``: token maps averaged over squares of N x N tokens.
        value_precision: ``float32`` keeps token maps unchanged; ``bfloat16`` rounds them to its 8 bits of mantissa.
        controls: ``none``, or further selections of top_k channels whose token maps are kept: ``bottom``, ``random:N``.
        score: the statistic that ranks channels, one of :data:`fewchannels.measures.STATISTICS`.
        streams: token streams to record: ``image``, ``text`` or both.
        branches: guidance branches to record: ``cond``, ``uncond`` or both.
        from_images: whether the manifest's reference images are noised to each step's level and run through the
            model, instead of generating images.
        encode_first: whether to encode all prompts before loading the transformer, so that both are never in memory.
        shard_samples: samples per task and shard; None for as many as fit into 512 MiB of values, at most 16.
    """

    layers: str = field(default="all", metadata=text("Layers to record: all, dual, single, or indices: 0,5, 2-4."))
    steps: str = field(default="all", metadata=text("Steps to record: all, last, or indices: 0,9,19, 2-4, -1."))
    top_k: int = field(
        default=12,
        metadata=within(0, MOST_INDEX, "Number of top channels whose token maps are recorded; 0: statistics only."),
    )
    tokens: str = field(
        default="all", metadata=text("Resolution of token maps: all, or pool:N (means over N x N tokens).")
    )
    value_precision: str = field(
        default="float32", metadata=text("Precision of token maps: float32, or bfloat16 (less than half the size).")
    )
    controls: str = field(
        default="none", metadata=LATER | text("Also record the maps of k control channels: bottom, random:N.")
    )
    score: str = field(
        default="mean_abs", metadata=text("Statistic that ranks channels: mean_abs, abs_mean, max_abs or rms.")
    )
    streams: str = field(
        default="image", metadata=LATER | text("Streams of tokens to record: image, text or image,text.")
    )
    branches: str = field(
        default="cond", metadata=LATER | text("Guidance branches to record: cond, uncond or cond,uncond.")
    )
    from_images: bool = field(
        default=False,
        metadata=LATER
        | flag("Run the manifest's reference images, noised to each step's level, instead of generating."),
    )
    encode_first: bool = field(
        default=False,
        metadata=LATER | flag("Encode all prompts and free the text encoders before loading the transformer."),
    )
    shard_samples: int | None = field(default=None, metadata=within(1, 100_000, "Samples per task and shard."))

    def check_together(self) -> None:
        """Refuse values that are unknown, or that do not work together.

        Raises:
            InputError: naming them.
        """
        super().check_together()
        for name, known in (("score", STATISTICS), ("value_precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.encode_first and self.batch_size not in (None, 1):
            raise InputError(
                f"batch_size is {self.batch_size}; it must be 1 with encode_first, which encodes each prompt alone, "
                "without padding from others in a batch."
            )
        if self.encode_first and self.lora:
            raise InputError(
                "encode_first and lora cannot be combined: an adapter may change the text encoders, which are loaded "
                "without it. Omit one of them."
            )

    @classmethod
    def of(cls, description: dict[str, Any]) -> Self:
        """The settings of a run, from its ``run.json``."""
        settings = {name: value for name, value in description["config"].items() if name in typing.get_type_hints(cls)}
        return cls(**settings | {name: ",".join(map(str, settings[name])) for name in ("layers", "steps")})
