"""A manifest split into parts: every row once, in order, with its own columns."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fewchannels import manifest
from fewchannels.errors import InputError, StorageError


@pytest.fixture
def whole(manifest_of) -> Path:
    rows = "".join(f"prompt {i},{i},{'bird' if i % 2 else 'cat'}\n" for i in range(11))
    return manifest_of(f"prompt,seed,kind\n{rows}")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(n=st.integers(2, 11))
def test_the_parts_are_the_manifest(whole: Path, tmp_path_factory: pytest.TempPathFactory, n: int) -> None:
    parts = manifest.split(whole, n, tmp_path_factory.mktemp("parts"))
    assert pa.concat_tables([pq.read_table(part.path) for part in parts]).equals(pq.read_table(whole))
    counts = [manifest.Manifest.read(part.path).n_samples for part in parts]
    assert counts == [part.n_samples for part in parts]
    assert max(counts) - min(counts) <= 1
    assert [part.path.name for part in parts][:2] == ["part-0000.parquet", "part-0001.parquet"]


def test_it_is_safe_to_repeat_and_parts_of_another_split_are_refused(whole: Path, tmp_path: Path) -> None:
    first = [part.path.read_bytes() for part in manifest.split(whole, 4, tmp_path / "parts")]
    assert [part.path.read_bytes() for part in manifest.split(whole, 4, tmp_path / "parts")] == first
    with pytest.raises(InputError, match=r"another split, such as part-0003\.parquet"):
        manifest.split(whole, 3, tmp_path / "parts")
    assert [path.read_bytes() for path in sorted((tmp_path / "parts").iterdir())] == first


@pytest.mark.parametrize("n", [-1, 0, 1, 12])
def test_a_number_of_parts_that_cannot_be_is_refused(whole: Path, tmp_path: Path, n: int) -> None:
    with pytest.raises(InputError, match=f"give 2 to 11 parts, not {n}"):
        manifest.split(whole, n, tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_what_is_no_folder_is_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "parts").write_text("mine", encoding="utf-8")
    with pytest.raises(StorageError, match="parts"):
        manifest.split(whole, 2, tmp_path / "parts")
