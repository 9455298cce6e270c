"""Pictures as they are stored, and as they are measured."""

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def pixels(image: Image.Image) -> Tensor:
    """A picture as ``(rgb, y, x)`` float32 in [0, 1]."""
    return torch.from_numpy(np.asarray(image.convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)
