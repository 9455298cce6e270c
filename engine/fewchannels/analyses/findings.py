"""Findings of a run from its finished results: the sentences that the report and the explorer print."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewchannels.analyses import ratio
from fewchannels.analyses.alignment import findings as alignment
from fewchannels.analyses.concentration import findings as concentration
from fewchannels.analyses.document import Finding, Findings
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.stability import findings as stability

ABOUT = (
    "Brackets show 95 % intervals over prompts (Student's t with the jackknife), if there are at least 5 prompts that "
    "differ; "
    "n is the number of units in a mean. Each number is followed by its reference value. "
) + ratio.ABOUT_LAYER
SUBJECTS = {
    "concentration": "Concentration",
    "stability": "Stability",
    "alignment": "Alignment with the subject",
}
"""Titles of findings, by the analysis that is the main source of each."""


@dataclass(frozen=True)
class RunFindings:
    """Findings of a run, and the cells that they describe.

    Attributes:
        extreme: the layer whose largest channel stands out most; None if no cell is usable, so there are no findings.
        best: the cell whose clusters fit the subject best; None without an alignment of top channels.
        sentences: pairs of an analysis of :data:`SUBJECTS` and its finding, in reading order. Without the result of an
            analysis, they are based on ``cells``, as far as possible.
        layers: tables of all layers, by analysis.
        others: labels of finished results that no finding covers: those of other tokens or another branch, or of an
            analysis with another result under its own name.
    """

    extreme: ratio.Extreme | None
    best: alignment.Cell | None
    sentences: Sequence[tuple[str, Finding]]
    layers: Mapping[str, Findings]
    others: Sequence[str]

    @property
    def about(self) -> str:
        """An explanation of the sentences, and the results that they do not cover."""
        if not self.others:
            return ABOUT
        return f"{ABOUT} Not included: {', '.join(self.others)}; each has its own summary.md in results/."

    def of(self, analysis: str) -> list[Finding]:
        """The sentences of an analysis of :data:`SUBJECTS`."""
        return [finding for name, finding in self.sentences if name == analysis]


def of_run(evidence: Evidence) -> RunFindings:
    """Collect every finding that a run's tables allow.

    Args:
        evidence: the run, finished or not.

    Raises:
        StorageError: the run is damaged.
    """
    extreme, best = ratio.extreme(evidence), alignment.best_cell(evidence)
    others = [label for label in evidence.catalog.results if label not in evidence.labels.values()]
    if extreme is None:
        return RunFindings(None, best, [], {}, others)
    sentences: list[tuple[str, Finding | None]] = [
        ("concentration", ratio.ratio(evidence, extreme)),
        ("stability", stability.most_frequent(evidence, extreme)),
        ("stability", stability.overlap(evidence, extreme)),
        ("concentration", ratio.energy(evidence, extreme)),
        ("concentration", concentration.registers(evidence, extreme)),
    ]
    if best is not None:
        aligned = (alignment.at_best, alignment.over_cells, alignment.converged)
        sentences += [("alignment", find(evidence, best)) for find in aligned]
    layers = {}
    if "concentration" in evidence.results:
        layers["concentration"] = Findings(concentration.about(evidence), [concentration.by_layer(evidence)])
    if "stability" in evidence.results:
        joint = stability.spark(evidence)
        layers["stability"] = Findings(stability.ABOUT, [*([joint] if joint else []), stability.by_layer(evidence)])
    told = [(name, each) for name, each in sentences if each is not None]
    return RunFindings(extreme, best, told, layers, others)
