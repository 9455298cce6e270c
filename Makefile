# On a fresh machine with Python 3.11: `make demo`, `make test`, and `make test-all` for what a change must pass.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# Without compiling all modules, of which most are never imported: Python compiles those that are.
INSTALL := $(BIN)/pip install --quiet --no-compile --constraint constraints.txt --editable
# Each module is compiled once, not by each of the commands that tests start.
export PYTHONDONTWRITEBYTECODE :=
TESTS := $(BIN)/pytest --dist loadfile --no-loadscope-reorder

.PHONY: demo installed test test-slow test-kernels test-all test-lowest lint docs clean

demo: $(VENV)/.installed
	$(BIN)/fewchannels demo

installed: $(VENV)/.installed-dev

test: lint
	$(TESTS) -n 2 -m fast

# On two cores three at once: four tenths of the time, these wait for servers, timeouts and other processes. THIRD=1 to 3
# runs a third of the files.
test-slow: $(VENV)/.installed-dev
	$(TESTS) -n 3 -m slow $(if $(THIRD),--third $(THIRD))

# Of the kernels of measures/fused.py, interpreted on the CPU. Triton takes 690 MB, and PyTorch imports it wherever it finds it.
test-kernels: $(VENV)/.installed-dev
	test -d build/triton || $(BIN)/pip install --quiet --no-deps --constraint constraints.txt --target build/triton triton
	PYTHONPATH=build/triton $(BIN)/pytest tests/measures/test_fused.py tests/captures/test_aside.py

test-all: test
	$(MAKE) test-slow
	$(MAKE) test-kernels

# The wheel with the lower bounds of pyproject.toml, in an environment of its own, which takes only PyTorch and Ray from this.
test-lowest: $(VENV)/.installed-dev
	$(BIN)/python tests/helpers/versions.py --set lowest --quick --links $(VENV)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

# Into build/site; a warning, a broken link, or anything loaded from another server is an error.
docs: $(VENV)/.installed-dev
	$(BIN)/python docs/site/build.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) ".[dev,docs]"
	touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build *.egg-info engine/*.egg-info
