"""Map each source's columns to columns of the manifest, before any row is read."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import pyarrow as pa

from fewchannels.errors import InputError, unknown
from fewchannels.manifest.rows import NOT_UTF8, OPTIONAL_COLUMNS, is_unicode
from fewchannels.tables import schema

#: Names of a prompt column, in any case. The first two are unambiguous; of the others, a source must have only one.
_NAMES = ("prompt", "caption", "text", "description", "sentence", "instruction")
PROMPT_COLUMNS = tuple(name for one in _NAMES for name in (one, f"{one}s"))
_SURE = PROMPT_COLUMNS[:2]

#: The column with the name of the source that a row is from, if there are several sources.
SOURCE_FILE = "source_file"

#: Other names of the manifest's columns, in any case, ``-`` and spaces as ``_``.
ALIASES = {
    "negative": "negative_prompt",
    "step": "steps",
    "num_steps": "steps",
    "num_inference_steps": "steps",
    "cfg": "guidance",
    "cfg_scale": "guidance",
    "guidance_scale": "guidance",
    "mask_path": "mask",
    "reference_path": "reference",
}

Survey = Mapping[str, pa.DataType]


@dataclass(frozen=True)
class Mapped:
    """Where the columns of all sources go."""

    taken: tuple[dict[str, str], ...]  # of each source: manifest column -> source column
    extras: dict[str, pa.DataType]  # manifest column -> type, in the order of first appearance
    source_file: str | None  # of them, the one with the source's name; None if there is none
    notes: tuple[str, ...]  # what a person should know


def without(
    ignored: Sequence[str], surveys: Sequence[Survey], prompt_column: str | None, *, source_file: bool
) -> tuple[Survey, ...]:
    """The sources' columns without the ignored ones, whose names may be in any case.

    Args:
        ignored: names of the columns that are left out.
        surveys: each source's columns and their types.
        prompt_column: the prompt column that the caller chose.
        source_file: whether there will be a column :data:`SOURCE_FILE`, which may be left out as well.

    Raises:
        InputError: no source has such a column, or it is the chosen prompt column.
    """
    there = {column.casefold(): column for survey in surveys for column in survey}
    if source_file:
        there.setdefault(SOURCE_FILE, SOURCE_FILE)
    for name in ignored:
        if name.casefold() not in there:
            raise unknown("column to ignore", name, there.values())
        if prompt_column is not None and name.casefold() == prompt_column.casefold():
            raise InputError(f"column {name!r} is both the prompt column and one to ignore; omit one of the options.")
    left_out = {name.casefold() for name in ignored}
    return tuple(
        {column: kind for column, kind in survey.items() if column.casefold() not in left_out} for survey in surveys
    )


def source_labels(names: Sequence[str]) -> list[str]:
    """Each source's name in :data:`SOURCE_FILE`: the file's name or, if two files have the same name, its path."""
    files = [Path(name).name for name in names]
    return files if len(set(files)) == len(files) else list(names)


def map_columns(
    names: Sequence[str],
    surveys: Sequence[Survey],
    prompt_columns: Sequence[str | None],
    *,
    seeds_given: bool,
    source_file: bool = False,
) -> Mapped:
    """Decide where the columns of every source go.

    Args:
        names: names of the sources, for messages.
        surveys: each source's columns and their types.
        prompt_columns: prompt columns of each source, or None to pick the obvious one.
        seeds_given: whether the caller chose the seeds.
        source_file: whether there is a column with the source's name.

    Raises:
        InputError: no column is the prompt, two columns have the same meaning, or a column has incompatible types.
    """
    taken: list[dict[str, str]] = []
    extras: dict[str, pa.DataType] = {}
    spelled: dict[str, str] = {}  # casefolded -> the first spelling, because SQL ignores case
    notes: list[str] = []
    for name, survey, prompt_column in zip(names, surveys, prompt_columns, strict=True):
        prompt = _prompt_column(name, survey, prompt_column)
        known = _known_columns(name, survey, prompt)
        if seeds_given and "seed" in known:
            raise InputError(
                f"{name}: has a seed column, {known['seed']!r}, and --seeds was given as well. Omit --seeds to "
                f"use the column, or leave the column out with {ignoring(known['seed'])}."
            )
        for column, kind in survey.items():
            if column in known.values() or column.casefold() == "sample_id":
                continue
            target = column
            if column.casefold() == "prompt":
                target = "source_prompt"
                notes.append(f"{name}: column {column!r} is kept as 'source_prompt', because {prompt!r} is the prompt")
            target = spelled.setdefault(target.casefold(), target)
            if target in known:
                raise InputError(
                    f"{name}: columns {known[target]!r} and {column!r} would both be {target!r}; rename one."
                )
            known[target] = column
            notes += _shared_name(name, target) if target not in extras else []
            extras[target], note = _common_type(name, target, extras.get(target, pa.null()), kind)
            notes += note
        taken.append(known)
    extras = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in extras.items()}
    added = _added(extras, notes) if source_file else None
    if added:
        extras[added] = pa.string()
    return Mapped(tuple(taken), extras, added, tuple(notes))


def ignoring(column: str) -> str:
    """The option that ignores a column, as written in a shell."""
    return f"--ignore-column {shlex.quote(column)}"


def _added(extras: Iterable[str], notes: list[str]) -> str:
    """The name of the column with the source's name: one that no source has."""
    folded = {name.casefold() for name in extras}
    name = next(name for name in chain([SOURCE_FILE], (f"{SOURCE_FILE}_{i}" for i in count(2))) if name not in folded)
    if name != SOURCE_FILE:
        notes.append(f"a source has a column {SOURCE_FILE!r}; the names of the sources' files are in {name!r}")
    return name


def check_names(source: str, columns: Iterable[str]) -> None:
    """Check column names.

    Raises:
        InputError: two names differ only in case, or one is not UTF-8.
    """
    seen: dict[str, str] = {}
    for column in columns:
        if not is_unicode(column) or "\0" in column:
            raise InputError(f"{source}: the name of column {column!r} {NOT_UTF8}.")
        if other := seen.get(column.casefold()):
            raise InputError(
                f"{source}: columns {other!r} and {column!r} have the same name, as SQL ignores case; rename one."
            )
        seen[column.casefold()] = column


def plain(kind: pa.DataType) -> pa.DataType:
    """The type without its encoding: dictionaries and the different layouts of text count as one type here."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def common_type(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type that can represent both: the same type, the wider number, or text."""
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if all((pa.types.is_integer(kind) and kind != pa.uint64()) or pa.types.is_floating(kind) for kind in (one, other)):
        pair = [pa.schema([("column", kind)]) for kind in (one, other)]
        return pa.unify_schemas(pair, promote_options="permissive").field("column").type
    return pa.string()


def _shared_name(source: str, column: str) -> list[str]:
    """A note if a table of runs has a column of that name, too."""
    for table in ("samples", "cells", "alignment_samples"):
        if column.casefold() in schema(table).names:
            return [
                f"{source}: column {column!r} has the name of a column of a run's {table}. In --where, --by and "
                f"galleries {column} is yours, and {table}.{column.casefold()} the run's"
            ]
    return []


def _common_type(source: str, column: str, one: pa.DataType, other: pa.DataType) -> tuple[pa.DataType, list[str]]:
    """The common type over sources, with a note if it is text only because the types differ."""
    common = common_type(one, other)
    if not pa.types.is_string(common) or {one, other} <= {common, pa.null()}:
        return common, []
    for kind in (one, other):
        if _is_compound(kind):
            raise InputError(
                f"{source}: column {column!r} is {other}, elsewhere {one}; no type can represent both. Rename one of "
                f"them."
            )
    return common, [f"{source}: column {column!r} is {other}, elsewhere {one}; kept as text"]


def _is_compound(kind: pa.DataType) -> bool:
    return pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _prompt_column(source: str, survey: Survey, wanted: str | None) -> str:
    names = PROMPT_COLUMNS if wanted is None else (wanted.casefold(),)
    there = (
        [wanted]
        if wanted is not None and wanted in survey
        else [column for column in survey if column.casefold() in names]
    )
    sure = [column for column in there if column.casefold() in _SURE]
    several = sure or there
    if len(several) > 1:
        raise InputError(
            f"{source}: {' and '.join(map(repr, several))} could each be the prompt; choose one with --prompt-column."
        )
    found = several[0] if several else None
    if found is None:
        if wanted is not None:
            raise unknown(f"prompt column of {source}", wanted, survey)
        raise InputError(
            f"{source}: no column is called {', '.join(_NAMES[:-1])} or {_NAMES[-1]}, with or without s; it has "
            f"{', '.join(map(repr, survey)) or 'none'}. Choose one with --prompt-column."
        )
    if not (pa.types.is_string(survey[found]) or pa.types.is_null(survey[found])):
        raise InputError(f"{source}: column {found!r} is {survey[found]}, but prompts are text. Choose another column.")
    return found


def _known_columns(source: str, survey: Survey, prompt: str) -> dict[str, str]:
    known = {"prompt": prompt}
    for column, kind in survey.items():
        name = column.casefold().replace("-", "_").replace(" ", "_")
        name = ALIASES.get(name, name)
        if column == prompt or name not in ("seed", *OPTIONAL_COLUMNS):
            continue
        if name in known:
            raise InputError(
                f"{source}: columns {known[name]!r} and {column!r} both mean {name!r}; rename one, or leave one "
                f"out with {ignoring(column)}."
            )
        if _is_compound(kind):
            wants = schema("manifest").field(name).type
            raise InputError(
                f"{source}: column {column!r} is {kind}, and {name!r} is {wants}; rename it, or "
                f"leave it out with {ignoring(column)}."
            )
        known[name] = column
    return known
