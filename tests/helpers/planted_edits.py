"""A sweep's table ``edits`` made from a few rows, as a sweep writes it and a reader gets it."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from fewchannels.tables import as_columns, from_parquet, to_parquet


def condition(place: int, **settings: Any) -> dict[str, Any]:
    """A condition's columns of ``edits``: what is given, and the usual settings for the rest."""
    filled = {
        "action": "zero",
        "amount": 1.0,
        "selection": "top",
        "trial": 0,
        "k": 8,
        "scores_from": "undisturbed",
        "layers_name": "0-5",
        "steps_name": "0-3",
        "streams": "image",
        "tokens": "all",
        "placement": "same",
    } | settings
    is_control = filled["selection"] not in ("top", "listed")
    return filled | {"condition": place, "condition_id": f"{place:016x}", "is_control": is_control}


def picture(item: int, **columns: Any) -> dict[str, Any]:
    """A row of ``edits``: what is given, and plain values for the rest. Without a role it is an edited image."""
    return {
        "item": item,
        "item_id": f"item{item}",
        "sample_id": f"sample{item}",
        "task": 0,
        "role": "edited",
        "prompt": f"prompt {item}",
        "seed": 0,
        "status": "done",
        "width": 16,
        "height": 16,
        "attempt": 1,
    } | columns


def as_table(rows: Sequence[dict[str, Any]]) -> Any:
    """The ``pyarrow.Table`` of rows that went through Parquet."""
    return from_parquet(to_parquet("edits", as_columns("edits", rows)))


def edits_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The frame of rows that went through Parquet."""
    return as_table(rows).to_pandas()


def png_of(*colour: int, size: tuple[int, int] = (16, 16)) -> bytes:
    """An image of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def planted(
    settings: Sequence[dict[str, Any]],
    shift: dict[str, float],
    *,
    n_prompts: int = 12,
    n_seeds: int = 2,
    with_images: bool = False,
    seed: int = 0,
) -> pd.DataFrame:
    """A sweep whose mse is a prompt's own level plus what each selection adds, and whose top edits lose the shape.

    Args:
        settings: of the conditions, as :func:`condition` takes them.
        shift: what each selection adds to mse, for each channel of k.
        n_prompts: of the samples.
        n_seeds: samples of each prompt.
        with_images: whether rows hold images, redder the larger their mse.
        seed: of the levels.
    """
    random = np.random.default_rng(seed)
    rows = []
    conditions = [condition(i, **each) for i, each in enumerate(settings)]
    for item in range(n_prompts * n_seeds):
        prompt = {"prompt": f"prompt {item % n_prompts}", "seed": item // n_prompts}
        level = 0.05 + 0.02 * random.random()
        about = {"shows_shape": True, "n_shown": 5, "clip_score": 30.0}
        rows.append(picture(item, role="undisturbed", image=png_of(40, 90, 160), **prompt, **about))
        for each in conditions:
            mse = level + shift[each["selection"]] * each["k"] * each["amount"] + 0.002 * random.random()
            held = each["selection"] != "top" or item % 4 == 0
            about = {"shows_shape": held, "n_shown": 5 if held else 2, "clip_score": 30 - 100 * mse, "mse": mse}
            about |= {
                "change": shift[each["selection"]] * each["k"],
                "n_channels": 128 if each["selection"] == "all" else each["k"],
                "energy_share": 0.5,
            }
            image = png_of(min(255, int(1500 * mse)), 90, 160) if with_images else None
            rows.append(picture(item, image=image, **prompt, **each, **about))
    return edits_of(rows)
