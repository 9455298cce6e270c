"""Bytes for people, both ways."""

import re

from fewchannels.errors import InputError


def size(n_bytes: float) -> str:
    """Bytes for people, in powers of ten: ``165 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" or n_bytes >= 100 else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


def parse_size(text: str) -> int:
    """The bytes that a text such as ``500MB`` or ``2e9`` means, in powers of ten.

    Raises:
        InputError: it means none.
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(k|m|g|t|p)?b?\s*", text.lower())
    try:
        return int(float(match[1]) * 1000 ** " kmgtp".index(match[2] or " "))  # type: ignore[index]
    except (TypeError, ValueError):
        raise InputError(f"{text!r} is no size; give bytes, or kB, MB, GB, TB: 500MB.") from None
