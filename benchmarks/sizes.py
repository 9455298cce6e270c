"""Sizes of captures of real models on disk, computed from their published geometries: ``python benchmarks/sizes.py``.

Prints the table of ``docs/sizes.md``: the size of everything that a capture keeps by default, and sizes with options
that keep less. Nothing is measured: bytes per value are from ``benchmarks/README.md``, Number formats. For an available
model, ``fewchannels capture --dry-run`` measures them on a batch.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

from measurement import Rows, options, ratio, save

from fewchannels.captures.budget import expected_bytes
from fewchannels.models.family import Block
from fewchannels.runs.layout import Layout, default_shard_samples
from fewchannels.settings.units import size


@dataclass(frozen=True)
class Model:
    """A published geometry: layers, width, tokens along one side at this image size, and the usual steps."""

    name: str
    n_layers: int
    n_channels: int
    side: int
    pixels: int
    n_steps: int


MODELS = (
    Model("FLUX.1-dev, 1024 px", 57, 3072, 64, 1024, 28),
    Model("FLUX.1-schnell, 1024 px", 57, 3072, 64, 1024, 4),
    Model("Qwen-Image, 1328 px", 60, 3072, 83, 1328, 50),
    Model("SANA 1.5 1.6B, 1024 px", 20, 2240, 32, 1024, 20),
    Model("SANA 1.5 4.8B, 1024 px", 60, 2240, 32, 1024, 20),
)
EVERYTHING = "top 12, all steps"


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--samples", type=int, default=1000, help="of each capture")
    return found


def layout(model: Model, n_samples: int) -> Layout:
    """Everything that a capture keeps by default."""
    blocks = tuple(Block(i, f"blocks.{i}", "dual") for i in range(model.n_layers))
    whole = Layout(n_samples, tuple(range(model.n_steps)), blocks, model.n_channels, model.side**2, 12, 1)
    return replace(whole, shard_samples=default_shard_samples(whole))


def choices(whole: Layout) -> dict[str, Layout]:
    """Other choices of what a capture keeps, by the table's headings."""
    return {
        EVERYTHING: whole,
        "the same, `--value-precision bfloat16` or a bfloat16 model": replace(whole, rounded=True),
        "the same, last step": replace(whole, rounded=True, steps=whole.steps[-1:]),
        "`--top-k 0`, all steps": replace(whole, top_k=0),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compute and print the table in Markdown; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    heads = ["model", "layers x steps x channels", "tokens", "one sample in memory", "samples a task"]
    rows: Rows = {}
    lines, ratios = [], []
    for model in MODELS:
        whole = layout(model, chosen.samples)
        expected = {name: expected_bytes(choice, model.pixels**2) for name, choice in choices(whole).items()}
        shape = f"{model.n_layers} x {model.n_steps} x {model.n_channels}"
        memory = whole.sample_value_bytes
        cells = [model.name, shape, str(model.side**2), size(memory), str(whole.shard_samples)]
        lines.append([*cells, *map(size, expected.values())])
        rows |= {f"{model.name}: {name}": {"bytes": n_bytes} for name, n_bytes in expected.items()}
        to = f"{model.name}: {EVERYTHING}"
        ratios += [ratio(rows, f"{model.name}: {name}", to, of="bytes") for name in expected]
    heads += expected
    for line in [heads, ["---"] * len(heads), *lines]:
        print(f"| {' | '.join(line)} |")
    save(chosen, ("fewchannels",), rows, ratios)


if __name__ == "__main__":
    main()
