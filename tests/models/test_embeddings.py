"""Prompts that are encoded once, and before there is a transformer, against the plain pipeline."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CASES
from checkpoints.case import Case
from diffusers import FluxPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import T5EncoderModel
from typer.testing import CliRunner

from fewchannels.captures.config import CaptureConfig
from fewchannels.captures.encode_prompts import encode_prompts
from fewchannels.captures.job import prepare
from fewchannels.captures.recorder import Recorder
from fewchannels.captures.stored_embeddings import StoredEmbeddings
from fewchannels.captures.worker import CaptureWorker
from fewchannels.cli import app
from fewchannels.errors import InputError
from fewchannels.manifest import Sample, read_samples
from fewchannels.models.embeddings import Recent, digest, remembering
from fewchannels.models.load import load
from fewchannels.models.load_options import Loading
from fewchannels.models.sampler import Sampler
from fewchannels.models.source import find, text_encoders
from fewchannels.runs.arrays import NAME
from fewchannels.runs.storage import FolderStorage

BY_NAME = {case.name: case for case in CASES if case.name != "dit"}


@contextmanager
def encoder_calls(pipeline: Any) -> Iterator[list[str]]:
    """Collect the forwards of a pipeline's text encoders, by hooks of our own."""
    called: list[str] = []
    encoders = {name: part for name, part in pipeline.components.items() if name.startswith("text_encoder") and part}
    hooks = [
        part.register_forward_pre_hook(lambda *_, name=name: called.append(name)) for name, part in encoders.items()
    ]
    yield called
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", BY_NAME)
def test_every_family_makes_the_same_images_when_its_prompts_are_encoded_first(
    name: str, tmp_path: Path, manifest_of
) -> None:
    case = BY_NAME[name]
    folder = tmp_path / "model"
    case.build().save_pretrained(folder)
    job, samples = job_of(case, folder, tmp_path, manifest_of)
    source = find(str(folder))

    def images(sampler: Sampler) -> list[np.ndarray]:
        return [np.asarray(sampler.generate([sample], job.settings(sample))[0]) for sample in samples]

    plain = Sampler(load(source, job.geometry, Loading(), "cpu"), job.geometry)
    with encoder_calls(plain.pipeline) as in_all:
        expected = images(plain)
    with remembering(plain.pipeline, Recent()), encoder_calls(plain.pipeline) as called:
        for image, again, other in zip(images(plain), images(plain), expected, strict=True):
            np.testing.assert_array_equal(image, other)
            np.testing.assert_array_equal(again, other)
    assert 0 < len(called) < len(in_all), "the third sample has the first one's prompt"

    kept = StoredEmbeddings(FolderStorage(tmp_path / "kept"))
    assert list(encode_prompts(job, samples, kept, "cpu")) == [None] * 3
    without = load(source, job.geometry, Loading(), "cpu", dict.fromkeys(text_encoders(source)))
    assert not [part for name, part in without.components.items() if name.startswith("text_encoder") and part]
    with remembering(without, kept, encodes=False):
        for image, other in zip(images(Sampler(without, job.geometry)), expected, strict=True):
            np.testing.assert_array_equal(image, other)


def job_of(case: Case, folder: Path, tmp_path: Path, manifest_of) -> tuple[Any, list[Sample]]:
    """A job of three samples, of which the last has the first one's prompt and another seed."""
    image = tmp_path / "reference.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(image)
    rows = [(case.prompts[0], 3), (case.prompts[1], 4), (case.prompts[0], 5)]
    extra = f",{image}" if case.reference == "must" else ""
    lines = ["prompt,seed" + (",reference" if extra else ""), *(f"{prompt},{seed}{extra}" for prompt, seed in rows)]
    manifest = manifest_of("\n".join(lines) + "\n")
    scales = case.guided or case.unguided
    config = CaptureConfig(
        model=str(folder),
        num_inference_steps=2,
        height=case.square[0],
        width=case.square[1],
        guidance_scale=scales.get("guidance"),
        true_cfg_scale=scales.get("true_cfg_scale"),
        encode_first=True,
    )
    job = prepare(manifest, tmp_path / "run", config)
    return job, read_samples(manifest, 0, 3)


@pytest.mark.usefixtures("one_ray")
def test_a_capture_that_encodes_first_holds_what_a_plain_one_holds(
    tiny_model: Path, tmp_path: Path, manifest_of
) -> None:
    rows = manifest_of("prompt,seed\na red star,1\na blue ring,2\na red star,3\n")
    command = ["capture", "--model", str(tiny_model), "--manifest", str(rows), "--num-inference-steps", "2"]
    more = ["--batch-size", "1", "--shard-samples", "2", "--actors", "1"]
    for name, first in (("plain", []), ("first", ["--encode-first"])):
        done = CliRunner().invoke(app, [*command, *more, "--out", str(tmp_path / name), *first])
        assert done.exit_code == 0, done.output
    plain, first = tmp_path / "plain", tmp_path / "first"
    shards = sorted(path.relative_to(plain) for path in (plain / NAME).rglob("*") if path.is_file())
    assert len(shards) > 10
    assert shards == sorted(path.relative_to(first) for path in (first / NAME).rglob("*") if path.is_file())
    assert all((plain / shard).read_bytes() == (first / shard).read_bytes() for shard in shards)
    fingerprints = {json.loads((run / "run.json").read_text())["fingerprint"] for run in (plain, first)}
    assert len(fingerprints) == 1, "where the encoders are does not change what a run holds"
    assert not list(first.glob("embeddings/*")), "of a finished run"
    checked = CliRunner().invoke(app, ["runs", "verify", str(first), "--recompute", "3", "--json"])
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["recomputed"]["n_equal"] == 3


def test_a_capture_that_stopped_keeps_its_embeddings_and_goes_on_from_them(
    tiny_model: Path, tmp_path: Path, manifest_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, samples = tiny_job(tiny_model, tmp_path, manifest_of)
    kept = StoredEmbeddings(job.storage)
    assert list(encode_prompts(job, samples[:2], kept, "cpu")) == [None, None]
    (first, second) = sorted((tmp_path / "run" / "embeddings").iterdir())
    whole = first.read_bytes()
    first.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    n_calls = []
    own = T5EncoderModel.forward
    monkeypatch.setattr(T5EncoderModel, "forward", lambda *a, **k: n_calls.append(1) or own(*a, **k))
    assert list(encode_prompts(job, samples, kept, "cpu")) == [None, None, None]
    assert len(n_calls) == 2, "the damaged one and the new one"
    assert first.read_bytes() == whole
    worker = CaptureWorker(job, 1, kept)
    second.unlink()
    errors = [made.row["error"] for made in worker.generate(samples, Recorder(job.layout, "mean_abs", ["0", "1", "2"]))]
    assert sorted(map(bool, errors)) == [False, False, True]
    assert "rerun to encode its prompt again" in next(filter(None, errors))


def test_a_prompt_that_cannot_be_encoded_fails_alone(
    tiny_model: Path, tmp_path: Path, manifest_of, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, samples = tiny_job(tiny_model, tmp_path, manifest_of)
    own = FluxPipeline.encode_prompt

    @functools.wraps(own)
    def picky(*arguments: Any, **keywords: Any) -> Any:
        if keywords["prompt"] == ["a blue ring"]:
            raise ValueError("no rings")
        return own(*arguments, **keywords)

    monkeypatch.setattr(FluxPipeline, "encode_prompt", picky)
    errors = list(encode_prompts(job, samples, StoredEmbeddings(job.storage), "cpu"))
    assert errors == [None, "ValueError: no rings", None]


def tiny_job(tiny_model: Path, tmp_path: Path, manifest_of) -> tuple[Any, list[Sample]]:
    rows = manifest_of("prompt,seed\na red star,1\na blue ring,2\na green disc,3\n")
    config = CaptureConfig(model=str(tiny_model), num_inference_steps=1, encode_first=True)
    return prepare(rows, tmp_path / "run", config), read_samples(rows, 0, 3)


def test_settings_that_do_not_go_with_it_are_refused(tiny_model: Path, tmp_path: Path, manifest_of) -> None:
    with pytest.raises(InputError, match="batch_size is 4; it must be 1 with encode_first"):
        CaptureConfig(encode_first=True, batch_size=4)
    with pytest.raises(InputError, match="encode_first and lora"):
        CaptureConfig(encode_first=True, lora="style.safetensors")
    dit = tmp_path / "dit"
    next(case for case in CASES if case.name == "dit").build().save_pretrained(dit)
    with pytest.raises(InputError, match="encode_first needs text encoders"):
        prepare(manifest_of("prompt\n1\n"), tmp_path / "run", CaptureConfig(model=str(dit), encode_first=True))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values, values)
def test_keys_differ_where_the_questions_do(one: Any, other: Any) -> None:
    # repr tells True from 1 and a list from a tuple, as a key must.
    assert (digest(one) == digest(other)) == (canonical(one) == canonical(other))


def canonical(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{canonical(each)}" for key, each in sorted(value.items())) + "}"
    if isinstance(value, (list, tuple)):
        return type(value).__name__ + "[" + ",".join(map(canonical, value)) + "]"
    return repr(value)


def test_keys_tell_tensors_and_images_apart() -> None:
    x = torch.arange(4.0)
    image = Image.new("RGB", (2, 2))
    same = {digest(x), digest(x.clone()), digest(torch.arange(8.0)[:4])}
    others = [x + 1, x.reshape(2, 2), x.int(), x.bfloat16(), image, Image.new("L", (2, 2)), Image.new("RGB", (4, 1))]
    assert len(same) == 1
    assert len(same | {digest(each) for each in others}) == 1 + len(others)


def test_results_come_back_as_they_were(tmp_path: Path) -> None:
    kept = StoredEmbeddings(FolderStorage(tmp_path))
    result = (torch.randn(1, 3, 4).bfloat16(), None, [torch.arange(3), torch.randn(2, 6)[:, ::2]])
    kept.put("key", result)
    found = kept.find("key", torch.device("cpu"))
    assert isinstance(found, tuple)
    assert isinstance(found[2], list)
    assert found[1] is None
    assert found[0].dtype == torch.bfloat16
    for mine, own in ((found[0], result[0]), *zip(found[2], result[2], strict=True)):
        assert torch.equal(mine, own)


def test_memory_holds_the_latest_and_no_more() -> None:
    recent, device = Recent(), torch.device("cpu")
    mebibytes_100 = torch.zeros(25 * 2**20)
    for key in ("first", "second"):
        recent.put(key, (mebibytes_100,))
    recent.find("first", device)
    recent.put("third", (mebibytes_100,))
    assert recent.find("first", device)[0] is mebibytes_100
    with pytest.raises(KeyError):
        recent.find("second", device)
