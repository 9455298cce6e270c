"""Run a pipeline for samples, with one noise generator each, and declare the step and branch of every forward pass."""

import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from fewchannels.errors import FamilyMismatchError, InputError
from fewchannels.files.images import read_image
from fewchannels.manifest import Sample
from fewchannels.models.family import BRANCHES, ModelGeometry
from fewchannels.models.from_images import noised
from fewchannels.models.generation import Settings
from fewchannels.models.geometry import uncompiled
from fewchannels.models.interruption import check_interrupted
from fewchannels.models.patching import replaced

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_CONTEXTS = {"cond": "cond", "uncond": "uncond", "pred_cond": "cond", "pred_uncond": "uncond"}
_REMEDY = "Describe how it runs in a family file (--family; docs/families.md)"


@dataclass(frozen=True)
class Forward:
    """One forward pass of the transformer, as declared by the sampler.

    Attributes:
        step: 0-based index of the current denoising step.
        leads: whether this is the step's pass at its own timestep. A second-order scheduler adds one at the next.
        rows: rows of the batch by branch.
        token_grid: image tokens along height and width.
        n_before_text: number of tokens of the image stream, including reference tokens and padding.
        n_text: number of text tokens of each row, without padding; None if not requested.
    """

    step: int
    leads: bool
    rows: Mapping[str, slice]
    token_grid: tuple[int, int]
    n_before_text: int
    n_text: tuple[int, ...] | None

    @property
    def n_image(self) -> int:
        """Number of tokens of the generated image."""
        return self.token_grid[0] * self.token_grid[1]


class Sampler:
    """A pipeline that tracks the current step and guidance branch while it runs.

    A step ends when the pipeline calls its scheduler's step. The branch is the name with which the pipeline enters its
    transformer's cache context or, without one, follows from the order in its family. Neither is guessed from shapes.
    Every forward pass is counted, whether or not a tap sees it. Undeclared passes, a branch that runs twice or not at
    all within a step, and more or fewer steps than declared are errors.

    Args:
        pipeline: the loaded pipeline.
        geometry: geometry of the model.

    Attributes:
        transformer: its transformer, without the wrapper of ``torch.compile``.
    """

    def __init__(self, pipeline: "DiffusionPipeline", geometry: ModelGeometry) -> None:
        self.pipeline, self.geometry = pipeline, geometry
        self.transformer = uncompiled(pipeline.transformer)
        self._signature = inspect.signature(type(self.transformer).forward)
        self._settings: Settings | None = None
        self._n_samples = self._n_ended = 0
        self._is_forward = False
        self._branches: tuple[str, ...] = ()
        self._ran: list[str] = []
        self._context: str | None = None
        self._timesteps: list[float] = []
        self._sigmas: list[float | None] = []

    def schedule(self) -> tuple[list[float], list[float | None]]:
        """Timestep and noise level (sigma; None if the scheduler has none) of every step of the last generation."""
        return self._timesteps, self._sigmas

    def max_prompt_tokens(self) -> int:
        """Maximum length of a prompt for the sequence text encoder, in tokens."""
        tokenizer, how = self._tokenizer(), self.geometry.pipeline
        if tokenizer is None or how.length is None:
            return how.max_tokens
        return min(how.max_tokens, tokenizer.model_max_length)

    def _tokenizer(self) -> Any:
        name = self.geometry.pipeline.tokenizer
        found = getattr(self.pipeline, name) if name else None
        return getattr(found, "tokenizer", found)  # a processor contains one

    def prompt_lengths(self, prompts: Sequence[str]) -> list[tuple[int, bool]]:
        """For each prompt, its number of tokens for the sequence text encoder, and whether it is truncated.

        A pooled encoder may read a shorter prefix of a long prompt; this does not count as truncation.
        """
        tokenizer, limit = self._tokenizer(), self.max_prompt_tokens()
        if tokenizer is None:
            return [(1, False)] * len(prompts)
        how = self.geometry.pipeline
        texts = [how.before + (prompt.lower().strip() if how.lower_case else prompt) for prompt in prompts]
        lengths = [len(ids) for ids in tokenizer(texts, verbose=False).input_ids]
        return [(length, length > limit) for length in lengths]

    def generate(self, samples: Sequence[Sample], settings: Settings) -> list[Image.Image]:
        """Generate one image per sample.

        Each sample's noise comes from its own CPU generator, so it is the same in any batch and on any device.

        Args:
            samples: the batch.
            settings: settings that the batch shares.

        Raises:
            InputError: the model does not accept a prompt or a reference.
            FamilyMismatchError: the pipeline did not run as its family describes.
            KeyboardInterrupt: another thread ended this process's generations.
            RuntimeError: the image has another size.
        """
        with self.declaring(len(samples), settings), torch.inference_mode(), self._noised(settings):
            images = self.pipeline(**self._arguments(samples, settings))[0]  # its name differs between pipelines
            self.check_steps(settings, self.geometry.n_run(settings.steps))
        if images[0].size != (settings.width, settings.height):
            raise RuntimeError(f"the pipeline made {images[0].size} of {settings.width} x {settings.height} pixels")
        return images

    def check_steps(self, settings: Settings, n_run: int, *, may_stop: bool = False) -> None:
        """Reject a generation that ended after other steps than declared, or within a step.

        Args:
            settings: settings of the generation.
            n_run: expected number of steps.
            may_stop: whether it may end before the last of them.

        Raises:
            FamilyMismatchError: other steps ran; the message lists them.
        """
        if self._ran:
            raise self._mismatch(f"ran {' and '.join(self._ran)} once more after the last step of its scheduler")
        n_ended = len(self._timesteps)
        if n_ended > n_run or (n_ended < n_run and not may_stop):
            scheduler = type(self.pipeline.scheduler).__name__
            raise self._mismatch(
                f"ended {n_ended} steps of {scheduler} where {n_run} of {settings.steps} were declared"
            )

    def _mismatch(self, did: str) -> FamilyMismatchError:
        return FamilyMismatchError(f"{type(self.pipeline).__name__} {did}. {_REMEDY}, or change the settings.")

    def _noised(self, settings: Settings) -> AbstractContextManager[None]:
        if settings.image is None:
            return nullcontext()
        images, size = {0: read_image(settings.image)}, (settings.height, settings.width)
        return noised(self.pipeline, images, *size, lambda: self._step() in settings.only_steps)

    def _arguments(self, samples: Sequence[Sample], settings: Settings) -> dict[str, Any]:
        how = self.geometry.pipeline
        arguments: dict[str, Any] = {
            how.prompt: [sample.prompt for sample in samples],
            "generator": [torch.Generator("cpu").manual_seed(sample.seed) for sample in samples],
            "num_inference_steps": settings.steps,
            **how.fixed,
        }
        if how.prompt == "class_labels":
            arguments[how.prompt] = [self._class_label(sample.prompt) for sample in samples]
        if how.sizes != "default":
            arguments |= {"height": settings.height, "width": settings.width}
        if how.area:
            arguments[how.area] = settings.height * settings.width
        if how.length:
            arguments[how.length] = self.max_prompt_tokens()
        if how.two_steps and settings.steps != 2:
            arguments[how.two_steps] = None
        if how.embedded and self.geometry.embeds_guidance:
            arguments[how.embedded] = settings.guidance
        if how.classifier_free:
            arguments[how.classifier_free] = settings.true_cfg_scale if how.has_true_cfg else settings.guidance
        if how.negative and self.geometry.is_guided(settings.guidance, settings.true_cfg_scale):
            arguments["negative_prompt"] = [sample.negative_prompt or "" for sample in samples]
        if settings.reference is not None:
            assert how.reference is not None
            arguments[how.reference] = read_image(settings.reference)
            arguments[how.prompt] = samples[0].prompt
        return arguments

    def _class_label(self, prompt: str) -> int:
        labels = self.pipeline.labels
        if prompt in labels:
            return labels[prompt]
        if prompt.isdecimal() and int(prompt) < self.pipeline.transformer.config.num_embeds_ada_norm:
            return int(prompt)
        raise InputError(f"the prompt {prompt!r} is neither the name nor the number of a class of this model.")

    def forward_begins(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any], *, text: bool) -> Forward:
        """Describe the transformer's forward pass that is about to run.

        Args:
            arguments: positional arguments of the transformer.
            keywords: its keyword arguments.
            text: whether to determine the length of the text, which may have to wait for a GPU.

        Raises:
            FamilyMismatchError: it was not declared, or does not have the rows of its branches.
        """
        assert self._settings is not None, "the transformer runs outside generate()"
        settings = self._settings
        is_new, self._is_forward = not self._is_forward, True
        if is_new:  # several taps may request it
            self._branches = self._next_branches(settings)
            self._ran += self._branches
        # Without self, which a bound call lacks.
        given = self._signature.bind(None, *arguments, **keywords).arguments
        family = self.geometry.family
        grid = self.geometry.token_grid(settings.height, settings.width)
        latents, n = given[family.image_argument], self._n_samples
        if is_new:
            self._check_grid(latents, grid)
        rows = {branch: slice(i * n, (i + 1) * n) for i, branch in enumerate(self._branches)}
        if len(latents) != len(rows) * n:
            raise self._mismatch(f"ran {len(latents)} rows for {n} samples and {' and '.join(rows)}")
        n_image = grid[0] * grid[1]
        multiple = family.image_multiple
        return Forward(
            step=self._step(),
            leads=self._n_ended % self._order() == 0,
            rows=rows,
            token_grid=grid,
            n_before_text=latents.shape[1] if family.packed else -(-n_image // multiple) * multiple,
            n_text=self._n_text(given, len(latents)) if text else None,
        )

    def _check_grid(self, latents: Any, grid: tuple[int, int]) -> None:
        """Reject latents of an image with another size than declared, whose tokens would be misplaced."""
        family = self.geometry.family
        if family.packed:
            n_tokens, n_image = latents.shape[1], grid[0] * grid[1]
            fits = n_tokens == n_image or (self.geometry.pipeline.reference is not None and n_tokens > n_image)
            found = f"{n_tokens} image tokens"
        else:
            cells = family.cells_per_token(self.transformer.config)
            shape, sides = tuple(latents[0].shape), (grid[0] * cells, grid[1] * cells)
            fits, found = sides in itertools.pairwise(shape), f"latents of shape {shape}"
        if not fits:
            raise self._mismatch(f"gave its transformer {found}, where {grid[0]} x {grid[1]} image tokens are declared")

    def _declared(self, settings: Settings) -> tuple[str, ...]:
        """Branches of a step, in order; for a guider that chooses by itself, the possible ones."""
        how = self.geometry.pipeline
        if how.guidance == "component":
            return BRANCHES
        return how.order if self.geometry.is_guided(settings.guidance, settings.true_cfg_scale) else ("cond",)

    def _next_branches(self, settings: Settings) -> tuple[str, ...]:
        """Branches of the forward pass that is about to run; none of them may have run in this step."""
        how, declared = self.geometry.pipeline, self._declared(settings)
        if how.guidance == "batched":
            found = declared
        else:
            named = _CONTEXTS.get(self._context or "")
            if named is None and how.guidance == "component":
                raise self._mismatch(f"ran a forward that its guider calls {self._context!r}")
            found = (named or declared[len(self._ran) % len(declared)],)
        if again := [branch for branch in found if branch in self._ran or branch not in declared]:
            raise self._mismatch(
                f"ran {' and '.join([*self._ran, *found])} in step {self._step()}, and declared are "
                f"{' and '.join(declared)}, once each: {again[0]} would overwrite what was read"
            )
        return found

    def _check_forwards(self, settings: Settings) -> None:
        """Reject the end of a step before every branch has run."""
        needed = ("cond",) if self.geometry.pipeline.guidance == "component" else self._declared(settings)
        if missing := [branch for branch in needed if branch not in self._ran]:
            raise self._mismatch(
                f"ended step {self._step()} after {' and '.join(self._ran) or 'no forward'}, without the declared "
                f"{' and '.join(missing)}"
            )

    def forward_ends(self) -> None:
        """Finish the current forward pass, so that the next one can be described."""
        self._is_forward = False

    def _begin(self, module: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        check_interrupted()
        self.forward_begins(arguments, keywords, text=False)

    def _end(self, module: Any, inputs: Any, output: Any) -> None:
        self.forward_ends()

    def _n_text(self, given: Mapping[str, Any], n_rows: int) -> tuple[int, ...] | None:
        text = self.geometry.family.text
        if text is None:
            return None
        masks = [given[name] for name in text.masks if given.get(name) is not None]
        if masks:
            lengths = sum(mask.sum(dim=-1) for mask in masks)
            return tuple(int(length) + text.extra for length in lengths)
        first, *more = (given[name] for name in text.arguments if given.get(name) is not None)
        if isinstance(first, list):
            return tuple(len(tokens) + text.extra for tokens in first)
        return (first.shape[-2] + sum(each.shape[-2] for each in more) + text.extra,) * n_rows

    def _order(self) -> int:
        return getattr(self.pipeline.scheduler, "order", 1)

    def _step(self) -> int:
        return self._n_ended // self._order()

    @contextmanager
    def declaring(self, n_samples: int, settings: Settings) -> Iterator[None]:
        """Declare that the forward passes inside the context are those of one batch; :meth:`generate` uses it."""
        transformer, scheduler = self.transformer, self.pipeline.scheduler
        self._settings, self._n_samples, self._n_ended = settings, n_samples, 0
        self._is_forward, self._ran = False, []
        self._context, self._timesteps, self._sigmas = None, [], []
        with ExitStack() as stack:
            stack.callback(setattr, self, "_settings", None)
            stack.callback(transformer.register_forward_pre_hook(self._begin, with_kwargs=True).remove)
            stack.callback(transformer.register_forward_hook(self._end).remove)
            if enter := getattr(transformer, "cache_context", None):

                @contextmanager
                def cache_context(name: str) -> Iterator[None]:
                    self._context = name
                    try:
                        with enter(name):
                            yield
                    finally:
                        self._context = None

                stack.enter_context(replaced(transformer, "cache_context", cache_context))
            end_step = scheduler.step

            @functools.wraps(end_step)  # pipelines inspect its signature
            def step(*arguments: Any, **keywords: Any) -> Any:
                self._check_forwards(settings)
                if self._n_ended % self._order() == 0:
                    timestep = arguments[1] if len(arguments) > 1 else keywords["timestep"]
                    self._timesteps.append(float(torch.as_tensor(timestep).flatten()[0]))
                    self._sigmas.append(_sigma(scheduler, timestep))
                self._n_ended += 1
                self._is_forward, self._ran = False, []
                return end_step(*arguments, **keywords)

            stack.enter_context(replaced(scheduler, "step", step))
            yield


def _sigma(scheduler: Any, timestep: Any) -> float | None:
    """The noise level of a scheduler's next step; None if it has none.

    A pipeline may start within the schedule, so the scheduler's steps are counted, not the pipeline's.
    """
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return None
    index = getattr(scheduler, "step_index", None)
    if index is None:  # before its first step: the scheduler itself will determine the index the same way
        index = getattr(scheduler, "begin_index", None)
    if index is None:
        index = scheduler.index_for_timestep(torch.as_tensor(timestep).flatten()[0].to(scheduler.timesteps.device))
    return float(sigmas[index])
