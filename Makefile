# Everything runs in a virtual environment of its own: `make demo` and `make test` need only
# python3 with venv, and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The demo trains the tutorial's DMM on built-in chorales for a minute or two. KL is held low while the
# latents learn what a chord is; with more of it at once the posterior collapses onto the prior.
DEMO_OUT      ?= demo
DEMO_TRAIN    ?= --data chorales --num-epochs 100 --annealing-epochs 400 --minimum-annealing-factor 0.1 \
                 --learning-rate 0.0008 --lr-schedule cosine --warmup-steps 200 --elbo mean_field \
                 --eval-frequency 10 --seed 0
DEMO_GENERATE ?= --seed 0

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit triton report bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## the environment, the pinned tools and this package (editable)

# Made again when the pins, the package's metadata or the C++ change; a failed install leaves no stamp.
$(STAMP): requirements-dev.txt pyproject.toml setup.py $(wildcard csrc/*.* csrc/cpu/*.*)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: $(PYTHON) not found; install Python 3.10 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: expected Python 3.10 or newer, got $$($(PYTHON) --version); name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv; on Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

demo: $(STAMP)  ## train on built-in chorales, then draw and play what the model has learnt
	$(BIN)/dmm-fast train $(DEMO_TRAIN) --out $(DEMO_OUT)
	$(BIN)/dmm-fast generate $(DEMO_OUT) $(DEMO_GENERATE) --out $(DEMO_OUT)

test: lint types unit triton report  ## all that must pass: lint, types, unit, triton, report

lint: $(STAMP)  ## style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP)  ## static types
	$(BIN)/mypy

unit: $(STAMP)  ## the tests
	$(BIN)/python -m pytest

# Triton reads its switch when it is imported, and a process that interprets cannot compile. pytest fails
# where no test is left to run.
triton: $(STAMP)  ## the Triton kernels, interpreted on the CPU
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -k triton tests/kernels \
	  tests/ops/test_table.py tests/ops/test_extremes.py tests/ops/test_invariants.py

report: $(STAMP)  ## the README's tables are what the committed results say
	$(BIN)/python -m benchmarks.report --check

bench: $(STAMP)  ## time SVI steps and a JSB epoch against the baseline
	$(BIN)/python -m benchmarks.run --suite cpu

clean:  ## remove the environment, caches, builds and the demo
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
