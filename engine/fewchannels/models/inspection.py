"""Locate the streams of an unknown transformer class by perturbing its inputs and observing its outputs.

Nothing is inferred from names or shapes alone: an image token is one that changes most when its own square of the
initial noise is changed, at every tried position of the grid. Unclear properties are reported and left out.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from fewchannels.errors import FewchannelsError
from fewchannels.models.family import BlockList, Family, Guidance, Pipeline, Place, Start, TextInput
from fewchannels.models.from_images import Draw, drawn_by
from fewchannels.models.seen import Seen, branch_order

_PROMPTS = ("a small red star", "a large blue ring on the left of a green field")
ALWAYS_GUIDED = -1.0
"""Value of ``unguided`` if both branches run at every scale."""
_WIDTHS = (("num_attention_heads", "attention_head_dim"), ("hidden_size",), ("dim",), ("model_dim",), ("inner_dim",))


@dataclass(frozen=True)
class Inspection:
    """Findings of an inspection.

    Attributes:
        transformer: the class name.
        family: description of the family, as far as it was determined.
        evidence: one line for each examined property.
        doubts: uncertain findings; empty if there are none.
    """

    transformer: str
    family: Family
    evidence: tuple[str, ...]
    doubts: tuple[str, ...]


class UnsettledError(FewchannelsError):
    """No image stream was found in a transformer."""


def inspect_pipeline(pipeline: DiffusionPipeline, height: int, width: int) -> Inspection:
    """Run a pipeline a few dozen times for one step of a small image, and describe its transformer.

    Args:
        pipeline: pipeline as loaded; float32 on the CPU works best.
        height: height of the image, pixels; should differ from the width, so that rows are not mistaken for columns.
        width: width in pixels; same conventions as ``height``.

    Raises:
        UnsettledError: no list of blocks has an image stream that could be found.
    """
    return _Inspector(pipeline, height, width).run()


class _Inspector:
    def __init__(self, pipeline: DiffusionPipeline, height: int, width: int) -> None:
        self.pipeline, self.height, self.width = pipeline, height, width
        self.parameters = inspect.signature(pipeline.__call__).parameters
        self.signature = inspect.signature(type(pipeline.transformer).forward)
        self.evidence: list[str] = []
        self.doubts: list[str] = []
        scales = [name for name in ("true_cfg_scale", "guidance_scale") if name in self.parameters]
        self.scale = scales[0] if scales else None

    def run(self) -> Inspection:
        base = self.generate()
        names = self.running_lists(base)
        lists, text_lists, cells = [], 0, None
        for name in names:
            path = f"{name}.0"
            for output, tensor in base.outputs[0][path].items():
                if (found := self.image_at(path, output, tensor)) is None:
                    continue
                start, cells = found
                text = self.text_at(base, path, output, start)
                text_lists += text is not None
                kind = self.kind(base, path, output, text)
                lists.append(BlockList(name, kind, self.count(name), Place(output, start), text))
                break
            else:
                self.left_out(base, path)
        if not lists or cells is None:
            raise UnsettledError(
                f"no list of blocks of {type(self.pipeline.transformer).__name__} has tokens that change with their "
                f"own patch of the initial noise. Examined: {', '.join(names) or 'no list runs once in each forward'}."
            )
        how = self.guidance(base, lists[0])
        family = Family(
            lists=tuple(lists),
            pipelines={type(self.pipeline).__name__: how},
            patch=cells,
            width=self.width_keys(base, lists[0]),
            text=self.text_input(base) if text_lists else None,
            image_argument=self.image_argument(base),
            packed=base.forwards[0][self.image_argument(base)].ndim == 3,
            default_side=self.default_side(),
        )
        return Inspection(type(self.pipeline.transformer).__name__, family, tuple(self.evidence), tuple(self.doubts))

    def generate(
        self, prompts: Sequence[str] = _PROMPTS[:1], at: tuple[int, int] | None = None, scale: float = 1.0
    ) -> Seen:
        """Run one step; with ``at``, change that cell (row, column) of the first sample's noise."""
        arguments: dict[str, Any] = {
            "prompt": list(prompts),
            "num_inference_steps": 1,
            "generator": [torch.Generator().manual_seed(i) for i in range(len(prompts))],
            "height": self.height,
            "width": self.width,
        }
        if self.scale:
            arguments[self.scale] = scale
        if "use_resolution_binning" in self.parameters:
            arguments["use_resolution_binning"] = False
        if "negative_prompt" in self.parameters and scale > 1:
            arguments["negative_prompt"] = ["" for _ in prompts]
        limit = getattr(getattr(self.pipeline, "tokenizer", None), "model_max_length", 10**9)
        default = getattr(self.parameters.get("max_sequence_length"), "default", None)
        if isinstance(default, int):
            arguments["max_sequence_length"] = min(default, limit)
        seen = Seen([], [])
        try:
            with self.watching(seen), _changed_noise(self.pipeline, at), torch.inference_mode():
                self.pipeline(**{name: value for name, value in arguments.items() if name in self.parameters})
        except (TypeError, ValueError, AttributeError) as error:
            raise UnsettledError(
                f"{type(self.pipeline).__name__} does not run with only a prompt and a size: {error}"
            ) from error
        return seen

    @contextmanager
    def watching(self, seen: Seen) -> Iterator[None]:
        transformer: nn.Module = self.pipeline.transformer

        def begin(module: nn.Module, arguments: Any, keywords: Any) -> None:
            seen.forwards.append(self.signature.bind(None, *arguments, **keywords).arguments)
            seen.outputs.append({})

        def keep(path: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                each = dict(enumerate(output)) if isinstance(output, tuple) else {None: output}
                tensors = {at: x.clone() for at, x in each.items() if isinstance(x, Tensor) and x.ndim == 3}
                seen.outputs[-1].setdefault(path, tensors)

            return hook

        with ExitStack() as stack:
            stack.callback(transformer.register_forward_pre_hook(begin, with_kwargs=True).remove)
            for name, modules in transformer.named_modules():
                if isinstance(modules, nn.ModuleList):
                    for i, block in enumerate(modules):
                        stack.callback(block.register_forward_hook(keep(f"{name}.{i}")).remove)
            yield

    def running_lists(self, base: Seen) -> list[str]:
        """Lists of blocks of one class that all run in one forward, in order, and are not inside other lists."""
        ran = [path for path, tensors in base.outputs[0].items() if tensors]
        found: list[str] = []
        for path in ran:
            name = path.rpartition(".")[0]
            modules = self.pipeline.transformer.get_submodule(name)
            own = [each for each in ran if each.rpartition(".")[0] == name]
            whole = own == [f"{name}.{i}" for i in range(len(modules))] and len({type(each) for each in modules}) == 1
            if whole and name not in found and not any(char.isdigit() for char in name.split(".")):
                found.append(name)
        return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]

    def image_at(self, path: str, output: int | None, before: Tensor) -> tuple[Start, int] | None:
        """Start of the image's tokens in a tensor, and latent cells along a token's side; None if it has none."""
        height, width = self.noise_cells()
        places = {(0, p) for p in (0, 1, 2, 4, 8) if p < width} | {
            (height - 1, width - 1),
            (height - 1, 0),
            (height // 2, 1),
        }
        moves = {at: (self.generate(at=at).outputs[0][path][output] - before).norm(dim=-1)[0] for at in sorted(places)}
        first, _ = _own_token(moves, (0, 0))
        patch = next((p for p in (1, 2, 4, 8) if (0, p) in moves and _own_token(moves, (0, p))[0] == first + 1), None)
        if patch is None or height % patch or width % patch:
            return None
        rows, columns, sure = height // patch, width // patch, float("inf")
        for row, column in places:
            token, times = _own_token(moves, (row, column))
            if token != first + row // patch * columns + column // patch:
                return None
            sure = min(sure, times)
        place = f"{path}{'' if output is None else f' output {output}'}"
        self.evidence.append(
            f"{place}: tokens {first} to {first + rows * columns - 1} of {before.shape[1]} are the image's {rows} x "
            f"{columns}, row by row; each changes at least {sure:.3g} times as much with its own noise as with "
            "another's"
        )
        if sure < 3:
            self.doubts.append(f"{place}: image tokens change only {sure:.2f} times as much with their own noise")
        start: Start = "first"
        if first:
            start = "after_text" if self.is_uniform(path, output, rows * columns) else "after_own_text"
        return start, patch * self.cells_of_noise_cell((height, width))

    def left_out(self, base: Seen, path: str) -> None:
        """Explain why a list has no image tokens: it does not process the image, or they were not found."""
        after = self.generate(at=(0, 0)).outputs[0][path]
        if all(torch.equal(after[output], tensor) for output, tensor in base.outputs[0][path].items()):
            self.evidence.append(f"{path}: does not change with the noise; excluded")
        else:
            self.doubts.append(f"{path}: changes with the noise, but no token with its own patch of it; excluded")

    def is_uniform(self, path: str, output: int | None, n_image: int) -> bool:
        """Return whether the image ends at the last token for the shorter of two prompts in a batch, too."""
        height, width = self.noise_cells()
        before = self.generate(_PROMPTS).outputs[0][path][output]
        moves = {
            at: (self.generate(_PROMPTS, at=at).outputs[0][path][output] - before).norm(dim=-1)[0]
            for at in ((0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1))
        }
        return _own_token(moves, (0, 0))[0] == before.shape[1] - n_image

    def noise_cells(self) -> tuple[int, int]:
        shapes: list[tuple[int, ...]] = []
        with _changed_noise(self.pipeline, None, shapes):
            self.generate()
        return shapes[0][-2], shapes[0][-1]

    def cells_of_noise_cell(self, cells: tuple[int, int]) -> int:
        """Latent cells along one side of a cell of the noise: more than 1 if the noise is drawn in patches."""
        factor = getattr(self.pipeline, "vae_scale_factor", 8)
        return max(1, self.width // (factor * cells[1]))

    def text_at(self, base: Seen, path: str, image: int | None, start: Start) -> Place | None:
        """Position of the text tokens, if the block returns the same number as the transformer received."""
        n_text = self.n_text(base)
        tensors = base.outputs[0][path]
        if n_text is None:
            return None
        for output, tensor in tensors.items():
            if output != image and tensor.shape[1] == n_text:
                self.evidence.append(f"{path} output {output}: {n_text} tokens, the same number as the input text")
                return Place(output)
        if start != "first":
            self.evidence.append(f"{path}: the text tokens precede the image tokens")
            return Place(image)
        return None

    def n_text(self, base: Seen) -> int | None:
        given = base.forwards[0].get("encoder_hidden_states")
        return given.shape[1] if isinstance(given, Tensor) and given.ndim == 3 else None

    def text_input(self, base: Seen) -> TextInput:
        mask = "encoder_attention_mask"
        return TextInput(masks=(mask,)) if isinstance(base.forwards[0].get(mask), Tensor) else TextInput()

    def kind(self, base: Seen, path: str, output: int | None, text: Place | None) -> str:
        """Return whether text is in the block, comes in from outside, or does not."""
        if text is not None:
            return "single" if text.output == output else "dual"
        if len(base.outputs[0][path]) > 1:
            self.doubts.append(f"{path} returns tokens besides the image's, but not the number of the input text")
            return "dual"
        other = self.generate(_PROMPTS[1:]).outputs[0][path][output]
        same = other.shape == base.outputs[0][path][output].shape and torch.equal(other, base.outputs[0][path][output])
        return "refiner" if same else "cross"

    def count(self, name: str) -> str:
        """The key of the configuration with the list's length; preferably one that shares words with its name."""
        n = len(self.pipeline.transformer.get_submodule(name))
        keys = [key for key, value in self.pipeline.transformer.config.items() if value == n and type(value) is int]
        words = set(name.split("_"))
        keys.sort(key=lambda key: (-len(words & set(key.split("_"))), "layers" not in key, len(key)))
        if not keys:
            raise UnsettledError(f"no setting of the transformer's configuration counts the {n} blocks of {name}.")
        if len(keys) > 1:
            self.doubts.append(f"{name} has {n} blocks, which matches {', '.join(keys)}; used {keys[0]}")
        return keys[0]

    def guidance(self, base: Seen, first: BlockList) -> Pipeline:
        """Determine how the pipeline runs both branches, and in which order."""
        rest: dict[str, Any] = {"negative": "negative_prompt" in self.parameters}
        rest["length"] = "max_sequence_length" if "max_sequence_length" in self.parameters else None
        latents = self.image_argument(base)
        if self.scale is None:
            self.evidence.append("the pipeline has no guidance scale")
            if base.n_rows(latents) != 1:
                self.doubts.append(
                    f"it runs {base.in_words(latents)} per step for one prompt, but has no scale for them"
                )
            return Pipeline("none", **rest)
        default = self.parameters[self.scale].default
        runs: dict[float, Seen | None] = {0.0: self.at_scale(0.0), 1.0: base, 4.0: self.at_scale(4.0)}
        counts = {scale: seen.n_rows(latents) for scale, seen in runs.items() if seen is not None}
        for scale, seen in runs.items():
            if seen is not None and counts[scale] not in (1, 2):
                self.doubts.append(
                    f"{self.scale} {scale:g} runs {seen.in_words(latents)} per step for one prompt, which no kind of "
                    "guidance explains; a capture would end with an error"
                )
        guided = runs[4.0]
        if guided is None or counts[4.0] != 2:
            if any(n != 1 for n in counts.values()):
                self.doubts.append(f"{self.scale} is unclear: it runs different branches at different scales")
            self.evidence.append(f"{self.scale} runs no second branch")
            return Pipeline("none", embedded=self.scale, default_guidance=float(default), **rest)
        kind: Guidance = "sequential" if len(guided.forwards) == 2 else "batched"
        unguided = max((scale for scale, n in counts.items() if n == 1), default=None)
        if unguided is None:
            unguided = ALWAYS_GUIDED
            self.doubts.append(
                f"{self.scale} runs two branches at every scale that was tried; unguided is {unguided:g}"
            )
        elif any(n == 2 for scale, n in counts.items() if scale < unguided):
            self.doubts.append(
                f"{self.scale} runs two branches below {unguided:g} as well; unguided says above it only"
            )
        path, output = f"{first.path}.0", first.image.output
        alone = next((runs[scale] for scale, n in counts.items() if n == 1), None)
        other = None if alone else self.at_scale(4.0, _PROMPTS[1])
        order, ratio = branch_order(guided, alone, other, path, output)
        self.evidence.append(f"{self.scale} above {unguided:g} runs two branches, {kind}, {order[0]} first")
        if ratio > 0.1:
            self.doubts.append("the two branches can hardly be distinguished")
        if unguided != 1:
            rest["unguided"] = unguided
        rest["default_true_cfg" if self.scale == "true_cfg_scale" else "default_guidance"] = float(default)
        if self.scale == "true_cfg_scale" and self.pipeline.transformer.config.get("guidance_embeds"):
            rest |= {
                "embedded": "guidance_scale",
                "default_guidance": float(self.parameters["guidance_scale"].default),
            }
        return Pipeline(kind, order, self.scale, **rest)

    def at_scale(self, scale: float, prompt: str = _PROMPTS[0]) -> Seen | None:
        """Generate with a guidance scale; None if the pipeline does not run with it, which is noted."""
        try:
            return self.generate([prompt], scale=scale)
        except (UnsettledError, RuntimeError, ArithmeticError) as error:
            self.doubts.append(f"{self.scale} {scale:g} could not be tried: {error}")
            return None

    def width_keys(self, base: Seen, first: BlockList) -> tuple[str, ...]:
        n_channels = base.outputs[0][f"{first.path}.0"][first.image.output].shape[-1]
        config = self.pipeline.transformer.config
        for keys in _WIDTHS:
            if all(key in config for key in keys) and torch.tensor([config[key] for key in keys]).prod() == n_channels:
                return keys
        raise UnsettledError(
            f"no setting of the transformer's configuration gives the {n_channels} channels of its blocks."
        )

    def image_argument(self, base: Seen) -> str:
        return next(name for name, value in base.forwards[0].items() if isinstance(value, Tensor | list))

    def default_side(self) -> int:
        cells = getattr(self.pipeline, "default_sample_size", None) or self.pipeline.transformer.config.get(
            "sample_size"
        )
        return int(cells) * int(getattr(self.pipeline, "vae_scale_factor", 8)) if cells else 1024


def _own_token(moves: Mapping[tuple[int, int], Tensor], at: tuple[int, int]) -> tuple[int, float]:
    """The token that changes most when a cell of the noise changes, relative to its changes for other cells.

    Attention can change any token, some of them more than the cell's own token, but those change for every cell.
    """
    others = torch.stack([move for other, move in moves.items() if other != at]).median(dim=0).values
    score = moves[at] / (others + 0.05 * moves[at].max())
    token = int(score.argmax())
    return token, float(score[token])


def _changed_noise(
    pipeline: DiffusionPipeline, at: tuple[int, int] | None, shapes: list[tuple[int, ...]] | None = None
) -> AbstractContextManager[None]:
    """The pipeline's initial noise has other values in one cell of its first sample; its shape is noted."""

    def changed(own: Draw) -> Draw:
        def draw(*arguments: Any, **keywords: Any) -> Tensor:
            noise = own(*arguments, **keywords)
            if shapes is not None:
                shapes.append(tuple(noise.shape))
            if at is not None:
                cell = noise[0, ..., at[0], at[1]]
                cell += 3 * torch.randn(cell.shape, generator=torch.Generator().manual_seed(1))
            return noise

        return draw

    return drawn_by(pipeline, changed)
