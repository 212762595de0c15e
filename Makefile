# Everything a fresh machine needs: make, python3 (3.11 or newer) and a C++ compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# torch is installed first and alone: resolved together with the rest, a looser requirement can pull a CUDA build.
TORCH := $(shell grep '^torch==' constraints.txt)

# What pip builds with comes from the same list: older versions of pip read the first of these, newer ones the second.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-slow test-gpu soak check bench bench-models bench-engine bench-data bench-pretrain bench-fits bench-report bench-sweep format data clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

venv: $(STAMP)  ## .venv with everything in it; again when the requirements change

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than Python 3.11" >&2; \
	    echo "hint: name a newer one, e.g. make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
	  { echo "error: $(PYTHON) cannot make a virtual environment with pip in it" >&2; \
	    echo "hint: on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/pip install --disable-pip-version-check --progress-bar off $(TORCH)
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -e '.[dev]'
	@touch $@

demo: venv  ## pre-train and transfer small models on rendered fractals, then draw the curves (5 minutes)
	$(BIN)/vitscale data fractals data/fractals --classes 20 --per-class 300 --resolution 28
	$(BIN)/vitscale sweep studies/quickstart.toml
	$(BIN)/vitscale report studies/quickstart.toml

test: venv  ## the tests
	$(BIN)/pytest -n 2

test-slow: venv  ## the tests that take minutes
	$(BIN)/pytest -n 2 -m slow

soak: venv  ## a hundred kills at random moments of a small study (12 minutes)
	VITSCALE_KILLS=100 $(BIN)/pytest -m slow tests/launch/test_soak.py

test-gpu: venv  ## what only a GPU can show; skipped where there is none (1 minute)
	$(BIN)/pytest tests/train/test_gpu.py

check: venv  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy vitscale
	$(BIN)/lint-imports

bench: bench-models bench-engine bench-data bench-pretrain bench-fits bench-report bench-sweep  ## all benchmarks (80 minutes)

bench-models: venv  ## a training step beside Hugging Face's ViT and torch's matmul peak (5 minutes)
	$(BIN)/python benchmarks/models.py

bench-engine: venv  ## a step through the engine beside one written by hand, alone and in two processes (6 minutes)
	$(BIN)/python benchmarks/engine.py --threads 1
	$(BIN)/python benchmarks/engine.py --threads 1 --processes 2
	$(BIN)/python benchmarks/engine.py --large

bench-data: venv  ## shards to batches beside timm's way (3 minutes)
	$(BIN)/python benchmarks/data.py

bench-pretrain: venv  ## vitscale pretrain, loader included, beside a script written by hand (10 minutes)
	$(BIN)/python benchmarks/pretrain.py

bench-fits: venv  ## a law found beside 4,500 starts, bootstrap times, coverage (40 minutes)
	$(BIN)/python benchmarks/fits.py

bench-report: venv  ## vitscale report on made-up studies of 1,000 and 10,000 rows (2 minutes)
	$(BIN)/python benchmarks/report.py

bench-sweep: venv  ## what a sweep adds to its runs, studies of 10,000 runs, what a trunk saves (15 minutes)
	$(BIN)/python benchmarks/sweep.py

format: venv  ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

data: venv  ## Fashion-MNIST as shards, for studies/data_size.toml
	$(BIN)/vitscale data fetch fashion-mnist

clean:  ## what tools left behind; never runs, results, data or the environment
	rm -rf build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
