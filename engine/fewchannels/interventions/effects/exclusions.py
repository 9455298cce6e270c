"""Edited images that are in no mean and no test: those that were not edited, and those of latents that broke."""

import pandas as pd

from fewchannels.interventions.conditions import EDITS, GUIDE


def not_edited(edits: pd.DataFrame) -> pd.Series:
    """Return whether each row is of an edit that chose no token or no channel, so that nothing was edited.

    An edit that is of no strength, or of no channels, by its own settings is not among them: its effect is none.

    Args:
        edits: rows of ``schemas/edits.yaml``.
    """
    is_done = (edits["role"] == "edited") & (edits["status"] == "done")
    # Older versions left the measures of an edit whose steps a sample did not have empty.
    had_no_step = edits["n_channels"].isna() & (edits["mse"] == 0) & edits["action"].isin(EDITS)
    nothing = (edits["n_channels"] == 0) | (edits["token_share"] == 0) | had_no_step
    intended = (edits["amount"] == 0) | ((edits["k"] == 0) & (edits["selection"] != "all"))
    return is_done & edits["action"].isin((*EDITS, GUIDE)) & nothing & ~intended


def not_finite(edits: pd.DataFrame) -> pd.Series:
    """Whether the latents of each row's image, or of the image it is compared with, contained a NaN or an infinity.

    Args:
        edits: rows of ``schemas/edits.yaml``, of whole items.
    """
    broken = edits["nonfinite_steps"].fillna(0) > 0
    compared = edits.loc[broken & (edits["role"] == "undisturbed"), "item"]
    blended = edits.loc[broken & (edits["role"] == "source"), "item"]
    by_compared = (edits["role"] == "edited") & edits["item"].isin(compared)
    return broken | by_compared | ((edits["action"] == "pixels") & edits["item"].isin(blended))


def excluded(edits: pd.DataFrame) -> pd.Series:
    """Return whether each row is in no mean, no contrast and no test, although its image was made."""
    return not_edited(edits) | not_finite(edits)
