"""Train the bundled demo model from nothing: ``python -m fewchannels.demo.train --out FOLDER``.

Three stages, each resumable from its last checkpoint by running the same command again:

1. ``vae``: the autoencoder on freshly drawn scenes (L1 + squared error, a light KL term).
2. ``flow``: the transformer with both text encoders by flow matching on encoded scenes, captions dropped 10 % of
   the time, an exponential moving average kept.
3. ``distil``: guidance distilled into the guidance embedding, as in FLUX.1-dev: the student learns the velocity that
   classifier-free guidance with scale ``w`` would give, ``w`` uniform in :data:`GUIDANCE_RANGE`.

Batches are drawn from (seed, stage, step), so an interrupted training resumes as if it had not been, but for the last
bits of sums.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor, nn
from tqdm import tqdm

from fewchannels.demo.build import Architecture, build_pipeline, flushed_denormals
from fewchannels.demo.world import all_scenes, choose_scenes, draw
from fewchannels.files.durable import writing

GUIDANCE_RANGE = (1.0, 6.0)
CAPTION_DROPOUT = 0.1
EMA_DECAY = 0.999
CHECKPOINT_EVERY = 500
STAGES = ("vae", "flow", "distil")


@dataclass(frozen=True)
class Recipe:
    """How long and how fast each stage learns. The defaults are the shipped model's."""

    vae_steps: int = 3500
    vae_batch: int = 16
    vae_rate: float = 2e-3
    flow_steps: int = 15000
    flow_batch: int = 32
    flow_rate: float = 1e-3
    distil_steps: int = 2000
    distil_batch: int = 32
    distil_rate: float = 3e-4
    n_scenes: int = 49152
    seed: int = 0


@dataclass
class Trainer:
    """One training in one folder."""

    folder: Path
    recipe: Recipe
    architecture: Architecture
    device: torch.device

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.pipeline: FluxPipeline = build_pipeline(self.architecture, self.recipe.seed).to(self.device)
        self.started = time.monotonic()

    def run(self) -> None:
        """Train what is not trained yet and write the finished pipeline to ``folder/model``."""
        self._stage("vae", self.pipeline.vae, self._vae_loss, average=False)
        self.latents, self.scene_ids = self._encode_scenes()
        self.clip_ids, self.t5_ids = self._tokenize()
        learner = nn.ModuleList([self.pipeline.transformer, self.pipeline.text_encoder, self.pipeline.text_encoder_2])
        self._stage("flow", learner, self._flow_loss, average=True)
        self.teacher = copy.deepcopy(self.pipeline.transformer).requires_grad_(False)
        self.pipeline.text_encoder.requires_grad_(False)
        self.pipeline.text_encoder_2.requires_grad_(False)
        self._stage("distil", self.pipeline.transformer, self._distil_loss, average=True)
        self.pipeline.to("cpu").save_pretrained(self.folder / "model")

    def _stage(
        self, stage: str, learner: nn.Module, loss_of: Callable[[torch.Generator], Tensor], *, average: bool
    ) -> None:
        """Train ``learner`` in place; at the end it holds the moving average where one is kept."""
        recipe = self.recipe
        steps, rate = getattr(recipe, f"{stage}_steps"), getattr(recipe, f"{stage}_rate")
        parameters = [p for p in learner.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        warm_up = min(200, steps // 4 + 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda i: min(1.0, (i + 1) / warm_up) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, i / steps)))),
        )
        parts: dict[str, Any] = {"learner": learner, "optimizer": optimizer, "schedule": schedule}
        mean = None
        if average:
            decay = torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
            parts["mean"] = mean = torch.optim.swa_utils.AveragedModel(learner, multi_avg_fn=decay)
        path, first = self.folder / f"{stage}.pt", 0
        if path.exists():
            saved = torch.load(path, map_location=self.device, weights_only=True)
            first = saved.pop("step")
            for name, state in saved.items():
                parts[name].load_state_dict(state)
        learner.train()
        losses: list[float] = []
        for step in (bar := tqdm(range(first, steps), desc=stage, initial=first, total=steps, mininterval=2)):
            loss = loss_of(self._generator(stage, step))
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if mean is not None:
                mean.update_parameters(learner)
            losses.append(loss.item())
            if (step + 1) % 100 == 0 or step + 1 == steps:
                average_loss = sum(losses) / len(losses)
                bar.set_postfix(loss=f"{average_loss:.4f}")
                self._log(stage=stage, step=step + 1, loss=round(average_loss, 5), rate=schedule.get_last_lr()[0])
                losses.clear()
            if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == steps:
                state = {name: part.state_dict() for name, part in parts.items()} | {"step": step + 1}
                with writing(path) as file:
                    torch.save(state, file)
        if mean is not None:
            learner.load_state_dict(mean.module.state_dict())
        learner.eval()

    def _generator(self, stage: str, step: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(
            (self.recipe.seed * 3 + STAGES.index(stage)) * 10_000_000 + step
        )

    def _log(self, **record: Any) -> None:
        record["seconds"] = round(time.monotonic() - self.started, 1)
        with open(self.folder / "train.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(record) + "\n")

    def _vae_loss(self, generator: torch.Generator) -> Tensor:
        seed = generator.initial_seed()
        scenes = choose_scenes(self.recipe.vae_batch, seed, held_out=False)
        images = draw(scenes, seed, side=self.architecture.side, device=self.device)[0] * 2 - 1
        posterior = self.pipeline.vae.encode(images).latent_dist
        error = self.pipeline.vae.decode(posterior.sample(generator)).sample - images
        return error.abs().mean() + error.square().mean() + 1e-5 * posterior.kl().mean() / error[0].numel()

    @torch.no_grad()
    def _encode_scenes(self) -> tuple[Tensor, Tensor]:
        """Encode the training scenes; sets the VAE's scaling so that latents have mean 0 and deviation 1.

        Returns:
            Packed latents ``(scene, token, channel)`` and each one's index into :func:`all_scenes`.
        """
        n, latents, index = self.recipe.n_scenes, [], {scene: i for i, scene in enumerate(all_scenes())}
        scenes = choose_scenes(n, self.recipe.seed, held_out=False)
        for i, start in enumerate(tqdm(range(0, n, 256), desc="encode")):
            batch = scenes[start : start + 256]
            images = draw(batch, 1 + i, side=self.architecture.side, device=self.device)[0] * 2 - 1
            latents.append(self.pipeline.vae.encode(images).latent_dist.mode())
        z = torch.cat(latents)
        self.pipeline.vae.register_to_config(shift_factor=z.mean().item(), scaling_factor=1 / z.std().item())
        z = (z - z.mean()) / z.std()
        packed = FluxPipeline._pack_latents(z, *z.shape)
        return packed, torch.tensor([index[scene] for scene in scenes], device=self.device)

    def _tokenize(self) -> tuple[Tensor, Tensor]:
        """Token ids of every scene's caption, with the empty caption last, for CLIP and for T5."""
        captions = [scene.caption for scene in all_scenes()] + [""]
        return tuple(
            tokenizer(
                captions, padding="max_length", max_length=self.architecture.text_tokens, return_tensors="pt"
            ).input_ids.to(self.device)
            for tokenizer in (self.pipeline.tokenizer, self.pipeline.tokenizer_2)
        )

    def _batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Clean latents, noise, noise levels and caption rows of one batch."""
        rows = torch.randint(len(self.latents), (size,), generator=generator, device=self.device)
        clean = self.latents[rows]
        noise = torch.randn(clean.shape, generator=generator, device=self.device)
        sigma = torch.sigmoid(torch.randn(size, generator=generator, device=self.device))
        dropped = torch.rand(size, generator=generator, device=self.device) < CAPTION_DROPOUT
        captions = torch.where(dropped, len(self.clip_ids) - 1, self.scene_ids[rows])
        return clean, noise, sigma, captions

    def _encode_captions(self, captions: Tensor) -> tuple[Tensor, Tensor]:
        pooled = self.pipeline.text_encoder(self.clip_ids[captions]).pooler_output
        return pooled, self.pipeline.text_encoder_2(self.t5_ids[captions])[0]

    def _velocity(
        self, transformer: nn.Module, x: Tensor, sigma: Tensor, pooled: Tensor, text: Tensor, guidance: Tensor
    ) -> Tensor:
        grid = self.architecture.grid
        image_ids = FluxPipeline._prepare_latent_image_ids(1, grid, grid, self.device, x.dtype)
        return transformer(
            hidden_states=x,
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=sigma,
            guidance=guidance,
            img_ids=image_ids,
            txt_ids=torch.zeros(text.shape[1], 3, device=self.device),
            return_dict=False,
        )[0]

    def _flow_loss(self, generator: torch.Generator) -> Tensor:
        clean, noise, sigma, captions = self._batch(generator, self.recipe.flow_batch)
        x = torch.lerp(clean, noise, sigma[:, None, None])
        predicted = self._velocity(
            self.pipeline.transformer, x, sigma, *self._encode_captions(captions), torch.ones_like(sigma)
        )
        return (predicted - (noise - clean)).square().mean()

    def _distil_loss(self, generator: torch.Generator) -> Tensor:
        clean, noise, sigma, captions = self._batch(generator, self.recipe.distil_batch)
        x = torch.lerp(clean, noise, sigma[:, None, None])
        low, high = GUIDANCE_RANGE
        scale = low + (high - low) * torch.rand(sigma.shape, generator=generator, device=self.device)
        with torch.no_grad():
            pooled, text = self._encode_captions(captions)
            empty_pooled, empty_text = self._encode_captions(torch.full_like(captions, len(self.clip_ids) - 1))
            one = torch.ones_like(sigma)
            conditional = self._velocity(self.teacher, x, sigma, pooled, text, one)
            unconditional = self._velocity(self.teacher, x, sigma, empty_pooled, empty_text, one)
            target = torch.lerp(unconditional, conditional, scale[:, None, None])
        predicted = self._velocity(self.pipeline.transformer, x, sigma, pooled, text, scale)
        return (predicted - target).square().mean()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fewchannels.demo.train", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, train.jsonl and model/")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--grid", type=int, default=Architecture.grid, help="tokens along an image's side")
    for name, kind in Recipe.__annotations__.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, default=getattr(Recipe, name))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Parse arguments and train."""
    arguments = vars(_arguments(argv))
    folder, device, grid = arguments.pop("out"), arguments.pop("device"), arguments.pop("grid")
    with flushed_denormals():
        Trainer(folder, Recipe(**arguments), Architecture(grid=grid), torch.device(device)).run()


if __name__ == "__main__":
    main()
