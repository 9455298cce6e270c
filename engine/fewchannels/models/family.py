"""Descriptions of model families: where a transformer keeps its streams, and how a pipeline runs it."""

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
    """Position of a stream's tokens in a block's output.

    Attributes:
        output: index in the tuple that the block returns; None if it returns one tensor,
            ``(sample, token, channel)``.
        start: ``first``: from token 0. ``after_text``: image tokens after a text with the same length in every row.
            ``after_own_text``: image tokens right after each row's own text. ``after_image``: text tokens after the
            image's tokens and their padding.
    """

    output: int | None = None
    start: Start = "first"


@dataclass(frozen=True)
class BlockList(_Strict):
    """One list of blocks of a transformer.

    Attributes:
        path: attribute of the transformer that holds the list, e.g. ``transformer_blocks``.
        kind: ``dual`` (text and image have separate weights), ``single`` (they share weights), ``refiner`` (only image
            tokens, before text joins), ``cross`` (text enters by cross-attention) or ``plain`` (no text).
        count: key of the transformer's configuration with the number of blocks.
        image: position of the image stream.
        text: position of the text stream; None if the block has none.
    """

    path: str
    kind: str
    count: str
    image: Place
    text: Place | None = None


@dataclass(frozen=True)
class TextInput(_Strict):
    """Length of the text stream, from the transformer's arguments.

    Attributes:
        arguments: embeddings whose token axes (the second to last) add up, or one list of ``(token, channel)`` per row.
        masks: arguments, ``(row, token)``, whose ones add up to a row's number of tokens; empty if all tokens count.
        extra: number of tokens that the transformer inserts before the text.
    """

    arguments: tuple[str, ...] = ("encoder_hidden_states",)
    masks: tuple[str, ...] = ()
    extra: int = 0


@dataclass(frozen=True)
class Pipeline(_Strict):
    """How one pipeline class runs its transformer.

    Attributes:
        guidance: ``none``; ``batched``: the branches are parts of one forward's rows; ``sequential``: one forward for
            each; ``component``: the pipeline's guider decides, and names each forward pass.
        order: order of the branches in the rows, or in the forward passes of a step.
        classifier_free: argument that runs the second branch when it is above ``unguided``.
        unguided: highest scale at which the second branch does not run; negative if it always runs.
        embedded: argument of distilled guidance, which is passed to the transformer.
        default_guidance: default scale of ``embedded`` or, without it, of ``classifier_free``.
        default_true_cfg: default scale of ``classifier_free`` if ``embedded`` has the guidance scale.
        negative: whether the pipeline takes negative prompts.
        reference: argument of a reference image, whose tokens follow the image's; None if there is none.
        needs_reference: whether a reference image is required.
        sizes: sizes of images: ``any``; ``default``: only the model's own; ``area``: sides are changed to match the
            model's own area; or a list of the supported ones, ``(height, width)``.
        area: argument for height times width; None if there is none.
        prompt: argument of the prompts; ``class_labels`` for a model of ImageNet classes.
        tokenizer: the component that measures prompts.
        max_tokens: maximum length of a prompt, in tokens.
        before: text that the pipeline prepends to a prompt, and that counts toward ``max_tokens``.
        lower_case: whether it converts prompts to lower case and strips them.
        length: argument for the maximum length; None if there is none.
        two_steps: argument that applies only to two steps, and must be None for any other number.
        fixed: further arguments; ``strength`` among them is the share of the steps that runs.
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
        """Share of the schedule that runs: below 1 if the pipeline starts within it, from a noised image."""
        value = self.fixed.get("strength", 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise InputError(f"the family's fixed strength is {value!r:.60}; it must be a number above 0, at most 1.")
        return float(value)

    @property
    def has_true_cfg(self) -> bool:
        """Return whether classifier-free guidance has its own scale, separate from the embedded one."""
        return self.classifier_free == "true_cfg_scale"


@dataclass(frozen=True)
class Family(_Strict):
    """Description of one transformer class.

    Attributes:
        lists: block lists in the order in which they run; layers are numbered through them from 0.
        pipelines: the pipeline classes that run it, by name.
        patch: number of latent cells along one side of an image token, or its key in the configuration.
        width: keys of the transformer's configuration whose product is the width of the hidden state.
        text: length of its text stream; None if no block has one.
        image_argument: the transformer's argument with the latents.
        packed: whether the latents are already tokens, ``(row, token, channel)``, including reference tokens.
        image_multiple: the image's tokens are padded to a multiple of this many.
        default_side: the model's own image side: ``vae`` (its ``sample_size``, pixels), ``transformer`` (its
            ``sample_size``, latent cells) or pixels.
        embeds_guidance: whether the transformer takes a guidance scale, unless its configuration specifies it.
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
        """Position of a stream in a block's output; None if the block does not have it."""
        (found,) = (each for each in self.lists if block.path.rpartition(".")[0] == each.path)
        return found.image if stream == "image" else found.text

    @property
    def streams(self) -> tuple[str, ...]:
        """Streams that at least one block has."""
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
    """Properties of a model that are needed before its weights are loaded.

    Attributes:
        transformer: the transformer's class name.
        pipeline_class: the pipeline's class name.
        family: description of the transformer.
        pipeline: description of the pipeline.
        blocks: every layer in running order.
        n_channels: width of the hidden state.
        pixels_per_token: side of an image token, in pixels.
        default_side: the model's own image size, pixels.
        embeds_guidance: whether the transformer takes a guidance scale (distilled guidance).
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
        """Return whether the guidance scale has an effect."""
        if self.pipeline.embedded:
            return self.embeds_guidance
        return self.pipeline.classifier_free == "guidance_scale" and self.can_be_guided

    def is_guided(self, guidance: float, true_cfg_scale: float) -> bool:
        """Return whether an unconditional branch runs at these scales."""
        scale = true_cfg_scale if self.pipeline.has_true_cfg else guidance
        return self.can_be_guided and (self.pipeline.guidance == "component" or scale > self.pipeline.unguided)

    def n_run(self, n_steps: int, strength: float | None = None) -> int:
        """Number of steps that run for a requested number: fewer if the pipeline starts within the schedule."""
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
        """The supported image sizes nearest to a requested one."""
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
