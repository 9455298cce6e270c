"""Overhead of a reading tap at FLUX.1's width: ``python benchmarks/tap_overhead.py``.

Forwards of one dual and one single block with random weights, of 1024 x 1024 pixels, are timed, rounds interleaved:
without hooks (``plain``); with the capture's recorder (``taps``: four statistics of every channel, token norms, the top
16 channels' maps); with the usual hook, which copies the image stream to the CPU as float32; and with nnsight's cache,
if it is installed.
"""

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from measurement import Rows, options, ratio, rotated, save

from fewchannels.captures.recorder import Recorder
from fewchannels.models.families import FAMILIES
from fewchannels.models.family import ModelGeometry
from fewchannels.models.generation import Settings
from fewchannels.models.sampler import Sampler
from fewchannels.models.taps import tapped
from fewchannels.runs.layout import Layout

_TEXT_TOKENS = 512
_CPU = torch.device("cpu")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = options(__doc__)
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--heads", type=int, default=24, help="24 is FLUX.1's own width, 3,072 channels")
    found.add_argument("--pixels", type=int, default=1024, help="along a side, a multiple of 16")
    return found


def build(
    width_heads: int,
    side: int,
    n_blocks: tuple[int, int] = (1, 1),
    device: torch.device = _CPU,
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
) -> tuple[FluxTransformer2DModel, Sampler, dict[str, torch.Tensor]]:
    """The transformer, a sampler that declares its forwards, and the arguments of one."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with device:
        transformer = FluxTransformer2DModel(
            num_layers=n_blocks[0],
            num_single_layers=n_blocks[1],
            num_attention_heads=width_heads,
            guidance_embeds=True,
        ).eval()
    torch.set_default_dtype(before)
    family = FAMILIES["FluxTransformer2DModel"]
    geometry = ModelGeometry(
        transformer="FluxTransformer2DModel",
        pipeline_class="FluxPipeline",
        family=family,
        pipeline=family.pipelines["FluxPipeline"],
        blocks=family.blocks(transformer.config),
        n_channels=family.n_channels(transformer.config),
        pixels_per_token=16,
        default_side=side,
        embeds_guidance=True,
        can_be_guided=True,
        takes_images=True,
    )
    pipeline = SimpleNamespace(transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())
    tokens = (side // 16) ** 2
    ids = torch.zeros(tokens, 3)
    ids[:, 1], ids[:, 2] = torch.arange(tokens) // (side // 16), torch.arange(tokens) % (side // 16)
    arguments = {
        "hidden_states": torch.randn(batch, tokens, 64),
        "encoder_hidden_states": torch.randn(batch, _TEXT_TOKENS, 4096),
        "pooled_projections": torch.randn(batch, 768),
        "timestep": torch.ones(batch),
        "guidance": torch.full((batch,), 3.5),
        "img_ids": ids,
        "txt_ids": torch.zeros(_TEXT_TOKENS, 3),
    }
    placed = {name: value.to(device, dtype) for name, value in arguments.items()}
    return transformer, Sampler(pipeline, geometry), placed


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table; ``--json FILE`` also writes it."""
    chosen = parser().parse_args(argv)
    side = chosen.pixels
    transformer, sampler, arguments = build(chosen.heads, side)
    blocks = sampler.geometry.blocks
    layout = Layout(1, (0,), blocks, sampler.geometry.n_channels, (side // 16) ** 2, 16, 1)

    def plain() -> None:
        transformer(**arguments)

    def taps() -> None:
        recorder = Recorder(layout, "mean_abs", ["0"])
        settings = Settings(side, side, 1, 3.5, 1.0)
        with sampler.declaring(1, settings), tapped(sampler, blocks, recorder.tap(slice(0, 1))):
            transformer(**arguments)
        recorder.arrays()

    def copying() -> None:
        kept: list[torch.Tensor] = []
        hooks = [
            transformer.get_submodule(block.path).register_forward_hook(
                lambda module, inputs, output: kept.append(output[1].detach().float().cpu().clone())
            )
            for block in blocks
        ]
        transformer(**arguments)
        for hook in hooks:
            hook.remove()

    def cached() -> None:
        import nnsight

        model = nnsight.NNsight(transformer)
        with model.trace(**arguments) as tracer:
            tracer.cache(modules=[model.transformer_blocks[0], model.single_transformer_blocks[0]])

    works: dict[str, Callable[[], None]] = {"plain": plain, "taps": taps, "copying hook": copying}
    libraries = ["torch", "diffusers"]
    if importlib.util.find_spec("nnsight"):
        works["nnsight cache"] = cached
        libraries.append("nnsight")
    with torch.inference_mode():
        plain()
        seconds = rotated(works, chosen.rounds)
    rows: Rows = {name: {"seconds": taken} for name, taken in seconds.items()}
    ratios = [ratio(rows, name, "plain") for name in rows]
    print(f"{'':14} {'s':>7} {'ratio':>7}  range of rounds   goal")
    for (name, row), each in zip(rows.items(), ratios, strict=True):
        goal = "1.03" if name == "taps" else ""
        span = f"{each['least']:.3f} to {each['most']:.3f}"
        print(f"{name:14} {statistics.median(row['seconds']):7.2f} {each['ratio']:7.3f}  {span:16} {goal}")
    save(chosen, libraries, rows, ratios)


if __name__ == "__main__":
    main()
