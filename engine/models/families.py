"""Where each transformer class keeps its image stream: a table, and the words it is written in."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import InputError


@dataclass(frozen=True)
class BlockList:
    """One list of blocks of a transformer.

    Attributes:
        path: attribute of the transformer that holds the list, e.g. ``transformer_blocks``.
        kind: ``dual`` (separate weights for text and image) or ``single`` (shared).
        image_output: where in the block's output tuple the image stream is, ``(sample, token, channel)``.
        count: key of the transformer's configuration that says how many there are.
    """

    path: str
    kind: str
    image_output: int
    count: str


@dataclass(frozen=True)
class Family:
    """How to read one transformer class.

    Attributes:
        lists: block lists in the order in which they run; layers are numbered through them from 0.
        cells_per_token: latent cells along one side of an image token.
        width: keys of the transformer's configuration whose product is the width of the hidden state.
    """

    lists: tuple[BlockList, ...]
    cells_per_token: int
    width: tuple[str, ...] = ("num_attention_heads", "attention_head_dim")

    def blocks(self, config: Mapping[str, Any]) -> "tuple[Block, ...]":
        """Every layer of a transformer with this configuration, numbered in running order."""
        listed = [(each, i) for each in self.lists for i in range(config[each.count])]
        return tuple(
            Block(layer, f"{each.path}.{i}", each.kind, each.image_output) for layer, (each, i) in enumerate(listed)
        )


@dataclass(frozen=True)
class Block:
    """One layer. ``kind`` is ``dual`` or ``single``; ``image_output`` as in :class:`BlockList`."""

    layer: int
    path: str
    kind: str
    image_output: int


@dataclass(frozen=True)
class ModelGeometry:
    """What a capture must know of a model before its weights are loaded.

    Attributes:
        family: the transformer's class name, a key of :data:`FAMILIES`.
        blocks: every layer in running order.
        n_channels: width of the hidden state.
        pixels_per_token: side of the square of pixels that one image token stands for.
        default_side: the model's own picture size, pixels.
        takes_guidance: True where guidance is embedded (distilled).
    """

    family: str
    blocks: tuple[Block, ...]
    n_channels: int
    pixels_per_token: int
    default_side: int
    takes_guidance: bool

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Image tokens along height and width.

        Raises:
            InputError: a side is not a whole number of tokens.
        """
        for name, value in (("height", height), ("width", width)):
            if value % self.pixels_per_token or value < self.pixels_per_token:
                raise InputError(
                    f"{name} is {value} pixels; {self.family} with this VAE takes multiples of {self.pixels_per_token}."
                )
        return height // self.pixels_per_token, width // self.pixels_per_token


FAMILIES: dict[str, Family] = {
    "FluxTransformer2DModel": Family(
        lists=(
            BlockList("transformer_blocks", "dual", image_output=1, count="num_layers"),
            BlockList("single_transformer_blocks", "single", image_output=1, count="num_single_layers"),
        ),
        cells_per_token=2,
    ),
}
