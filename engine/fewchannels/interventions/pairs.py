"""Pairs of targets and sources: two prompts, or a prompt and a reference image."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewchannels.errors import InputError
from fewchannels.interventions.rows import pair_id
from fewchannels.interventions.settings import MOST_PAIRS, PairRule
from fewchannels.manifest import Manifest, columns
from fewchannels.tables import Columns, as_columns

_MOST_TRIES = 200


def pairs_of_samples(manifest: Manifest, rule: PairRule) -> Columns:
    """Pairs of a manifest's samples with different prompts, in the columns of ``schemas/pairs.yaml``.

    Args:
        manifest: manifest of the samples.
        rule: rule for choosing pairs; random pairs are distinct, and all allowed pairs are equally likely.

    Raises:
        InputError: the manifest lacks a column, or allows too few pairs.
    """
    rows = columns(manifest.open(), ["sample_id", "prompt", "seed", "mask", *rule.within, *rule.across])
    n = len(rows["prompt"])
    codes = {name: _codes(rows[name]) for name in ("prompt", *rule.within, *rule.across)}

    def allowed(target: np.ndarray, source: np.ndarray) -> np.ndarray:
        fits = codes["prompt"][target] != codes["prompt"][source]
        return fits & _by_columns(rule, codes, codes, target, source)

    return _columns(
        [
            {
                "target_id": rows["sample_id"][target],
                "target_row": target,
                "source_id": rows["sample_id"][source],
                "source_row": source,
                "source_prompt": rows["prompt"][source],
                "source_seed": rows["seed"][target if rule.noise == "shared" else source],
                "mask": rows["mask"][target],
            }
            for target, source in _chosen(n, n, allowed, rule)
        ]
    )


def pairs_with_images(manifest: Manifest, references: Path, rule: PairRule) -> Columns:
    """Pairs of a manifest's samples with reference images.

    Args:
        manifest: manifest of targets.
        references: a manifest whose columns ``reference`` and ``mask`` name images and their subjects' masks; its
            prompts are the images' captions.
        rule: rule for choosing pairs; its columns must be in both manifests.

    Raises:
        InputError: a manifest lacks a column or an image, or allows too few pairs.
    """
    names = [*rule.within, *rule.across]
    targets = columns(manifest.open(), ["sample_id", "seed", *names])
    images = columns(references, ["prompt", "seed", "reference", "mask", *names])
    missing = [i for i, each in enumerate(images["reference"]) if each is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(images['prompt'])} rows of {str(references)!r} have no reference image; the "
            f"first is row {missing[0]}. Fill the reference column."
        )
    both = {name: _codes([*targets[name], *images[name]]) for name in names}
    n_targets = len(targets["seed"])

    of_targets = {name: codes[:n_targets] for name, codes in both.items()}
    of_images = {name: codes[n_targets:] for name, codes in both.items()}

    def allowed(target: np.ndarray, source: np.ndarray) -> np.ndarray:
        return _by_columns(rule, of_targets, of_images, target, source)

    return _columns(
        [
            {
                "target_id": targets["sample_id"][target],
                "target_row": target,
                "source_prompt": images["prompt"][source],
                "source_seed": targets["seed"][target] if rule.noise == "shared" else images["seed"][source],
                "reference": images["reference"][source],
                "mask": images["mask"][source],
            }
            for target, source in _chosen(n_targets, len(images["prompt"]), allowed, rule)
        ]
    )


def pairs_from_file(manifest: Manifest, file: Path, noise: str) -> Columns:
    """Pairs that a table names: its columns ``target`` and ``source`` contain sample ids, or prompts, of a manifest.

    Args:
        manifest: manifest of the samples; a prompt with several seeds stands for its first row.
        file: CSV or Parquet.
        noise: one of :data:`fewchannels.interventions.settings.NOISE`.

    Raises:
        InputError: the file cannot be read, lacks the columns, or names samples that are not in the manifest.
    """
    import pandas as pd

    rows = columns(manifest.open(), ["sample_id", "prompt", "seed", "mask"])
    places = {text: i for name in ("prompt", "sample_id") for i, text in reversed(list(enumerate(rows[name])))}
    try:
        named = (
            pd.read_parquet(file) if file.suffix == ".parquet" else pd.read_csv(file, dtype=str, keep_default_na=False)
        )
    except (OSError, ValueError) as error:
        raise InputError(f"the pairs in {str(file)!r} cannot be read: {error}") from None
    if not {"target", "source"} <= set(named.columns):
        raise InputError(f"{str(file)!r} has the columns {', '.join(named.columns)}; pairs need target and source.")
    found = []
    for number, (target, source) in enumerate(zip(named["target"], named["source"], strict=True), start=1):
        for text in (target, source):
            if text not in places:
                raise InputError(
                    f"row {number} of {str(file)!r} names {text!r}, which is neither a sample_id nor a prompt of "
                    f"{manifest.name!r}."
                )
        found.append((places[target], places[source]))
    return _columns(
        [
            {
                "target_id": rows["sample_id"][target],
                "target_row": target,
                "source_id": rows["sample_id"][source],
                "source_row": source,
                "source_prompt": rows["prompt"][source],
                "source_seed": rows["seed"][target if noise == "shared" else source],
                "mask": rows["mask"][target],
            }
            for target, source in found
        ]
    )


def _by_columns(
    rule: PairRule,
    of_targets: Mapping[str, np.ndarray],
    of_sources: Mapping[str, np.ndarray],
    target: np.ndarray,
    source: np.ndarray,
) -> np.ndarray:
    """Return whether a rule's columns allow each pair. Rows without a value have an unknown category, so no pair."""
    fits = np.ones(len(target), dtype=bool)
    for names, same in ((rule.within, True), (rule.across, False)):
        for name in names:
            one, other = of_targets[name][target], of_sources[name][source]
            fits &= (one >= 0) & (other >= 0) & ((one == other) == same)
    return fits


def _codes(values: Sequence[Any]) -> np.ndarray:
    """A number for each different value, -1 if there is none."""
    numbers: dict[str, int] = {}
    return np.array([_number(value, numbers) for value in values], np.int64)


def _number(value: Any, numbers: dict[str, int]) -> int:
    if value is None or value != value or not str(value).strip():  # as a blank cell of a CSV file
        return -1
    whole = isinstance(value, float) and value.is_integer()  # in a column with nulls, 1 becomes 1.0
    return numbers.setdefault(str(int(value) if whole else value), len(numbers))


def _chosen(
    n_targets: int, n_sources: int, allowed: Callable[[np.ndarray, np.ndarray], np.ndarray], rule: PairRule
) -> list[tuple[int, int]]:
    """Pairs of target and source, in the order of targets, then sources."""
    if rule.n is None:
        return _every(n_targets, n_sources, allowed)
    if rule.n > n_targets * n_sources:
        raise InputError(
            f"pairs is {rule.n}; {n_targets} targets and {n_sources} sources allow at most {n_targets * n_sources}. "
            "Give a smaller number, or all."
        )
    random = np.random.default_rng(rule.seed)
    found: dict[tuple[int, int], None] = {}
    for _ in range(_MOST_TRIES):
        target, source = random.integers(n_targets, size=rule.n), random.integers(n_sources, size=rule.n)
        fits = allowed(target, source)
        found |= dict.fromkeys(zip(target[fits].tolist(), source[fits].tolist(), strict=True))
        if len(found) >= rule.n:
            return sorted(list(found)[: rule.n])
    raise InputError(
        f"pairs is {rule.n}, but {_MOST_TRIES} rounds of random draws found only {len(found)} different pairs that the "
        "rule allows. Give a smaller number, or all."
    )


def _every(
    n_targets: int, n_sources: int, allowed: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    every = np.arange(n_sources)
    for target in range(n_targets):
        found += [(target, int(source)) for source in every[allowed(np.full(n_sources, target), every)]]
        if len(found) > MOST_PAIRS:
            raise InputError(
                f"there are more than {MOST_PAIRS:,} pairs, the limit of a sweep. Pass a number of pairs instead of "
                f"all."
            )
    return found


def _columns(rows: list[dict[str, Any]]) -> Columns:
    if not rows:
        raise InputError("no pair of the manifest's samples is allowed. Loosen --within and --across.")
    for i, row in enumerate(rows):
        of_source = str(row.get("source_id") or row.get("reference"))
        row |= {"pair": i, "pair_id": pair_id(row["target_id"], of_source, row["source_seed"], row.get("mask"))}
    if len({row["pair_id"] for row in rows}) < len(rows):
        raise InputError("a pair is listed twice. List each pair once.")
    return as_columns("pairs", rows)
