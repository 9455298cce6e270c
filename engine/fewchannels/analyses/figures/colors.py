"""Colors of maps: perceptually uniform, distinguished by people with any common color vision."""

import matplotlib
import numpy as np

# Okabe and Ito 2008: distinguished by people with any common color vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MAP = "viridis"
DIFFERENCE = "PuOr_r"  # purple and orange, white at zero


def as_rgb(color: str, alpha: float) -> str:
    """``#RRGGBB`` as CSS with an opacity."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha:g})"


def colored(values: np.ndarray, low: float | None = None, high: float | None = None, name: str = MAP) -> np.ndarray:
    """Values as colors.

    Args:
        values: ``(y, x)``; NaN becomes gray.
        low: value of the darkest color; None for the minimum.
        high: value of the brightest color; None for the maximum.
        name: name of a Matplotlib color map.

    Returns:
        ``(y, x, rgb)`` uint8.
    """
    finite = values[np.isfinite(values)]
    if low is None:
        low = float(finite.min()) if finite.size else 0.0
    if high is None:
        high = float(finite.max()) if finite.size else 0.0
    span = float(high) - float(low)
    scaled = np.clip((np.where(np.isfinite(values), values, low) - low) / span, 0, 1) if span > 0 else 0.0 * values
    rgb = np.round(255 * matplotlib.colormaps[name](scaled)[..., :3]).astype(np.uint8)
    rgb[~np.isfinite(values)] = 128
    return rgb
