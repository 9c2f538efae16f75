# One line per habit. Needs only make and a Python >= 3.11 with venv; choose another one with `make PYTHON=python3.12 ...`.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt
FAST := not slow and not gpu
# A process a core, four at most; the tests of one file share what it sets up.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile
CAMVID ?= data/camvid

.PHONY: help setup demo test test-all reliability lint type bench clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: .venv/.dev  ## make .venv with the pinned versions and the developers' tools

demo: .venv/.run  ## train a small DeepLabv3+ on generated shapes
	$(BIN)/segtrain

test: lint type  ## lint, types and every quick test
	$(PYTEST) -m "$(FAST)"

test-all: lint type .venv/.extras  ## the slow tests too; GPU tests skip where there is no GPU
	$(PYTEST)

reliability: .venv/.extras  ## the matrix of failures, some ten minutes: make reliability LONG=1 for hours of it
	$(BIN)/python scripts/reliability.py $(if $(LONG),--long)

lint: .venv/.dev  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: .venv/.dev  ## types
	$(BIN)/ty check segtrain

bench: .venv/.bench  ## images/s of a training step beside a plain loop: make bench CAMVID=FOLDER
	$(BIN)/python scripts/bench_train.py --root $(CAMVID)

clean:  ## remove what building and testing left; .venv and outputs/ stay
	rm -rf build dist .pytest_cache .ruff_cache *.egg-info
	find segtrain tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is missing or older than 3.11: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 2; }
	@$(PYTHON) -m venv .venv || { echo "$(PYTHON) cannot make a venv (Debian and Ubuntu: install python3-venv)"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

# The stamps: a second call installs nothing until the dependencies change.
.venv/.run: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV) -e .
	@touch $@

.venv/.dev: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV) -e '.[dev]'
	@touch $@ .venv/.run

.venv/.extras: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV) -e '.[launchers,search,wandb,mlflow]'
	@touch $@

.venv/.bench: pyproject.toml constraints.txt | $(BIN)/uv
	$(UV) -e '.[bench]'
	@touch $@ .venv/.run
