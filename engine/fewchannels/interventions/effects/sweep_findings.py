"""Findings of a sweep from its finished items: the sentences that the report and the explorer print."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from fewchannels.analyses.document import Finding, How
from fewchannels.analyses.evidence import Evidence
from fewchannels.interventions.effects.contrasts import contrasts, means
from fewchannels.interventions.effects.figures import main_metrics
from fewchannels.interventions.effects.findings import Headline, headline, of_sweep
from fewchannels.runs.ledger import Ledger
from fewchannels.runs.results import Results
from fewchannels.runs.sql.progress import are_current

_ABOUT = (
    "Differences are top channels (or listed ones) minus a control, paired by item; random draws are averaged per "
    "item, then items per prompt. Brackets show 95 % intervals over prompts; d_z is the mean over the standard "
    "deviation of prompts; q is Benjamini and Hochberg's over the sweep's {n} tests (edit sizes, non-finite steps, and "
    "contrasts without any difference are not tested). A difference is significant if its interval excludes zero and q "
    "is below 0.05."
)


@dataclass(frozen=True)
class SweepFindings:
    """Findings of a sweep, and their sources.

    Attributes:
        averages: result of :func:`fewchannels.interventions.effects.contrasts.means`.
        about: explanation of the sentences.
        main: the main metrics.
        chosen: the setting that is described in full; None if nothing was edited.
        sentences: sentences in reading order.
        first: the command that writes the tables for the queries, if they do not cover all finished items.
    """

    averages: pd.DataFrame
    about: str
    main: Sequence[str]
    chosen: Headline | None
    sentences: Sequence[Finding]
    first: Sequence[How]


def find(
    evidence: Evidence, edits: pd.DataFrame, on_progress: Callable[[int, int], None] = lambda done, total: None
) -> SweepFindings:
    """Collect every finding that a sweep's finished items allow.

    Args:
        evidence: the sweep, finished or not.
        edits: rows of the sweep, at least one of them edited; images are not used.
        on_progress: called with the number measured, and the total.

    Raises:
        StorageError: the sweep is damaged.
    """
    on_progress(0, 3)
    averages = means(edits)
    on_progress(1, 3)
    differences = contrasts(edits)
    on_progress(2, 3)
    main, chosen = main_metrics(averages), headline(averages, differences)
    first = [] if _has_effects(evidence) else [evidence.command("plot", evidence.place)]
    sets = evidence.ask("select * from effects_sets") if "effects_sets" in evidence.catalog.views else None

    def asked(text: str) -> list[How]:
        return [*(how for how in first if "effects_sets" not in text), evidence.sql(text)]

    found = of_sweep(averages, differences, main, chosen, asked, sets) if main else []
    about = _ABOUT.format(n=f"{int(differences['p'].notna().sum()):,}")
    return SweepFindings(averages, about, main, chosen, found, first)


def _has_effects(evidence: Evidence) -> bool:
    """Return whether the stored effects cover all items that are finished now."""
    if "effects" not in evidence.catalog.results:
        return False
    records = Ledger(evidence.storage).records(evidence.description["fingerprint"])
    return are_current(Results(evidence.storage, "effects").read()["settings"], records)
