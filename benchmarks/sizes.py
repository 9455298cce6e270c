"""What captures of real models take on disk, computed from their published geometries: ``python benchmarks/sizes.py``.

Prints the table of ``docs/sizes.md``. Nothing is measured: bytes per value are from ``benchmarks/README.md``, Number
formats. For a model at hand, ``fewchannels capture --dry-run`` measures them on a batch.
"""

from dataclasses import dataclass, replace

from fewchannels.capture.budget import expected_bytes
from fewchannels.models.family import Block
from fewchannels.runs.layout import Layout, default_shard_samples
from fewchannels.settings.units import size


@dataclass(frozen=True)
class Model:
    """A published geometry: layers, width, tokens along one side at this picture size, and the usual steps."""

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
N_SAMPLES = 1000


def layout(model: Model) -> Layout:
    """Everything that a capture keeps unless it is told otherwise, of 1,000 samples."""
    blocks = tuple(Block(i, f"blocks.{i}", "dual") for i in range(model.n_layers))
    whole = Layout(N_SAMPLES, tuple(range(model.n_steps)), blocks, model.n_channels, model.side**2, 12, 1)
    return replace(whole, shard_samples=default_shard_samples(whole))


def rows() -> list[list[str]]:
    """Cells of the table, one row a model."""
    found = []
    for model in MODELS:
        whole = layout(model)
        choices = (
            whole,
            replace(whole, rounded=True),
            replace(whole, rounded=True, steps=whole.steps[-1:]),
            replace(whole, top_k=0),
        )
        found.append(
            [
                model.name,
                f"{model.n_layers} x {model.n_steps} x {model.n_channels}",
                str(model.side**2),
                size(whole.sample_value_bytes),
                str(whole.shard_samples),
                *(size(expected_bytes(choice, model.pixels**2)) for choice in choices),
            ]
        )
    return found


def table() -> str:
    """The table in Markdown."""
    heads = [
        "model",
        "layers x steps x channels",
        "tokens",
        "one sample in memory",
        "samples a task",
        "top 12, all steps",
        "the same, `--value-precision bfloat16` or a bfloat16 model",
        "the same, last step",
        "`--top-k 0`, all steps",
    ]
    lines = [heads, ["---"] * len(heads), *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
