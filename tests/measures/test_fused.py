"""The Triton kernels, interpreted on a CPU, against NumPy's float64; and what a GPU's compiler makes of them."""

import importlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from interpreted import FUSED, interpreted
from torch import Tensor

from fewchannels.errors import FewchannelsWarning
from fewchannels.measures import STATISTICS, kernels, scores
from fewchannels.measures.kernels import kernels_for, version_on

pytest.importorskip("triton")

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def fused() -> ModuleType:
    return interpreted()


@pytest.fixture
def large_tiles(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes for what the interpreter does in seconds: it takes as long for a tile of any size."""
    for name, size in {"SPAN": 2048, "TOKENS": 1024, "CHANNELS": 1024, "_COLUMNS": 1024}.items():
        monkeypatch.setattr(fused, name, size)


def measured(fused: ModuleType, x: Tensor, copies: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """Statistics, norms and the copy, into memory that held NaN."""
    parts = fused.Partial(*(torch.full(shape, torch.nan) for shape in fused.partial_shapes(x.shape)))
    copy = torch.full(x.shape, torch.nan, dtype=x.dtype) if copies else None
    with np.errstate(invalid="ignore"):  # the interpreter's sums of infinities
        fused.read(x, parts, copy)
        return *fused.finish(parts), copy


def expected(x: Tensor) -> tuple[dict[str, np.ndarray], np.ndarray]:
    wide = x.double().numpy()
    with np.errstate(invalid="ignore"):
        statistics = {
            "mean_abs": np.abs(wide).mean(1),
            "abs_mean": np.abs(wide.mean(1)),
            "max_abs": np.abs(wide).max(1),
            "rms": np.sqrt((wide**2).mean(1)),
        }
        return statistics, np.sqrt((wide**2).sum(2))


def check(fused: ModuleType, x: Tensor) -> None:
    statistics, norms, copy = measured(fused, x)
    wanted, wanted_norms = expected(x)
    magnitude = np.abs(x.double().numpy())
    largest = magnitude[np.isfinite(magnitude)].max(initial=1.0)
    for name, values in zip(STATISTICS, statistics.numpy(), strict=True):
        np.testing.assert_allclose(values, wanted[name], rtol=3e-6, atol=1e-6 * largest, err_msg=name)
    np.testing.assert_array_equal(statistics[STATISTICS.index("max_abs")].numpy(), wanted["max_abs"])
    np.testing.assert_allclose(norms.numpy(), wanted_norms, rtol=3e-6)
    assert copy is not None
    torch.testing.assert_close(copy, x, rtol=0, atol=0, equal_nan=True)


def states(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(1, 9, shape).astype(np.float32)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 16), (1, 7, 5), (3, 17, 129), (1, 16, 128), (2, 257, 48)], ids=str)
def test_statistics_and_norms_equal_their_formulas_in_float64(
    fused: ModuleType, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    check(fused, states(*shape, dtype=dtype))


@pytest.mark.usefixtures("large_tiles")
def test_so_they_do_for_more_tokens_and_channels_than_any_tile_divides(fused: ModuleType) -> None:
    check(fused, states(1, 4097, 3071, dtype=torch.bfloat16))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e8, -91_648.0], ids=str)
def test_one_odd_value_is_in_its_own_channel_and_token_alone(fused: ModuleType, value: float) -> None:
    x = states(2, 20, 9)
    x[1, 17, 4] = value
    check(fused, x)
    statistics, norms, _ = measured(fused, x)
    ordinary = torch.ones(2, 9, dtype=torch.bool)
    ordinary[1, 4] = False
    assert statistics[:, ordinary].isfinite().all()
    assert (statistics[0, 1, 4] > 1e3) != np.isnan(value)
    assert [tuple(each) for each in (norms.isnan() | (norms > 1e3)).nonzero().tolist()] == [(1, 17)]


def test_infinities_of_both_signs_have_no_mean(fused: ModuleType) -> None:
    x = torch.tensor([[[torch.inf], [-torch.inf], [1.0]]])
    assert measured(fused, x)[0].flatten().tolist()[::2] == [torch.inf, torch.inf]
    assert measured(fused, x)[0].flatten().isnan().tolist() == [False, True, False, False]


def test_ties_rank_by_ascending_channel(fused: ModuleType) -> None:
    x = states(1, 30, 4)[:, :, [0, 1, 0, 2, 1, 0]]
    statistics, _, _ = measured(fused, x)
    score = statistics[0, 0].tolist()
    assert len(set(score)) == 3
    assert scores.top_k(statistics[0], 6)[0].tolist() == sorted(range(6), key=lambda c: (-score[c], c))


@pytest.mark.parametrize("n_channels", [48, 37])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_samples_bits_are_the_same_alone_in_a_batch_and_inside_a_longer_stream(
    fused: ModuleType, n_channels: int, dtype: torch.dtype
) -> None:
    stream = states(3, 12 + 40, n_channels, dtype=dtype)
    image = stream[:, 12:]  # behind the text, as in single blocks
    together = measured(fused, image)
    flat = torch.cat([torch.zeros(1, dtype=dtype), image[1].flatten()])
    by_channel = image[1:2].transpose(1, 2).contiguous().transpose(1, 2)
    ways = {
        "a row of the stream": image[1:2],
        "its copy": image[1:2].clone(),
        "at an odd address": flat[1:].view(1, 40, n_channels),
        "channel by channel": by_channel,
    }
    for name, x in ways.items():
        alone = measured(fused, x)
        for one, several in zip(alone[:2], (together[0][:, 1:2], together[1][1:2]), strict=True):
            assert torch.equal(one, several), name
    check(fused, image)


def test_ragged_rows_are_reduced_over_their_own_tokens(fused: ModuleType) -> None:
    padded = states(3, 20, 33)
    for i, length in enumerate((20, 3, 11)):
        statistics, norms, _ = measured(fused, padded[i : i + 1, :length])
        wanted, wanted_norms = expected(padded[i : i + 1, :length].contiguous())
        np.testing.assert_allclose(statistics[3].numpy(), wanted["rms"], rtol=3e-6)
        np.testing.assert_allclose(norms.numpy(), wanted_norms, rtol=3e-6)


def test_offsets_beyond_2_to_the_31_are_read_where_they_are(fused: ModuleType) -> None:
    n_tokens, apart = 258, 2**23  # the last tokens are more than 2**31 values away; only their pages are touched
    x = torch.empty(n_tokens * apart, dtype=torch.float16).as_strided((1, n_tokens, 16), (0, apart, 1))
    x.copy_(states(1, n_tokens, 16, dtype=torch.float16))
    statistics, _, copy = measured(fused, x)
    assert copy is not None
    assert torch.equal(copy, x)
    np.testing.assert_allclose(statistics[0].numpy(), expected(copy)[0]["mean_abs"], rtol=3e-6)


def test_statistics_alone_need_no_copy(fused: ModuleType) -> None:
    stream = states(2, 40, 20)
    x, before = stream[:, 10:], stream.clone()
    with_copy, without = measured(fused, x), measured(fused, x, copies=False)
    assert all(torch.equal(a, b) for a, b in zip(with_copy[:2], without[:2], strict=True))
    assert torch.equal(fused.reduced(x)[0], with_copy[0])
    assert torch.equal(stream, before), "the model's own"


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module with kernels for a compiler, which needs no GPU."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return importlib.import_module(FUSED)


def assembled(
    fused: ModuleType, capability: int, dtype: str, unit: int, copies: bool, aligned: Iterable[int] = range(4)
) -> dict:
    """What Triton makes of the reading kernel for a GPU, by stage; aligned are those of its four tensors."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    sizes = {"span_tokens": fused.SPAN, "tile_tokens": fused.TOKENS, "tile_channels": fused.CHANNELS}
    constants = {"copies": copies, "unit": unit, **sizes}
    kinds = dict.fromkeys(("x", "copy"), f"*{dtype}") | dict.fromkeys(("channels", "tokens"), "*fp32")
    kinds |= dict.fromkeys(("n_tokens", "n_channels", "sample_stride", "token_stride"), "i32")
    known = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fused._read, kinds | dict.fromkeys(constants, "constexpr"), constants, known)
    target, how = GPUTarget("cuda", capability, 32), {"num_warps": 8, **fused._HOW}
    return dict(triton.compile(source, target=target, options=how).asm)


def tile(stages: dict) -> str:
    """How the compiler distributes a tile over threads, which decides the order of its sums."""
    return next(line for line in stages["ttgir"].splitlines() if line.startswith("#blocked"))


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_for_a_gpu_it_reads_16_bytes_at_once_and_adds_in_a_fixed_order(compiled: ModuleType, capability: int) -> None:
    for dtype, n_loads in (("bf16", 2), ("fp32", 4)):
        found = {copies: assembled(compiled, capability, dtype, 16, copies) for copies in (True, False)}
        ptx = found[True]["ptx"]
        assert len(re.findall(r"ld\.global\.v4", ptx)) == n_loads, "the first tile, and the next one in the loop"
        assert not re.search(r"ld\.global\.(?!v4)", ptx)
        assert re.search(r"st\.global\.v4", ptx)
        assert not re.search(r"\b(atom|red|fma)\.", ptx)
        assert len(found[True]["cubin"]) > 0
        assert tile(found[True]) == tile(found[False])


def test_where_tensors_are_in_memory_does_not_change_the_order(compiled: ModuleType) -> None:
    for unit, least in ((1, ()), (16, (0, 1, 2))):
        here, there = (assembled(compiled, 90, "bf16", unit, True, aligned) for aligned in (range(4), least))
        assert tile(here) == tile(there), unit


@pytest.fixture
def gpu(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """A device that says it is a GPU, with tensors on the CPU, where the kernels are asked for."""
    monkeypatch.setenv(kernels.VARIABLE, "triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(kernels, "on", lambda device: kernels.nullcontext())
    monkeypatch.setattr(Tensor, "to", lambda x, to, own=Tensor.to: x if isinstance(to, torch.device) else own(x, to))
    monkeypatch.setattr("fewchannels.measures.fused", fused, raising=False)
    kernels_for.cache_clear()
    yield torch.device("cuda", 0)
    kernels_for.cache_clear()


def test_a_gpu_uses_the_kernels_once_a_small_run_is_right(fused: ModuleType, gpu: torch.device) -> None:
    assert kernels_for(torch.device("cpu")) is None
    assert kernels_for(gpu) is fused
    assert (version_on("cuda"), version_on("cpu")) == (fused.VERSION, None)


def test_kernels_are_used_only_where_they_are_asked_for(gpu: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "1"):
        monkeypatch.setenv(kernels.VARIABLE, value)
        kernels_for.cache_clear()
        assert kernels_for(gpu) is None


def test_a_gpu_without_triton_or_older_than_bfloat16_uses_pytorch(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as without:
        without.setattr(kernels, "find_spec", lambda name: None)
        assert kernels_for(gpu) is None
    kernels_for.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert kernels_for(gpu) is None


def test_kernels_that_are_wrong_or_do_not_compile_are_left_with_a_warning(
    fused: ModuleType, gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = fused.reduced
    monkeypatch.setattr(fused, "reduced", lambda x: (own(x)[0] * 1.001, own(x)[1]))
    with pytest.warns(FewchannelsWarning, match="do not work on a GPU .AssertionError"):
        assert kernels_for(gpu) is None
    kernels_for.cache_clear()
    monkeypatch.setattr(fused, "reduced", lambda x: 1 / 0)
    with pytest.warns(FewchannelsWarning, match="ZeroDivisionError"):
        assert kernels_for(gpu) is None


def test_statistics_of_a_gpu_are_the_kernels(fused: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    x = states(2, 20, 9)
    plain = scores.statistics(x)
    monkeypatch.setattr(scores, "kernels_for", lambda device: fused)
    torch.testing.assert_close(scores.statistics(x), plain, rtol=3e-6, atol=3e-6)
    assert torch.equal(scores.statistics(x), measured(fused, x)[0])
