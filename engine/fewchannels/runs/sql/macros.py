"""The catalog's own functions that a query may call: the intervals of ``measures.intervals``."""

import duckdb

_FEWEST = 5  # clusters, as in measures.intervals, which needs SciPy
_DEFINITIONS = {
    # Student's 97.5 % quantile by Cornish and Fisher's expansion: off by less than 0.001 from 4 degrees of freedom on.
    "student_t(df)": "1.959964 + 2.372271 / df + 2.822499 / df ** 2 + 2.555852 / df ** 3 + 1.589534 / df ** 4",
    # The ends of an interval whose half width at the mean is ``reach``: the quadratic equation, see cluster_interval.
    "_end(mean, reach, least, most, sign)": """
        case
            when reach is null or mean <= least or mean >= most then null
            when isinf(least) and isinf(most) then mean + sign * reach
            when isinf(most)
                then mean + reach ** 2 / (mean - least) / 2
                + sign * sqrt(reach ** 2 + (reach ** 2 / (mean - least) / 2) ** 2)
            when isinf(least)
                then mean - reach ** 2 / (most - mean) / 2
                + sign * sqrt(reach ** 2 + (reach ** 2 / (most - mean) / 2) ** 2)
            else (
                mean + reach ** 2 / ((mean - least) * (most - mean)) * (least + most) / 2
                + sign * sqrt(
                    reach ** 2 + (reach ** 2 / ((mean - least) * (most - mean)) * (most - least) / 2) ** 2
                )
            ) / (1 + reach ** 2 / ((mean - least) * (most - mean)))
        end""",
    "_reach(error, n)": f"case when n >= {_FEWEST} and error > 1e-9 then student_t(n - 1) * error end",
    # greatest and least ignore null, which must be kept.
    "_inside(value, lowest, most)": "case when value is null then null else greatest(lowest, least(most, value)) end",
    "interval_low(mean, error, n, least, most)": """
        _inside(
            round(_end(mean::double, _reach(error, n), least::double, most::double, -1), 9), least::double, most::double
        )""",
    "interval_high(mean, error, n, least, most)": """
        _inside(
            round(_end(mean::double, _reach(error, n), least::double, most::double, 1), 9), least::double, most::double
        )""",
}
MACROS = frozenset(head.partition("(")[0] for head in _DEFINITIONS)
"""Their names: ``interval_low`` and ``interval_high`` of a mean, its standard error over n clusters, and its range."""


def define(connection: duckdb.DuckDBPyConnection) -> None:
    """Define them in a database."""
    for head, body in _DEFINITIONS.items():
        connection.execute(f"create macro {head} as {body}")
