"""The words in which a model family is written: where a transformer keeps its streams, and how a pipeline runs it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fewchannels.errors import InputError

STREAMS = ("image", "text")
BRANCHES = ("cond", "uncond")
_MOST_LAYERS = 10_000

Start = Literal["first", "after_text", "after_own_text", "after_image"]
Guidance = Literal["none", "batched", "sequential", "component"]


class _Strict:
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  # what family_file reads has no unknown fields


@dataclass(frozen=True)
class Place(_Strict):
    """Where a block's output has a stream's tokens.

    Attributes:
        output: position in the tuple that the block returns; None where it returns one tensor,
            ``(sample, token, channel)``.
        start: ``first``: from token 0. ``after_text``: image tokens behind a text that is equally long in every row.
            ``after_own_text``: image tokens right behind each row's own text. ``after_image``: text tokens behind the
            image's and what pads it.
    """

    output: int | None = None
    start: Start = "first"


@dataclass(frozen=True)
class BlockList(_Strict):
    """One list of blocks of a transformer.

    Attributes:
        path: attribute of the transformer that holds the list, e.g. ``transformer_blocks``.
        kind: ``dual`` (text and image have weights of their own), ``single`` (they share them), ``refiner`` (image
            tokens alone, before text joins), ``cross`` (text enters by cross-attention) or ``plain`` (no text).
        count: key of the transformer's configuration that says how many there are.
        image: where the image stream is.
        text: where the text stream is; None where the block has none.
    """

    path: str
    kind: str
    count: str
    image: Place
    text: Place | None = None


@dataclass(frozen=True)
class TextInput(_Strict):
    """How long the text stream is, read off the transformer's arguments.

    Attributes:
        arguments: embeddings whose token axes, the last but one, add up; or one list of ``(token, channel)`` per row.
        masks: arguments, ``(row, token)``, whose ones add up to a row's own tokens; without, all of them are its own.
        extra: tokens of its own that the transformer puts before the text.
    """

    arguments: tuple[str, ...] = ("encoder_hidden_states",)
    masks: tuple[str, ...] = ()
    extra: int = 0


@dataclass(frozen=True)
class Pipeline(_Strict):
    """How one pipeline class runs its transformer.

    Attributes:
        guidance: ``none``; ``batched``: the branches are parts of one forward's rows; ``sequential``: one forward for
            each; ``component``: a guider of the pipeline's decides, and names each forward.
        order: order of the branches, in the rows or in the forwards of a step.
        classifier_free: argument that runs the second branch when it is above ``unguided``.
        unguided: the highest scale at which it does not run; below 0 where it runs at every scale.
        embedded: argument of distilled guidance, which the transformer is told.
        default_guidance: default scale of ``classifier_free`` or, where there is one, of ``embedded``.
        default_true_cfg: default scale of ``classifier_free`` where ``embedded`` takes the guidance scale.
        negative: whether the pipeline takes negative prompts.
        reference: argument of a reference image, whose tokens follow the image's; None where it takes none.
        needs_reference: whether it cannot do without.
        sizes: sizes of images: ``any``; ``default``: the model's own only; ``area``: sides are changed until the area
            is the model's own; or the only ones, ``(height, width)``.
        area: argument that is given height times width; None where there is none.
        prompt: argument of the prompts; ``class_labels`` for a model of ImageNet classes.
        tokenizer: the component that measures prompts.
        max_tokens: longest prompt in tokens.
        before: text that the pipeline puts before a prompt and counts among those.
        lower_case: whether it encodes prompts in lower case, without spaces around them.
        length: argument for that; None where it has none.
        two_steps: argument that says something of two steps, and must be None for any other number.
        fixed: further arguments; of these, ``strength`` says which share of the steps runs.
    """

    guidance: Guidance
    order: tuple[str, ...] = ("cond",)
    classifier_free: str | None = None
    unguided: float = 1.0
    embedded: str | None = None
    default_guidance: float = 1.0
    default_true_cfg: float = 1.0
    negative: bool = True
    reference: str | None = None
    needs_reference: bool = False
    sizes: Literal["any", "default", "area"] | tuple[tuple[int, int], ...] = "any"
    area: str | None = None
    prompt: str = "prompt"
    tokenizer: str | None = "tokenizer"
    max_tokens: int = 512
    before: str = ""
    lower_case: bool = False
    length: str | None = "max_sequence_length"
    two_steps: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def strength(self) -> float:
        """Share of the schedule that runs: below 1 where the pipeline begins within it, from a noised image."""
        value = self.fixed.get("strength", 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise InputError(f"the family's fixed strength is {value!r:.60}; it must be a number above 0, at most 1.")
        return float(value)

    @property
    def has_true_cfg(self) -> bool:
        """Return whether classifier-free guidance has a scale of its own, beside the embedded one."""
        return self.classifier_free == "true_cfg_scale"


@dataclass(frozen=True)
class Family(_Strict):
    """How to read one transformer class.

    Attributes:
        lists: block lists in the order in which they run; layers are numbered through them from 0.
        pipelines: the pipeline classes that run it, by name.
        patch: latent cells along one side of an image token, or the key of the configuration that says so.
        width: keys of the transformer's configuration whose product is the width of the hidden state.
        text: how long its text stream is; None where no block has one.
        image_argument: the transformer's argument with the latents.
        packed: whether those are tokens already, ``(row, token, channel)``, so that reference tokens show in them.
        image_multiple: the image's tokens are padded to a multiple of this many.
        default_side: the model's own image side: ``vae`` (its ``sample_size``, pixels), ``transformer`` (its
            ``sample_size``, latent cells) or pixels.
        embeds_guidance: whether the transformer is told a guidance scale where its configuration does not say.
    """

    lists: tuple[BlockList, ...]
    pipelines: Mapping[str, Pipeline]
    patch: int | str = "patch_size"
    width: tuple[str, ...] = ("num_attention_heads", "attention_head_dim")
    text: TextInput | None = None
    image_argument: str = "hidden_states"
    packed: bool = False
    image_multiple: int = 1
    default_side: Literal["vae", "transformer"] | int = "transformer"
    embeds_guidance: bool = False

    def blocks(self, config: Mapping[str, Any]) -> "tuple[Block, ...]":
        """Every layer of a transformer with this configuration, numbered in running order.

        Raises:
            ValueError: the configuration counts more layers than any transformer has.
        """
        for each in self.lists:
            if config[each.count] > _MOST_LAYERS:
                raise ValueError(f"{each.count} is {config[each.count]}; it must be at most {_MOST_LAYERS:,}")
        listed = [(each, i) for each in self.lists for i in range(config[each.count])]
        return tuple(Block(layer, f"{each.path}.{i}", each.kind) for layer, (each, i) in enumerate(listed))

    def place(self, block: "Block", stream: str) -> Place | None:
        """Where a stream is in what a block returns; None where the block has no such stream."""
        (found,) = (each for each in self.lists if block.path.rpartition(".")[0] == each.path)
        return found.image if stream == "image" else found.text

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that any of its blocks has."""
        return STREAMS if any(each.text for each in self.lists) else STREAMS[:1]

    def has_text(self, blocks: "Sequence[Block]") -> bool:
        """Return whether any of these blocks has a text stream."""
        return any(self.place(block, "text") for block in blocks)

    def cells_per_token(self, config: Mapping[str, Any]) -> int:
        """Latent cells along one side of an image token."""
        side = self.patch if isinstance(self.patch, int) else config[self.patch]
        return side if isinstance(side, int) else side[-1]

    def n_channels(self, config: Mapping[str, Any]) -> int:
        """Width of the hidden state."""
        return math.prod(config[key] for key in self.width)


@dataclass(frozen=True)
class Block:
    """One layer: its number, its dotted module path, and its kind as in :class:`BlockList`."""

    layer: int
    path: str
    kind: str


@dataclass(frozen=True)
class ModelGeometry:
    """What a capture must know of a model before its weights are loaded.

    Attributes:
        transformer: the transformer's class name.
        pipeline_class: the pipeline's class name.
        family: how to read the transformer.
        pipeline: how the pipeline runs it.
        blocks: every layer in running order.
        n_channels: width of the hidden state.
        pixels_per_token: side of the square of pixels that one image token stands for.
        default_side: the model's own image size, pixels.
        embeds_guidance: whether the transformer is told a guidance scale (distilled).
        can_be_guided: whether classifier-free guidance works with this checkpoint.
        takes_images: whether images can be noised to its steps' levels (:mod:`fewchannels.models.from_images`).
    """

    transformer: str
    pipeline_class: str
    family: Family
    pipeline: Pipeline
    blocks: tuple[Block, ...]
    n_channels: int
    pixels_per_token: int
    default_side: int
    embeds_guidance: bool
    can_be_guided: bool
    takes_images: bool

    @property
    def takes_guidance(self) -> bool:
        """Return whether the guidance scale does anything."""
        if self.pipeline.embedded:
            return self.embeds_guidance
        return self.pipeline.classifier_free == "guidance_scale" and self.can_be_guided

    def is_guided(self, guidance: float, true_cfg_scale: float) -> bool:
        """Return whether an unconditional branch runs at these scales."""
        scale = true_cfg_scale if self.pipeline.has_true_cfg else guidance
        return self.can_be_guided and (self.pipeline.guidance == "component" or scale > self.pipeline.unguided)

    def n_run(self, n_steps: int, strength: float | None = None) -> int:
        """Steps that run where so many are asked for: fewer where the pipeline begins within the schedule."""
        # As diffusers' get_timesteps() counts them.
        share = self.pipeline.strength if strength is None else strength
        return n_steps - int(max(n_steps - min(n_steps * share, n_steps), 0))

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Image tokens along height and width.

        Raises:
            InputError: a side is not a whole number of tokens.
        """
        for name, value in (("height", height), ("width", width)):
            if value % self.pixels_per_token or value < self.pixels_per_token:
                raise InputError(
                    f"{name} is {value} pixels; {self.transformer} with this VAE needs multiples of "
                    f"{self.pixels_per_token}."
                )
        if (height, width) not in (allowed := self._sizes(height, width)):
            several = " or ".join(f"{h} x {w}" for h, w in allowed)
            raise InputError(
                f"height and width are {height} and {width}; {self.pipeline_class} would change that size. "
                f"Use {several} pixels (height x width)."
            )
        return height // self.pixels_per_token, width // self.pixels_per_token

    def _sizes(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        """The image sizes nearest to one that the pipeline makes as asked."""
        side, sizes = self.default_side, self.pipeline.sizes
        if sizes == "any":
            return ((height, width),)
        if sizes == "default":
            return ((side, side),)
        if sizes == "area":
            # As HiDreamImagePipeline does it.
            scale, step = math.sqrt(side**2 / (height * width)), self.pixels_per_token
            return ((int(height * scale // step * step), int(width * scale // step * step)),)
        return sizes
