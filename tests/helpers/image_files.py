"""Images as files have them: in any format, and stored under any EXIF orientation."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "images.md"
STORED = {  # how an upright array is stored under each EXIF orientation, by the standard's figure of the letter F
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, 1),
    7: lambda a: np.rot90(np.swapaxes(a, 0, 1), 2),
    8: lambda a: np.rot90(a, -1),
}


def stored(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif
