"""Distances between the set of edited images and the set of unedited ones, by condition."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from fewchannels.errors import InputError
from fewchannels.interventions.effects.exclusions import excluded
from fewchannels.interventions.metrics.learned import LearnedMetrics
from fewchannels.interventions.metrics.sets import cmmd, frechet_distance, kernel_distance
from fewchannels.runs.images import opened, pixels
from fewchannels.tables import Columns

_BATCH = 64
_UNDISTURBED = -1


class SetDistances:
    """Collect embeddings of a sweep's images, part by part; a few hundred numbers per image.

    Args:
        metrics: learned metrics, of which CLIP and DINO embed images.
        device: ``cuda`` or ``cpu``.

    Raises:
        InputError: a model cannot be loaded.
    """

    def __init__(self, metrics: Sequence[str], device: str) -> None:
        self._models = LearnedMetrics.of(metrics, device)
        self._found: dict[tuple[str, int], list[np.ndarray]] = defaultdict(list)

    def add(self, table: Any) -> None:
        """Embed the images of one part, a ``pyarrow.Table`` of ``edits``."""
        columns = {name: table.column(name).to_pylist() for name in ("role", "condition", "image")}
        left_out = excluded(table.drop_columns(["image"]).to_pandas()).tolist()
        rows = [
            (_UNDISTURBED if role == "undisturbed" else condition, image)
            for role, condition, image, out in zip(*columns.values(), left_out, strict=True)
            if image is not None and not out and role in ("undisturbed", "edited")
        ]
        for first in range(0, len(rows), _BATCH):
            batch = rows[first : first + _BATCH]
            images = torch.stack([pixels(opened(image)) for _, image in batch])
            for model, embedded in self._models.embeddings(images).items():
                for (condition, _), row in zip(batch, embedded, strict=True):
                    self._found[model, condition].append(row)

    def table(self, edits: pd.DataFrame) -> Columns:
        """Columns of ``schemas/effects_sets.yaml``, one row per condition and model.

        Args:
            edits: the sweep's table ``edits``, from which the conditions' settings are taken.
        """
        rows = []
        settings = edits[edits["role"] == "edited"].drop_duplicates("condition").sort_values("condition")
        models = sorted({model for model, _ in self._found})
        for about in settings.to_dict("records"):
            for model in models:
                undisturbed = np.array(self._found[model, _UNDISTURBED])
                edited = np.array(self._found[model, about["condition"]])
                if min(len(edited), len(undisturbed)) > 1:
                    rows.append(about | {"model": model} | _distances(edited, undisturbed))
        names = ("condition", "action", "amount", "selection", "trial", "k", "layers_name", "steps_name", "tokens")
        more = ("model", "n_edited", "n_undisturbed", "frechet", "kernel", "cmmd")
        return {name: [row[name] for row in rows] for name in (*names, *more)}


def _distances(edited: np.ndarray, undisturbed: np.ndarray) -> dict[str, Any]:
    try:
        frechet: float | None = frechet_distance(edited, undisturbed)
    except InputError:  # fewer images than features
        frechet = None
    return {
        "n_edited": len(edited),
        "n_undisturbed": len(undisturbed),
        "frechet": frechet,
        "kernel": kernel_distance(edited, undisturbed),
        "cmmd": cmmd(edited, undisturbed),
    }
