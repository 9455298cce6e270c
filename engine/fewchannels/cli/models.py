"""``fewchannels models``: list supported pipelines, show a model, and inspect an unknown one."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from fewchannels.cli.commands import Commands
from fewchannels.cli.console import errors, print_json, results, say
from fewchannels.cli.options import ruled
from fewchannels.cli.tables import Column, Wide, print_table
from fewchannels.errors import InputError
from fewchannels.files.durable import check_output, write
from fewchannels.settings.ranges import within

app = Commands(no_args_is_help=True)


def register(commands: typer.Typer) -> None:
    """Register the command group."""
    commands.add_typer(app, name="models", help="List supported models, and describe one that is not.")


@app.callback()
def _group() -> None:
    """List supported models, and describe one that is not."""


@app.command("list")
def list_families(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False, wide: Wide = False
) -> None:
    """List the supported pipelines: their kinds of layers, streams and guidance.

    Example: fewchannels models list
    """
    from fewchannels.models.families import FAMILIES
    from fewchannels.models.family_file import as_fields

    if as_json:
        print_json({name: as_fields(family) for name, family in FAMILIES.items()})
        return
    rows = []
    for family in FAMILIES.values():
        kinds = ", ".join(each.kind for each in family.lists)
        streams = ", ".join(family.streams)
        for pipeline, how in family.pipelines.items():
            guidance = ", ".join(part for part in ("distilled" if how.embedded else "", how.guidance) if part != "none")
            reference = "needed" if how.needs_reference else "optional" if how.reference else "no"
            rows.append((pipeline, kinds, streams, guidance.strip(", ") or "none", reference))
    heads = ("pipeline", "layers", "streams", "guidance", "reference")
    print_table(
        [Column(head, cells, wraps=True) for head, cells in zip(heads, zip(*rows, strict=True), strict=True)], wide
    )


@app.command()
def show(
    model: Annotated[str, typer.Argument(help="demo, a folder, or a hub id.")],
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    family: Annotated[Path | None, typer.Option(help="YAML file that describes its transformer class.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show a model's layers, width, grid and guidance from its configuration, without loading weights.

    Example: fewchannels models show demo
    """
    from fewchannels.models.family_file import read_family
    from fewchannels.models.source import find, geometry

    shape = geometry(find(model, revision), read_family(family) if family else None)
    side = shape.default_side
    height, width = shape.token_grid(side, side)
    kinds: dict[str, int] = {}
    for block in shape.blocks:
        kinds[block.kind] = kinds.get(block.kind, 0) + 1
    about: dict[str, Any] = {
        "model": model,
        "transformer": shape.transformer,
        "pipeline": shape.pipeline_class,
        "n_layers": len(shape.blocks),
        "layers": kinds,
        "n_channels": shape.n_channels,
        "pixels_per_token": shape.pixels_per_token,
        "default_size": [side, side],
        "default_grid": [height, width],
        "streams": ["image", "text"] if shape.family.has_text(shape.blocks) else ["image"],
        "takes_guidance": shape.takes_guidance,
        "default_guidance": shape.pipeline.default_guidance,
        "can_be_guided": shape.can_be_guided,
        "reference": "needed" if shape.pipeline.needs_reference else "may" if shape.pipeline.reference else "no",
    }
    if as_json:
        print_json(about)
        return
    table = Table(title=model, title_justify="left", show_header=False)
    for name, value in about.items():
        table.add_row(name.replace("_", " "), json.dumps(value) if isinstance(value, dict | list) else str(value))
    results.print(table)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A folder or a hub id.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Family file to write, for --family.")] = None,
    height: Annotated[int, ruled(within(16, 4096, "Height of the test images, pixels."))] = 384,
    width: Annotated[
        int, ruled(within(16, 4096, "Width of the test images, pixels; preferably different from the height."))
    ] = 256,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Locate the image stream of an unknown model by perturbing its initial noise and tracking what changes.

    Runs the model a few dozen times for one step, reports the findings and any doubts, and writes a family file.

    Example: fewchannels models inspect FOLDER -o family.yaml
    """
    if output is not None:
        check_output(output)
        if output.exists():
            raise InputError(f"{str(output)!r} already exists. Choose another name, or delete the file.")
    with errors.status("loading the model"):
        import torch
        import yaml

        from fewchannels.models.family_file import as_fields
        from fewchannels.models.inspection import inspect_pipeline
        from fewchannels.models.load import open_pipeline
        from fewchannels.models.source import find

        pipeline = open_pipeline(find(model, revision), "cuda" if torch.cuda.is_available() else "cpu")
    with errors.status("perturbing the noise and tracking what changes"):
        found = inspect_pipeline(pipeline, height, width)
    written = yaml.safe_dump({found.transformer: as_fields(found.family)}, sort_keys=False)
    if output is not None:
        write(output, written.encode())
    if as_json:
        about = {"family": {found.transformer: as_fields(found.family)}, "evidence": found.evidence}
        print_json(about | {"doubts": found.doubts})
        return
    for line in found.evidence:
        say(f"found: {line}")
    for line in found.doubts:
        say(f"doubtful: {line}", style="yellow")
    results.print(written, soft_wrap=True)
    if output is not None:
        say(f"wrote {output}; review it, then use it with fewchannels capture --family {output}")
