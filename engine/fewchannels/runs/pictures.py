"""Pictures as they are stored, and as they are measured."""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fewchannels.errors import StorageError

if TYPE_CHECKING:
    from torch import Tensor


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    """A stored picture, all of it read.

    Raises:
        StorageError: the bytes are damaged, or not a picture.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise StorageError(
            f"a stored picture of {len(data):,} bytes is damaged: {error}. Run fewchannels runs verify to see "
            "which sample it belongs to."
        ) from None
    return image


def pixels(image: Image.Image) -> "Tensor":
    """A picture as ``(rgb, y, x)`` float32 in [0, 1]."""
    import torch

    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)
