"""Images noised to each step's level, against the VAE's own round trip and the mixture by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CASES
from PIL import Image

from fewchannels import open_run
from fewchannels.captures.begin import begin
from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.job import prepare
from fewchannels.captures.worker import CaptureWorker
from fewchannels.errors import InputError
from fewchannels.manifest import Sample
from fewchannels.models.generation import Settings
from fewchannels.models.load import load
from fewchannels.models.load_options import Loading
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find, geometry
from fewchannels.models.taps import tapped

# Whose pipelines are of flow matching with a VAE that the package can encode with; the others are refused.
TAKES = {
    *("flux", "flux-schnell", "flux-kontext", "flux2-klein", "flux2-klein-distilled", "flux2-dev", "chroma"),
    *(
        "qwen-image",
        "sana",
        "sd3",
        "sd3.5",
        "sd3-heun",
        "auraflow",
        "lumina2",
        "cogview4",
        "z-image",
        "hidream",
        "kandinsky5",
    ),
}
BY_NAME = {case.name: case for case in CASES}


def picture(path: Path, height: int, width: int, seed: int = 0) -> Path:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def sampler_of(name: str, folder: Path) -> Sampler:
    BY_NAME[name].build().save_pretrained(folder / "model")
    source = find(str(folder / "model"))
    shape = geometry(source)
    return Sampler(load(source, shape, Loading(), "cpu"), shape)


def round_trip(pipeline: Any, path: Path) -> np.ndarray:
    """What the VAE makes of an image, encoded and decoded without a scale or a shift."""
    pixels = np.asarray(Image.open(path), dtype=np.float32) / 127.5 - 1
    x, vae = torch.from_numpy(pixels).permute(2, 0, 1)[None], pipeline.vae
    with torch.inference_mode():
        if type(vae).__name__ == "AutoencoderDC":
            y = vae.decode(vae.encode(x).latent).sample
        elif type(vae).__name__ == "AutoencoderKLQwenImage":
            y = vae.decode(vae.encode(x[:, :, None]).latent_dist.mode()).sample[:, :, 0]
        else:
            y = vae.decode(vae.encode(x).latent_dist.mode()).sample
    return ((y / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1)[0].numpy().astype(int)


@pytest.mark.parametrize("name", BY_NAME)
def test_the_models_inputs_are_mixtures_of_the_image_and_its_noise(name: str, tmp_path: Path) -> None:
    sampler = sampler_of(name, tmp_path)
    assert sampler.geometry.takes_images == (name in TAKES)
    if name not in TAKES:
        return
    height, width = BY_NAME[name].square
    path = picture(tmp_path / "picture.png", height, width)
    seen: list[torch.Tensor] = []

    def look(module: Any, arguments: Any, keywords: Any) -> None:
        latents = arguments[0] if arguments else keywords["hidden_states"]
        seen.append(torch.stack(latents) if isinstance(latents, list) else latents.clone())

    sampler.pipeline.transformer.register_forward_pre_hook(look, with_kwargs=True)
    settings = Settings(height, width, 3, 0.0, 1.0, image=str(path), only_steps=(0, 1, 2))
    (image,) = sampler.generate([Sample("0", BY_NAME[name].prompts[0], 3)], settings)
    # The last latents are the image's: what the pipeline decodes is the VAE's round trip of it.
    assert np.abs(np.asarray(image).astype(int) - round_trip(sampler.pipeline, path)).max() <= 1
    sigmas = [float(sigma) for sigma in sampler.pipeline.scheduler.sigmas]
    at = [i for i in range(len(seen)) if sigmas[i] < 1]
    noise, one, other = seen[0], at[-1], at[-2]
    clean = (seen[one] - sigmas[one] * noise) / (1 - sigmas[one])
    expected = (1 - sigmas[other]) * clean + sigmas[other] * noise
    torch.testing.assert_close(seen[other], expected, rtol=1e-3, atol=1e-3)
    vars_left = [vars(sampler.pipeline.transformer), vars(sampler.pipeline.scheduler), vars(sampler.pipeline)]
    assert not any(name in left for left in vars_left for name in ("forward", "step", "prepare_latents"))


def test_a_capture_from_images_runs_the_chosen_steps_only_and_is_a_direct_forwards(manifest_of, tmp_path: Path) -> None:
    sampler = sampler_of("sd3", tmp_path)
    height, width = BY_NAME["sd3"].square
    first, second = (picture(tmp_path / f"{seed}.png", height, width, seed) for seed in (1, 2))
    manifest = manifest_of(f"prompt,seed,reference\na star,3,{first}\na star,4,{first}\na star,3,{second}\n")
    config = CaptureConfig(
        model=str(tmp_path / "model"),
        from_images=True,
        steps="1",
        num_inference_steps=3,
        top_k=4,
        guidance_scale=1.0,
        height=height,
        width=width,
    )
    job = prepare(manifest, tmp_path / "run", config)
    begin(job, manifest)
    worker, blocks_ran = CaptureWorker(job, 1), []
    worker.sampler.pipeline.transformer.transformer_blocks[0].register_forward_hook(lambda *_: blocks_ran.append(1))
    worker(0)
    assert len(blocks_ran) == 3, "one forward for each sample"
    stored = open_run(tmp_path / "run").activations["max_abs"].sel(step=1)
    assert not np.allclose(stored[0], stored[1], rtol=1e-3), "another seed is another noise"
    assert not np.allclose(stored[0], stored[2], rtol=1e-3), "another image"

    # By hand: the latent, its mixture, one forward.
    pipeline, states = sampler.pipeline, []
    x = torch.from_numpy(np.asarray(Image.open(first), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    vae = pipeline.vae
    with torch.inference_mode():
        clean = (vae.encode(x).latent_dist.mode() - vae.config.shift_factor) * vae.config.scaling_factor
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
        most = min(256, pipeline.tokenizer_3.model_max_length)
        text, _, pooled, _ = pipeline.encode_prompt(
            "a star", None, None, do_classifier_free_guidance=False, max_sequence_length=most
        )
        pipeline.scheduler.set_timesteps(3)
        sigma, timestep = pipeline.scheduler.sigmas[1], pipeline.scheduler.timesteps[1]
        for block in pipeline.transformer.transformer_blocks:
            block.register_forward_hook(lambda module, inputs, output: states.append(output[1][0].numpy().copy()))
        pipeline.transformer(
            hidden_states=(1 - sigma) * clean + sigma * noise,
            timestep=timestep[None],
            encoder_hidden_states=text,
            pooled_projections=pooled,
        )
    np.testing.assert_allclose(stored[0], np.abs(np.stack(states)).max(axis=1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "reference", "says"),
    [("pixart-alpha", True, "needs flow matching"), ("sd3", False, "empty in 1 of 1 rows")],
)
def test_what_cannot_be_noised_is_refused(name: str, reference: bool, says: str, manifest_of, tmp_path: Path) -> None:
    BY_NAME[name].build().save_pretrained(tmp_path / "model")
    path = picture(tmp_path / "picture.png", 16, 16) if reference else ""
    manifest = manifest_of(f"prompt,reference\na star,{path}\n")
    height, width = BY_NAME[name].square
    config = CaptureConfig(model=str(tmp_path / "model"), from_images=True, height=height, width=width)
    with pytest.raises(InputError, match=says):
        prepare(manifest, tmp_path / "run", config)


def test_taps_may_edit_an_images_forwards(tmp_path: Path) -> None:
    sampler = sampler_of("flux", tmp_path)
    path = picture(tmp_path / "picture.png", 16, 16)
    seen: list[torch.Tensor] = []
    settings = Settings(16, 16, 2, 3.5, 1.0, image=str(path), only_steps=(1,))
    with (
        tapped(sampler, sampler.geometry.blocks[:1], lambda site, x: torch.zeros_like(x)),
        tapped(sampler, sampler.geometry.blocks[:1], lambda site, x: seen.append(x.clone())),
    ):
        sampler.generate([Sample("0", "a star", 3)], settings)
    assert len(seen) == 1
    assert not seen[0].any()
