"""Measure how well a model draws what captions ask: ``python -m fewchannels.demo.evaluate --model FOLDER``.

The model is asked for held-out combinations of shape and color, which training never shows, and for as many trained
ones; :mod:`fewchannels.demo.judge` says what the images show. The judge itself is first checked on scenes drawn by
code.
Exit code 0 where every target is met on the held-out prompts, 1 where one is missed; mistakes in the input and refusals
of the disk have their own (:mod:`fewchannels.errors`).
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, FluxPipeline
from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.console import Console
from rich.table import Table
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from fewchannels.demo.build import flushed_denormals
from fewchannels.demo.judge import ATTRIBUTES, Verdict, agreement, judge
from fewchannels.demo.world import SHAPES, Scene, choose_scenes, draw
from fewchannels.errors import FewchannelsError, InputError, StorageError
from fewchannels.files.durable import write, writing

TARGETS = {"colour": 0.95, "background": 0.95, "position": 0.90, "shape": 0.80}
JUDGE_MINIMUM = 0.99
JUDGE_SCENES = 2000

_TRAINED = 5_000_000  # prompts of trained combinations take their seeds from here on, held-out ones from 0
_RIGHT, _WRONG = (0, 114, 178), (213, 94, 0)  # Okabe and Ito's blue and vermillion, apart for every eye
_INK, _FAINT = (40, 40, 40), (120, 120, 120)
_SHEET = 64  # images on the contact sheet
_WIDTH, _GAP = 128, 16  # of an image on the sheet and between two, pixels


@dataclass(frozen=True)
class Round:
    """Prompts of one kind with what the model made of them.

    Attributes:
        scenes: what was asked.
        images: ``(prompt, rgb, y, x)`` float32 in [0, 1].
        verdicts: what the judge saw.
    """

    scenes: list[Scene]
    images: Tensor
    verdicts: list[Verdict]

    def figures(self) -> dict[str, dict[str, float]]:
        """For each attribute and for ``all``: share right, how many, and the Wilson 95 % interval."""
        n = len(self.scenes)
        figures = {}
        for name, share in agreement(self.verdicts, self.scenes).items():
            right = round(share * n)
            interval = binomtest(right, n).proportion_ci(0.95, method="wilson")
            figures[name] = {"share": share, "right": right, "n": n, "low": interval.low, "high": interval.high}
        return figures

    def confusion(self) -> dict[str, dict[str, int]]:
        """For each shape asked for, how often each shape was judged; ``none`` for no shape of the world."""
        counts: dict[str, Counter[str]] = {shape: Counter() for shape in SHAPES}
        for scene, verdict in zip(self.scenes, self.verdicts, strict=True):
            counts[scene.shape][verdict.shape or "none"] += 1
        return {asked: {judged: counted[judged] for judged in (*SHAPES, "none")} for asked, counted in counts.items()}


def check_judge(n: int = JUDGE_SCENES, *, seed: int = 0, side: int = 64) -> dict[str, float]:
    """The judge's own accuracy on ``n`` scenes drawn by code, for each attribute and for ``all``.

    Raises:
        FewchannelsError: it is below :data:`JUDGE_MINIMUM` for an attribute, so that it could not judge a model.
    """
    scenes = choose_scenes(n, seed)
    shares = agreement(judge(draw(scenes, seed, side=side)[0])[0], scenes)
    weak = {name: share for name, share in shares.items() if share < JUDGE_MINIMUM and name in ATTRIBUTES}
    if weak:
        named = ", ".join(f"{name} {share:.1%}" for name, share in weak.items())
        raise FewchannelsError(
            f"the judge is right on too few of {n} scenes drawn at {side} x {side} pixels: {named}; it needs "
            f"{JUDGE_MINIMUM:.0%} of each to judge a model"
        )
    return shares


def generate(
    pipeline: FluxPipeline,
    scenes: Sequence[Scene],
    seeds: Sequence[int],
    *,
    steps: int = 20,
    guidance: float = 3.5,
    true_cfg: float = 1.0,
    batch_size: int = 32,
    label: str = "generate",
) -> Tensor:
    """One image a scene, from its caption and its own seed, so that the batch size changes no noise.

    Returns:
        ``(scene, rgb, y, x)`` float32 in [0, 1], on the CPU.
    """
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.vae.config.sample_size
    images = []
    with tqdm(total=len(scenes), desc=label, unit="image", delay=2) as bar:
        for first in range(0, len(scenes), batch_size):
            captions = [scene.caption for scene in scenes[first : first + batch_size]]
            made = pipeline(
                captions,
                negative_prompt=[""] * len(captions) if true_cfg > 1 else None,
                true_cfg_scale=true_cfg,
                guidance_scale=guidance,
                num_inference_steps=steps,
                height=side,
                width=side,
                max_sequence_length=pipeline.tokenizer_2.model_max_length,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[first : first + batch_size]],
                output_type="pt",
            ).images
            images.append(made.to("cpu", torch.float32))
            bar.update(len(captions))
    return torch.cat(images)


def evaluate(
    pipeline: FluxPipeline,
    n: int = 1000,
    *,
    n_trained: int | None = None,
    steps: int = 20,
    guidance: float = 3.5,
    true_cfg: float = 1.0,
    batch_size: int = 32,
    seed: int = 0,
    out: Path | None = None,
) -> dict[str, Any]:
    """Check the judge, then generate and judge held-out and trained combinations.

    Args:
        pipeline: a FLUX pipeline whose images are square, ``vae.config.sample_size`` pixels a side.
        n: held-out prompts.
        n_trained: prompts of trained combinations; ``n`` where None.
        steps: steps of the denoising loop.
        guidance: the guidance embedding's scale.
        true_cfg: scale of classifier-free guidance with an empty negative prompt; 1 for none.
        batch_size: prompts denoised together.
        seed: random seed of the choice of scenes and of every prompt's noise.
        out: folder for ``evaluation.json`` and ``contact_sheet.png``; None to write nothing.

    Returns:
        ``settings``, ``versions``, ``weights_sha256``, ``judge``, ``targets``, ``held_out`` and ``trained`` (see
        :meth:`Round.figures`), ``confusion`` of the held-out shapes, ``met`` for each target and ``all_met``.
        Everything fits JSON. A target is met where the held-out share itself reaches it.

    Raises:
        FewchannelsError: the judge fails on drawn scenes, or the model's images are not finite.
    """
    settings: dict[str, Any] = {"steps": steps, "guidance": guidance, "true_cfg": true_cfg, "batch_size": batch_size}
    with flushed_denormals():
        judge_shares = check_judge(seed=seed, side=pipeline.vae.config.sample_size)
        rounds = {}
        for name, count, first in (("held_out", n, 0), ("trained", n if n_trained is None else n_trained, _TRAINED)):
            scenes = choose_scenes(count, seed, held_out=name == "held_out")
            seeds = [seed * 10_000_000 + first + i for i in range(count)]
            images = generate(pipeline, scenes, seeds, label=name.replace("_", " "), **settings)
            try:
                rounds[name] = Round(scenes, images, judge(images)[0])
            except ValueError as error:
                raise FewchannelsError(f"the model's images cannot be judged: {error}") from error
    held_out = rounds["held_out"].figures()
    met = {name: held_out[name]["share"] >= target for name, target in TARGETS.items()}
    result = {
        "settings": settings | {"seed": seed, "side": pipeline.vae.config.sample_size},
        "versions": {name: metadata.version(name) for name in ("fewchannels", "torch", "diffusers", "transformers")}
        | {"python": platform.python_version()},
        "weights_sha256": weights_sha256(pipeline),
        "judge": {"n": JUDGE_SCENES, "shares": judge_shares},
        "targets": TARGETS,
        "held_out": held_out,
        "trained": rounds["trained"].figures(),
        "confusion": rounds["held_out"].confusion(),
        "met": met,
        "all_met": all(met.values()),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with writing(out / "contact_sheet.png") as file:
            contact_sheet(rounds["held_out"]).save(file, "png", optimize=True)
        write(out / "evaluation.json", f"{json.dumps(result, indent=2)}\n".encode())
    return result


def weights_sha256(pipeline: FluxPipeline) -> dict[str, str]:
    """Each network's digest over its tensors' names, dtypes, shapes and bytes, in the order of their names.

    The digest knows nothing of files, so saving the same weights in another layout leaves it as it is.
    """
    digests = {}
    for name, module in sorted(pipeline.components.items()):
        if isinstance(module, torch.nn.Module):
            digest = hashlib.sha256()
            for key, tensor in sorted(module.state_dict().items()):
                digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
            digests[name] = digest.hexdigest()
    return digests


def contact_sheet(made: Round, *, columns: int = 8) -> Image.Image:
    """The first images of a round with their captions, framed by whether all five attributes were judged right.

    The first ones by prompt, whatever they look like; under a wrong one stands what the judge saw instead.
    """
    count = min(_SHEET, len(made.scenes))
    font, medium, large = (ImageFont.load_default(size) for size in (11.5, 14, 26))
    head, line, lines = 96, 14, 5  # pixels, pixels, lines under an image
    cell = _WIDTH + _GAP, _WIDTH + 8 + line * lines + _GAP
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * cell[0] + _GAP, head + rows * cell[1] + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    wrong = [
        [getattr(v, name) or f"no {name}" for name in ATTRIBUTES if getattr(v, name) != getattr(s, name)]
        for s, v in zip(made.scenes[:count], made.verdicts[:count], strict=True)
    ]
    right = sum(not faults for faults in wrong)
    pen.text((_GAP, 16), "Combinations of shape and colour never shown in training", fill=_INK, font=large)
    pen.text(
        (_GAP, 56),
        f"The first {count} held-out prompts. {right} right in all five attributes (blue), {count - right} wrong in "
        "one or more (orange; below, what the judge saw instead).",
        fill=_FAINT,
        font=medium,
    )
    pixels = (made.images[:count] * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for i, faults in enumerate(wrong):
        x, y = _GAP + i % columns * cell[0], head + i // columns * cell[1]
        colour = _WRONG if faults else _RIGHT
        pen.rectangle((x - 4, y - 4, x + _WIDTH + 3, y + _WIDTH + 3), outline=colour, width=3)
        image = Image.fromarray(pixels[i]).resize((_WIDTH, _WIDTH), Image.Resampling.BICUBIC)
        sheet.paste(image, (x, y))
        words = textwrap.wrap(made.scenes[i].caption, 23)
        pen.multiline_text((x, y + _WIDTH + 7), "\n".join(words), fill=_INK, font=font, spacing=2)
        if faults:
            seen = "\n".join(textwrap.wrap(", ".join(faults), 23))
            pen.multiline_text((x, y + _WIDTH + 8 + line * len(words)), seen, fill=_WRONG, font=font, spacing=2)
    return sheet


def load(folder: Path, device: str = "cpu") -> FluxPipeline:
    """Load a FLUX pipeline from a folder.

    Raises:
        InputError: there is none there.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        remedy = f"train one with: python -m fewchannels.demo.train --out FOLDER (it writes FOLDER{os.sep}model)"
        raise InputError(f"no model in {str(folder)!r} (a model folder holds model_index.json); {remedy}")
    try:
        kind = json.loads(index.read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(index)!r} is not a pipeline's index: {error!r}") from error
    if kind != FluxPipeline.__name__:
        raise InputError(f"{str(folder)!r} holds a {kind}; the evaluation wants a {FluxPipeline.__name__}")
    try:
        return DiffusionPipeline.from_pretrained(folder, local_files_only=True).to(device)
    except Exception as error:  # whatever a damaged file makes the libraries raise, the remedy is the same
        raise InputError(f"the model in {str(folder)!r} does not load on {device!r}: {error}") from error


def tables(result: dict[str, Any]) -> tuple[Table, Table]:
    """An evaluation's figures and its confusion of shapes, for people."""

    def interval(figure: dict[str, float]) -> str:
        return f"{figure['share']:.1%} [{figure['low']:.1%}, {figure['high']:.1%}]"

    held_out, trained = result["held_out"], result["trained"]
    accuracy = Table(
        title=f"{held_out['all']['n']} held-out and {trained['all']['n']} trained prompts, Wilson 95 %",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("attribute", "target", "held out", "trained", "met"):
        accuracy.add_column(heading, justify="left" if heading == "attribute" else "right")
    for name in (*TARGETS, "size", "all"):
        target = f"{TARGETS[name]:.0%}" if name in TARGETS else "-"
        met = {True: "[blue]yes[/]", False: "[red]NO[/]", None: "-"}[result["met"].get(name)]
        accuracy.add_row(name, target, interval(held_out[name]), interval(trained[name]), met)
    confusion = Table(
        title="Held-out shapes: asked for (rows), judged (columns)", box=box.SIMPLE_HEAD, collapse_padding=True
    )
    for heading in ("", *SHAPES, "none"):
        confusion.add_column(heading, justify="left" if not heading else "right")
    for asked, counts in result["confusion"].items():
        cells = [f"[bold]{count}[/]" if judged == asked else str(count or "") for judged, count in counts.items()]
        confusion.add_row(asked, *cells)
    return accuracy, confusion


def _at_least(kind: type, low: float) -> Any:
    def parse(text: str) -> Any:
        value = kind(text)
        if not low <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a finite number from {low} up")
        return value

    parse.__name__ = kind.__name__
    return parse


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fewchannels.demo.evaluate", description="Measure how well a model draws what captions ask."
    )
    bundled = Path(str(resources.files("fewchannels.demo").joinpath("model")))
    parser.add_argument("--model", type=Path, default=bundled, help="pipeline's folder; without it, the bundled model")
    parser.add_argument("--prompts", type=_at_least(int, 1), default=1000, help="held-out prompts (1000)")
    parser.add_argument("--trained-prompts", type=_at_least(int, 1), help="trained prompts (as many as --prompts)")
    parser.add_argument("--steps", type=_at_least(int, 1), default=20, help="denoising steps (20)")
    parser.add_argument("--guidance", type=_at_least(float, 0), default=3.5, help="embedded guidance (3.5)")
    parser.add_argument("--true-cfg", type=_at_least(float, 1), default=1.0, help="classifier-free guidance (1: none)")
    parser.add_argument("--batch-size", type=_at_least(int, 1), default=32, help="prompts denoised together (32)")
    parser.add_argument("--seed", type=_at_least(int, 0), default=0, help="of the scenes and the noise (0)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch's name of it")
    parser.add_argument("--out", type=Path, help="folder for evaluation.json and contact_sheet.png")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of tables")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse arguments, evaluate, print; the exit code says whether every target is met."""
    arguments = _arguments(argv)
    try:
        if arguments.out is not None:
            arguments.out.mkdir(parents=True, exist_ok=True)
        result = evaluate(
            load(arguments.model, arguments.device),
            arguments.prompts,
            n_trained=arguments.trained_prompts,
            steps=arguments.steps,
            guidance=arguments.guidance,
            true_cfg=arguments.true_cfg,
            batch_size=arguments.batch_size,
            seed=arguments.seed,
            out=arguments.out,
        )
    except (FewchannelsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, FewchannelsError) else StorageError.exit_code
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        console = Console()
        shares = ", ".join(f"{name} {result['judge']['shares'][name]:.1%}" for name in ATTRIBUTES)
        console.print(f"The judge on {result['judge']['n']} scenes drawn by code: {shares}.\n", highlight=False)
        for table in tables(result):
            console.print(table)
        missed = [name for name, met in result["met"].items() if not met]
        console.print(f"Targets missed: {', '.join(missed)}." if missed else "Every target is met.", highlight=False)
        if arguments.out is not None:
            console.print(f"Written: {arguments.out}{os.sep}evaluation.json and contact_sheet.png", highlight=False)
    return 0 if result["all_met"] else 1


if __name__ == "__main__":
    sys.exit(main())
