"""docs/cluster/Dockerfile: its files are there, and its commands do what its comments say. No image is built."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from sent import NEEDED

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "cluster" / "Dockerfile"
TEXT = FILE.read_text(encoding="utf-8")
# A command that says what it was given, and ends as the test wants.
STUB = '#!/bin/bash\necho "$(basename "$0") $*" >> "$SAID"\nexit {code}\n'


def instructions() -> list[tuple[str, str]]:
    """Each instruction with its words, over the lines that it continues on."""
    lines = [line for line in TEXT.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [(words[0], words[1].strip()) for line in joined.splitlines() if (words := line.split(maxsplit=1))]


def of(kind: str) -> list[str]:
    return [words for name, words in instructions() if name == kind]


def test_it_copies_what_an_install_needs_and_the_context_has_no_more() -> None:
    copied = [word for words in of("COPY") for word in words.split()[:-1]]
    assert sorted(copied) == sorted(NEEDED)
    assert all((ROOT / name).exists() for name in copied)
    ignored = (FILE.parent / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored[0] == "*"
    assert sorted(line[1:] for line in ignored if line.startswith("!")) == sorted(NEEDED)


def test_a_change_of_the_code_repeats_only_the_last_install() -> None:
    order = [words for name, words in instructions() if name in ("COPY", "RUN")]
    assert order[0] == "constraints.txt pyproject.toml ./"
    first_code = order.index("engine engine")
    installs = [i for i, words in enumerate(order) if "pip install" in words]
    assert [i > first_code for i in installs] == [False, False, True]
    assert "--no-deps ." in order[installs[-1]]


def test_every_build_argument_is_used_and_the_command_does_not_run_as_root() -> None:
    for words in of("ARG"):
        name = words.partition("=")[0]
        assert re.search(rf"\$\{{?{name}\b", TEXT.partition(f"ARG {name}")[2]), name
        assert f"--build-arg {name}=" in TEXT
    assert of("USER")[-1] not in ("0", "root")
    assert of("ENTRYPOINT") == ['["fewchannels"]']
    assert {"HF_HOME", "PATH"} <= {word.partition("=")[0] for words in of("ENV") for word in words.split()}


def run(command: str, folder: Path, codes: dict[str, int], **environment: str) -> list[str]:
    """Run the shell's part of an instruction; what it called, one command a line."""
    stubs = folder / "bin"
    stubs.mkdir()
    for name, code in codes.items():
        (stubs / name).write_text(STUB.format(code=code), encoding="utf-8")
        (stubs / name).chmod(0o755)
    said = folder / "said"
    own = {"PATH": f"{stubs}:{os.environ['PATH']}", "SAID": str(said), "TORCH_INDEX": ""} | environment
    subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=folder, env=os.environ | own, check=True)
    return said.read_text(encoding="utf-8").splitlines() if said.exists() else []


@pytest.mark.parametrize("index", ["", "https://example.org/cpu"])
@pytest.mark.parametrize("has_pytorch", [True, False])
def test_the_pytorch_of_the_base_is_kept_and_else_the_pinned_one_is_installed(
    tmp_path: Path, has_pytorch: bool, index: str
) -> None:
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    (tmp_path / "constraints.txt").write_text(pins, encoding="utf-8")
    codes = {"python3": 0, "python": 0 if has_pytorch else 1, "pip": 0}
    said = run(of("RUN")[0], tmp_path, codes, TORCH_INDEX=index)
    assert said[0] == "python3 -m venv --system-site-packages /opt/fewchannels"
    left = (tmp_path / "constraints.txt").read_text(encoding="utf-8")
    if has_pytorch:
        assert not any(line.startswith("pip") for line in said)
        assert set(pins.splitlines()) - set(left.splitlines()) == {"torch==2.13.0"}
    else:
        assert said[-1] == f"pip install {f'--index-url {index} ' if index else ''}--requirement torch.txt"
        assert (tmp_path / "torch.txt").read_text(encoding="utf-8") == "torch==2.13.0\n"
        assert left == pins


def test_the_dependencies_are_those_of_the_project(tmp_path: Path) -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (tmp_path / "pyproject.toml").write_text(text, encoding="utf-8")
    said = run(of("RUN")[1], tmp_path, {"pip": 0})
    assert said == ["pip install --constraint constraints.txt --requirement requirements.txt"]
    wanted = (tmp_path / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert "diffusers>=0.36" in wanted
    assert all(re.match(r"[\w.-]+(\[\w+\])?>=", each) for each in wanted)
    assert len(wanted) == len(re.search(r"(?s)\ndependencies = \[(.*?)\n\]", text)[1].strip().splitlines())
