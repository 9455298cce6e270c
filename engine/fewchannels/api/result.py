"""Results of an analysis or a comparison: tables, findings and figures."""

import html
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fewchannels.errors import unknown
from fewchannels.settings.arguments import checked

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

    from fewchannels.analyses.summary import Summary
    from fewchannels.runs.sql.answer import Answer


class Result:
    """A finished result.

    Args:
        name: name of the analysis, such as ``stability``.
        place: folder or URL of its files.
        summary: findings and figures.
        views: name of the SQL view of each table.
        ask: function that runs SQL on these views.

    Attributes:
        name: name of the analysis.
        place: folder or URL of its files: tables as Parquet, figures as PNG and SVG, ``summary.md``.
        numbers: the numbers of the findings, as plain Python values.
        text: the summary, Markdown.
    """

    def __init__(
        self,
        name: str,
        place: str,
        summary: "Summary",
        views: Mapping[str, str],
        ask: "Callable[[str], Answer]",
    ) -> None:
        self.name, self.place = name, place
        self.numbers: dict[str, Any] = summary.numbers
        self.text: str = summary.text
        self._summary, self._views, self._ask = summary, dict(views), ask

    @property
    def findings(self) -> list[str]:
        """The findings: one sentence each, with its interval and its control."""
        return [each.text for each in self._summary.findings]

    @property
    def tables(self) -> list[str]:
        """Names of the tables: see :meth:`table`."""
        return list(self._views)

    @checked
    def table(self, name: str) -> "pd.DataFrame":
        """A table; its columns are described in ``schemas/``.

        Raises:
            InputError: there is no such table.
        """
        if name not in self._views:
            raise unknown(f"table of {self.name}", name, self._views)
        return self._ask(f"select * from {self._views[name]}").df()

    @property
    def figures(self) -> list[str]:
        """Names of the figures: see :meth:`plot`."""
        return [each.name for each in self._summary.figures]

    @checked
    def plot(self, figure: str | None = None, *, interactive: bool = False) -> "Figure | go.Figure":
        """Draw a figure.

        Args:
            figure: name of the figure; None for the first.
            interactive: whether to return a Plotly figure instead of a Matplotlib figure.

        Raises:
            InputError: there is no such figure.
        """
        drawings = {each.name: each.drawing for each in self._summary.figures}
        name = next(iter(drawings), "") if figure is None else figure
        if name not in drawings:
            raise unknown(f"figure of {self.name}", name, drawings or ["none: this result has no figures"])
        if interactive:
            from fewchannels.analyses.figures.interactive import interactive as as_plotly

            return as_plotly(drawings[name])
        from fewchannels.analyses.figures.still import drawn

        return drawn(drawings[name])

    def __repr__(self) -> str:
        return f"Result({self.name}: {len(self.findings)} findings, tables {', '.join(self.tables) or 'none'})"

    def _repr_html_(self) -> str:
        """The findings, for notebooks."""
        sentences = "".join(f"<li>{html.escape(each)}</li>" for each in self.findings)
        more = [f"tables: {', '.join(self.tables)}"] + [f"figures: {', '.join(self.figures)}"] * bool(self.figures)
        return f"<b>{html.escape(self.name)}</b><ul>{sentences}</ul><p>{html.escape('; '.join(more))}</p>"
