"""Edited images that are excluded from means and tests: not edited, or with non-finite latents."""

import pandas as pd

from fewchannels.interventions.conditions import EDITS, GUIDE


def not_edited(edits: pd.DataFrame) -> pd.Series:
    """Return whether each row's edit selected no token or no channel, so that nothing was edited.

    An edit with a strength of 0 or no channels by its own settings is not counted: it correctly has no effect.

    Args:
        edits: rows of ``schemas/edits.yaml``.
    """
    is_done = (edits["role"] == "edited") & (edits["status"] == "done")
    # Older versions left the measures empty if a sample did not have the steps of the edit.
    had_no_step = edits["n_channels"].isna() & (edits["mse"] == 0) & edits["action"].isin(EDITS)
    nothing = (edits["n_channels"] == 0) | (edits["token_share"] == 0) | had_no_step
    intended = (edits["amount"] == 0) | ((edits["k"] == 0) & (edits["selection"] != "all"))
    return is_done & edits["action"].isin((*EDITS, GUIDE)) & nothing & ~intended


def not_finite(edits: pd.DataFrame) -> pd.Series:
    """Return whether the latents of each row's image, or of its baseline, contained a NaN or an infinity.

    Args:
        edits: rows of ``schemas/edits.yaml``, of whole items.
    """
    broken = edits["nonfinite_steps"].fillna(0) > 0
    compared = edits.loc[broken & (edits["role"] == "undisturbed"), "item"]
    blended = edits.loc[broken & (edits["role"] == "source"), "item"]
    by_compared = (edits["role"] == "edited") & edits["item"].isin(compared)
    return broken | by_compared | ((edits["action"] == "pixels") & edits["item"].isin(blended))


def excluded(edits: pd.DataFrame) -> pd.Series:
    """Return whether each row is excluded from means, contrasts and tests, although its image was generated."""
    return not_edited(edits) | not_finite(edits)
