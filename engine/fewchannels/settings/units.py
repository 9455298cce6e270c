"""Numbers for people, and bytes both ways."""

import math
import re
from dataclasses import dataclass
from typing import Any

from fewchannels.settings.ranges import Whole, parsed

_MOST_BYTES = 10**18


def number(value: float) -> str:
    """Format a number to three digits, but with all digits of its integer part: ``0.0268``, ``19.7``, ``1,446``."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def size(n_bytes: float) -> str:
    """Bytes for people, in powers of ten: ``165 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(n_bytes) < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "bytes" or n_bytes >= 100 else f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} TB"


@dataclass(frozen=True)
class Size:
    """The rule of a number of bytes, which is written such as ``500MB`` or ``2e9``, in powers of ten."""

    def parse(self, text: str) -> Any:
        """The bytes; the text itself where it means none."""
        # Not pydantic's ByteSize, which takes the first number it sees: of 1.2.3MB, 1.2.
        match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(k|m|g|t|p)?b?\s*", text.lower())
        try:
            return int(float(match[1]) * 1000 ** " kmgtp".index(match[2] or " "))  # type: ignore[index]
        except (TypeError, ValueError, OverflowError):
            return text

    def fault(self, value: Any) -> str:
        """See :class:`fewchannels.settings.ranges.Rule`."""
        if isinstance(value, str):
            return "it must be bytes up to 1e18, or kB, MB, GB, TB: 500MB"
        return Whole(1, _MOST_BYTES).fault(value)

    def in_short(self) -> str:
        """See :class:`fewchannels.settings.ranges.Rule`."""
        return ""


def parse_size(text: str) -> int:
    """The bytes that a text such as ``500MB`` or ``2e9`` means, in powers of ten.

    Raises:
        InputError: it means none, or one that no store has.
    """
    return parsed("the size", text, Size())
