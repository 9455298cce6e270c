"""Means over samples by cell, against arithmetic by hand."""

import numpy as np
import pandas as pd
import pytest

from fewchannels.measures.means import means


@pytest.mark.parametrize("cell", [["layer"], ["layer", "step"]])
def test_every_cell_has_its_own_mean_however_many_columns_name_it(cell: list[str]) -> None:
    values = [1.0, 3, 1, 3, 2, 2, 5, 9, 5, 9, 7, 7]
    rows = pd.DataFrame({"layer": [0] * 6 + [1] * 6, "step": 3, "prompt": [*range(6)] * 2, "iou": values})
    rows["area"] = rows["iou"] / 10
    found = means([rows[:3], rows[3:]], cell, ["area"], ["iou"], 6)
    np.testing.assert_allclose(found["iou"], [2, 7])
    np.testing.assert_allclose(found["area"], [0.2, 0.7])
    assert found["n_samples"].tolist() == found["n_prompts"].tolist() == [6, 6]
    assert (found["iou_low"] < found["iou"]).all()
