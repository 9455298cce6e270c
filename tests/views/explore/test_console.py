"""The SQL console: how an answer is shown, and what is plotted of it."""

from collections.abc import Iterator

import pandas as pd
import pytest
from flask import Flask
from made_run import make_run

from fewchannels.runs.sql.catalog import Catalog
from fewchannels.views.explore.address import KEYS
from fewchannels.views.explore.console import _readable, _shown, plotted_columns
from fewchannels.views.explore.keys import Keys


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    with Catalog(make_run(tmp_path_factory.mktemp("console") / "run", [{"top_channels": [1]}])) as opened:
        yield opened


GROUPS = "values ('top', 4, 1.0), ('top', 8, 2.0), ('random', 4, 0.1), ('random', 8, 0.2)"


def test_each_group_has_its_line(catalog: Catalog) -> None:
    answer = catalog.sql(f"select selection, k, mse::double as mse from ({GROUPS}) t(selection, k, mse)")
    table = _readable(answer)
    for each in (table, table.astype({"selection": object}), pd.DataFrame(table.to_dict("records"))):
        lines = plotted_columns(each, "k", "mse")
        assert {name: series.y.tolist() for name, series in lines.series.items()} == {
            "random": [0.1, 0.2],
            "top": [1.0, 2.0],
        }
        assert lines.title == "mse against k by selection: means of 4 rows shown"


def test_groups_of_two_columns_are_not_averaged_together(catalog: Catalog) -> None:
    rows = "values ('top', 'mse', 4, 1.0), ('top', 'ssim', 4, 9.0), ('random', 'mse', 4, 0.5), (null, 'mse', 4, 3.0)"
    answer = catalog.sql(f"select a, b, k, x::double as x from ({rows}) t(a, b, k, x)")
    lines = plotted_columns(_readable(answer), "k", "x")
    found = {name: series.y.tolist() for name, series in lines.series.items()}
    assert found == {"top, mse": [1.0], "top, ssim": [9.0], "random, mse": [0.5], "-, mse": [3.0]}


def test_columns_of_equal_names_and_gaps_are_shown(catalog: Catalog) -> None:
    text = "select a.step, b.step, if(a.step = 0, null, 1.5) as gap from cells a join cells b using (layer)"
    with Flask(__name__).test_request_context() as page:
        page.app.extensions[KEYS] = Keys()
        parts = _shown(catalog.sql(text), 1, "run", {"sql": text})[0]
    assert parts[1].rowData == [{"step": 0, "step_1": 0, "gap": None}]
    assert [column["type"] for column in parts[1].columnDefs] == ["rightAligned"] * 2 + [parts[1].columnDefs[2]["type"]]
