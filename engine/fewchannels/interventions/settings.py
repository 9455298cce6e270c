"""A sweep's settings from a YAML file: how pictures are generated, and grids of conditions."""

import typing
from pathlib import Path
from typing import Any

from fewchannels.capture.config import CaptureConfig, read_yaml
from fewchannels.errors import InputError, unknown
from fewchannels.interventions.conditions import Grid

_GRIDS = "grids"


def generation(file: Path | None, given: dict[str, Any]) -> CaptureConfig:
    """How pictures are generated: what was given, else the file's, else the defaults.

    Raises:
        InputError: an unknown setting or a value of the wrong kind.
    """
    return CaptureConfig.from_sources(file, given, besides=(_GRIDS,))


def grids_of(file: Path | None) -> tuple[Grid, ...]:
    """The file's grids; none where it has none.

    Raises:
        InputError: an unknown setting or a value of the wrong kind.
    """
    listed = read_yaml(file).get(_GRIDS, [])
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise InputError(f"grids in {str(file)!r} must be a list of mappings, such as '- k: [4, 8]'.")
    return tuple(_grid(file, each) for each in listed)


def _grid(file: Path | None, values: dict[str, Any]) -> Grid:
    kinds = typing.get_type_hints(Grid)
    settled: dict[str, Any] = {}
    for name, value in values.items():
        if name not in kinds:
            raise unknown(f"setting of a grid in {file}", name, kinds)
        if name == "trials":
            settled[name] = value
            wanted: type = int
        else:
            wanted = typing.get_args(kinds[name])[0]
            listed = value if isinstance(value, list) else [value]
            settled[name] = tuple(wanted(each) if wanted is not int else each for each in listed)
        for each in settled[name] if isinstance(settled[name], tuple) else (settled[name],):
            if type(each) is not wanted:
                raise InputError(f"{name} of a grid in {str(file)!r} holds {each!r}; it must be {wanted.__name__}.")
    return Grid(**settled)
