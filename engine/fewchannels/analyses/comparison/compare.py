"""Summarize the cells of a comparison: tables with intervals, figures and a page, in their own folder."""

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from fewchannels.analyses.analysis import Progress, finish, plain, versions, work_off
from fewchannels.analyses.comparison.figures import figures, steps_in_words, title
from fewchannels.analyses.comparison.findings import findings, warnings
from fewchannels.analyses.comparison.pairing import (
    METRICS,
    RANGES,
    Cells,
    Criteria,
    Pairing,
    Side,
    Unit,
    cells,
    place,
)
from fewchannels.analyses.evidence import Evidence
from fewchannels.analyses.summary import Summary, page
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.measures.intervals import Interval, cluster_interval, pair_interval
from fewchannels.measures.overlap import expected_jaccard, pair_overlap
from fewchannels.runs.description import COMPARISON_FORMAT_VERSION
from fewchannels.runs.lease import check_held, hold
from fewchannels.runs.results import ComparisonResults, Rows
from fewchannels.runs.storage import Storage
from fewchannels.tables import Columns, as_columns, to_parquet

TABLES = ("agreement", "differences", "profiles", "samples")
_Means = tuple[str, Rows, dict[str, Any], np.ndarray]
_Found = tuple[dict[str, Rows], Columns | None]


def compare(
    pairing: Pairing,
    criteria: Criteria,
    out: Storage,
    pool: Pool,
    *,
    replace: bool = False,
    on_progress: Progress = lambda done, total: None,
) -> Summary:
    """Compare two runs, and write the results, ``comparison.json`` last. An interrupted comparison resumes.

    Args:
        pairing: matched parts of the runs.
        criteria: criteria of the comparison.
        out: location of the comparison.
        pool: pool of workers; a single worker runs in this process, without Ray.
        replace: whether to delete a different comparison there.
        on_progress: called with the layers done so far and in all.

    Raises:
        InputError: the runs cannot be compared.
        RunConflictError: the location contains something else, or another command is writing to it.
    """
    if criteria.k > min(pairing.n_channels):
        raise InputError(f"k is {criteria.k}; the runs have {' and '.join(map(str, pairing.n_channels))} channels.")
    units = pairing.units()
    identity = plain(_identity(pairing, criteria))
    _refuse_runs(pairing, out)
    results = ComparisonResults(out)
    results.check_place()
    with hold(out) as token:
        done = results.begin(identity, replace=replace)
        started = time.monotonic()

        def take(number: int, found: _Found) -> None:
            layer = units[number].sides[0].selected.layout.blocks[units[number].layers[0]].layer
            check_held(out, token)
            results.write_layer(number, plain(found[0]), layer, found[1])

        work_off(partial(_work, pairing, criteria, units), range(len(units)), done, pool, on_progress, take)
        by_unit = results.rows()
        tables = {name: [row for i in range(len(units)) for row in by_unit[i][name]] for name in TABLES[:-1]}
        about = {
            "format_version": COMPARISON_FORMAT_VERSION,
            "identity": identity,
            "runs": {"a": pairing.a.selected.run, "b": pairing.b.selected.run},
            "numbers": numbers(pairing, criteria, {name: pd.DataFrame(rows) for name, rows in tables.items()}),
            "seconds": round(time.monotonic() - started, 2),
            "versions": versions(),
        }
        schemas = {name: f"comparison_{name}" for name in TABLES}
        parquet = {
            f"{name}.parquet": bytes(to_parquet(schemas[name], as_columns(schemas[name], rows)))
            for name, rows in tables.items()
        }
        return finish(results, out.url, about, schemas, parquet, _end, token)


def _end(evidence: Evidence) -> Summary:
    about, drawn, found = evidence.description, figures(evidence), findings(evidence)
    names = [figure.name for figure in drawn]
    text = page(_title(about["runs"]), _about(about["numbers"]), found, names=names)
    return Summary(about["numbers"], text, found, drawn)


def _refuse_runs(pairing: Pairing, out: Storage) -> None:
    for side in (pairing.a, pairing.b):
        run = side.selected.storage.location("").rstrip("/")
        if f"{out.location('')}/".startswith(f"{run}/"):
            raise InputError(
                f"--out is {out.url!r}, which is in the run {side.selected.run!r}; choose a folder outside both runs."
            )


def _identity(pairing: Pairing, criteria: Criteria) -> dict[str, Any]:
    ids = hashlib.sha256("\n".join(pairing.sample_ids).encode()).hexdigest()[:16]
    return {
        "a": pairing.a.selected.identity(),
        "b": pairing.b.selected.identity(),
        "criteria": asdict(criteria),
        "sample_ids": ids,
        "layers_by": pairing.layers_by,
        "steps_by": pairing.steps_by,
    }


def _work(pairing: Pairing, criteria: Criteria, units: list[Unit], number: int) -> _Found:
    return tabulate(pairing, criteria, units[number], cells(pairing, criteria, units[number]))


def tabulate(pairing: Pairing, criteria: Criteria, unit: Unit, found: Cells) -> _Found:
    """A unit's rows of ``agreement``, ``differences`` and ``profiles``; for a layer of both, its ``samples`` columns.

    A mean is over the samples with a finite value, whose number is in its row.
    """
    own = [_places(side, layer, steps) for side, layer, steps in zip(unit.sides, unit.layers, unit.steps, strict=True)]
    means: list[_Means] = [
        ("profiles", own[i], {"metric": metric}, found.metrics[i][j])
        for i in range(len(own))
        for j, metric in enumerate(METRICS)
    ]
    rows: dict[str, Rows] = {name: [] for name in TABLES[:-1]}
    samples = None
    if len(own) == 2:
        both = [
            {"layer_a": a["layer"], "step_a": a["step"], "layer_b": b["layer"], "step_b": b["step"]}
            for a, b in zip(*own, strict=True)
        ]
        change = found.metrics[1] - found.metrics[0]
        means += [("differences", both, {"metric": metric}, change[j]) for j, metric in enumerate(METRICS)]
        samples = _samples(pairing, both, found)
        if len(set(pairing.n_channels)) == 1:
            chance = expected_jaccard(criteria.k, pairing.n_channels[0])
            about = {"score": criteria.score, "k": criteria.k, "measure": "jaccard", "chance": chance}
            ranks = about | {"k": None, "measure": "spearman", "chance": 0.0}
            means += [("agreement", both, about | {"kind": "matched"}, found.jaccard)]
            means += [("agreement", both, ranks | {"kind": "matched"}, found.spearman)]
            rows["agreement"] += [row | about for row in _pairs(pairing, both, found)]
    of_prompt = csr_array((np.ones(len(pairing.prompts)), (pairing.prompts, np.arange(len(pairing.prompts)))))
    values = np.concatenate([each for *_, each in means], axis=1)
    known = np.isfinite(values)
    counts = of_prompt @ known.astype(np.float64)
    ranges = [_range(table, about) for table, places, about, _ in means for _ in places]
    interval = cluster_interval(of_prompt @ np.where(known, values, 0), counts, *np.transpose(ranges))
    n_prompts = (counts > 0).sum(axis=0)
    column = 0
    for table, places, about, _ in means:
        for at in places:
            n = {"n" if table == "agreement" else "n_samples": int(counts[:, column].sum())}
            n["n_prompts"] = int(n_prompts[column])
            rows[table].append(at | about | n | _ends(interval, column))
            column += 1
    return rows, samples


def _range(table: str, about: Mapping[str, Any]) -> tuple[float, float]:
    """The smallest and the largest possible value of a row; for a difference, plus or minus its metric's range."""
    if table == "agreement":
        return (0.0, 1.0) if about["measure"] == "jaccard" else (-1.0, 1.0)
    least, most = RANGES[about["metric"]]
    return (least, most) if table == "profiles" else (least - most, most - least)


def _places(side: Side, layer: int, steps: Sequence[int]) -> Rows:
    """Columns that identify a run's cells, step by step."""
    layout = side.selected.layout
    number = layout.blocks[layer].layer
    about = {"run": side.name, "layer": number, "depth": place(number, side.n_layers)}
    return [about | {"step": layout.steps[i], "progress": place(layout.steps[i], side.n_steps)} for i in steps]


def _ends(interval: Interval, column: int) -> dict[str, float | None]:
    found = zip(("mean", "low", "high"), interval, strict=True)
    return {name: float(values[column]) if np.isfinite(values[column]) else None for name, values in found}


def _samples(pairing: Pairing, places: Rows, found: Cells) -> Columns:
    n, n_steps = found.jaccard.shape
    named = {name: np.tile([at[name] for at in places], n) for name in places[0]}
    metrics = {
        f"{metric}_{side}": found.metrics[i][j].ravel()
        for j, metric in enumerate(METRICS)
        for i, side in enumerate("ab")
    }
    ids = np.repeat(np.array(pairing.sample_ids, object), n_steps)
    return {"sample_id": ids, "jaccard": found.jaccard.ravel(), "spearman": found.spearman.ravel()} | named | metrics


def _pairs(pairing: Pairing, places: Rows, found: Cells) -> Iterator[dict[str, Any]]:
    """Overlap of two samples of one run, the reference for that of one sample in two runs."""
    n_prompts = int(pairing.prompts.max()) + 1
    known = np.isfinite(found.jaccard)
    for side, channels in zip("ab", found.channels, strict=True):
        sums = {kind: np.zeros((2, n_prompts, len(places))) for kind in ("within", "across")}
        for step in range(len(places)):
            if not (own := known[:, step]).any():
                continue
            overlap = pair_overlap(channels[own, step], pairing.prompts[own])
            for kind, pairs in (("within", overlap.within), ("across", overlap.across)):
                sums[kind][:, overlap.groups, step] = pairs.jaccard, pairs.n_pairs
        for kind, interval_of, prompts_per_pair in (("within", cluster_interval, 1), ("across", pair_interval, 2)):
            jaccard, counts = sums[kind]
            interval = interval_of(jaccard, counts, 0, 1)
            for step, at in enumerate(places):
                if n := int(counts[:, step].sum()) // prompts_per_pair:
                    n_own = int((counts[:, step] > 0).sum())
                    yield at | {"kind": f"{kind}_{side}", "n": n, "n_prompts": n_own} | _ends(interval, step)


def numbers(pairing: Pairing, criteria: Criteria, tables: dict[str, pd.DataFrame]) -> dict[str, Any]:
    """Settings of the comparison, and every layer at the last common step, as plain values."""
    differing, agreement, profiles = (tables[name] for name in ("differences", "agreement", "profiles"))
    step_a = int(differing["step_a"].max())
    step_b = int(differing.loc[differing["step_a"] == step_a, "step_b"].iloc[0])
    last = {
        "a": profiles[(profiles["run"] == "a") & (profiles["step"] == step_a)],
        "b": profiles[(profiles["run"] == "b") & (profiles["step"] == step_b)],
    }
    by_layer = []
    for layer_a, rows in differing[differing["step_a"] == step_a].groupby("layer_a"):
        layer_b = rows["layer_b"].iloc[0]
        found: dict[str, Any] = {"layer_a": int(rows["layer_a"].iloc[0]), "layer_b": int(layer_b)}
        for side, layer in (("a", layer_a), ("b", layer_b)):
            own = last[side][last[side]["layer"] == layer]
            found |= {f"{row['metric']}_{side}": _ranged(row) for _, row in own.iterrows()}
        found |= {f"{row['metric']}_difference": _ranged(row) for _, row in rows.iterrows()}
        if len(agreement):
            own = agreement[(agreement["step_a"] == step_a) & (agreement["layer_a"] == layer_a)]
            found |= {_key(row): _ranged(row) for _, row in own.iterrows()}
            found["chance"] = [float(own["chance"].max())]
        by_layer.append(found)
    n_known = differing.loc[differing["metric"] == METRICS[0], "n_samples"]
    return {
        "n_samples": len(pairing.sample_ids),
        "n_prompts": int(pairing.prompts.max()) + 1,
        "n_only_a": pairing.n_only[0],
        "n_only_b": pairing.n_only[1],
        "n_cells_left_out": int((len(pairing.sample_ids) - n_known).sum()),
        "n_channels_a": pairing.n_channels[0],
        "n_channels_b": pairing.n_channels[1],
        "layers_by": pairing.layers_by,
        "steps_by": pairing.steps_by,
        "settings": list(pairing.settings),
        **asdict(criteria),
        "step_a": step_a,
        "step_b": step_b,
        "layers": by_layer,
    }


def _key(row: pd.Series) -> str:
    return row["measure"] if row["kind"] == "matched" else row["kind"]


def _ranged(row: pd.Series) -> list[float | None]:
    return [None if pd.isna(row[name]) else float(f"{row[name]:.6g}") for name in ("mean", "low", "high")]


def _title(runs: Mapping[str, str]) -> str:
    return " against ".join(title(side, run) for side, run in runs.items())


def _about(numbers: Mapping[str, Any]) -> str:
    """Description of the comparison, in Markdown."""
    said = (
        f"{numbers['n_samples']:,} samples of {numbers['n_prompts']:,} prompts, finished in both runs and matched by "
        f"sample_id; {numbers['n_only_a']:,} of A and {numbers['n_only_b']:,} of B have no match. Layers are matched "
        f"by {numbers['layers_by']}, steps by {numbers['steps_by']}. Channels are ranked by `{numbers['score']}` in "
        f"both, k = {numbers['k']}. S{steps_in_words(numbers)[1:]}; means, with 95 % intervals over prompts in "
        "brackets."
    )
    lines = [said, "", *(line for each in warnings(numbers) for line in (each, ""))]
    if numbers["settings"]:
        return "\n".join([*lines, "Settings that differ, A's -> B's:", "", *_listed(numbers["settings"])])
    return "\n".join([*lines, "Captured with the same settings."])


def _listed(settings: Sequence[str]) -> list[str]:
    return [f"- `{line}`" for line in settings]
