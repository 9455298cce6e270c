"""Variables of the environment that would end a command in a library, or in its figures."""

import os
import subprocess
import sys

import pytest

from fewchannels.cluster.session import ray_session
from fewchannels.cluster.shares import Pool
from fewchannels.errors import InputError
from fewchannels.settings.environment import check_environment


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("PYTHONOPTIMIZE", "2", 2),
        ("PYTHONOPTIMIZE", "1", 0),
        ("PYTHONWARNINGS", "error", 2),
        ("PYTHONWARNINGS", "ignore,error::DeprecationWarning", 2),
        ("PYTHONWARNINGS", "error:::mymodule", 0),
        ("PYTHONWARNINGS", "default", 0),
    ],
)
def test_a_variable_with_which_the_libraries_fail_is_named(name: str, value: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fewchannels", "manifest", "show", "nowhere"],
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert (f"Unset {name}" in done.stderr) == bool(code)
    assert ("there is no manifest 'nowhere'" in " ".join(done.stderr.split())) == (not code)
    assert "Traceback" not in done.stderr


def test_a_python_caller_is_told_before_ray_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(InputError, match="PYTHONWARNINGS has 'error'"), ray_session(Pool(1, 0, 1)):
        pass
    monkeypatch.delenv("PYTHONWARNINGS")
    check_environment()


def test_figures_are_drawn_whatever_backend_pyplot_would_use() -> None:
    code = """
import sys
from fewchannels.analyses.figures import contact_sheet, still
from matplotlib.figure import Figure
figure = Figure()
figure.subplots().plot([1, 2])
print(sorted(still._saved(figure, ["png", "svg"])), "matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "['png', 'svg'] False\n", done.stderr


@pytest.mark.parametrize(("given", "n_spins"), [(None, 0), ("active", 30_000_000_000)])
def test_threads_that_wait_do_not_take_a_cpu_unless_the_user_says_so(given: str | None, n_spins: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    code = "from fewchannels.settings.environment import settle_environment as settle; settle(); import torch"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"OMP_DISPLAY_ENV": "verbose"} | ({"OMP_WAIT_POLICY": given} if given else {}),
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"GOMP_SPINCOUNT = '{n_spins}'" in done.stderr
