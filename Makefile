# Everything runs in a virtual environment of its own: `make demo` and `make test` need only python3 with
# venv, a C++ compiler, and make. `DMM_FAST_PURE=1 make demo` does without the compiler, many times slower.

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

# The sanitizers. -O2 and no more: at -O3 the kernels take many minutes to compile, below -O2 they have no
# fused multiply-add and miss bounds by a hair. Their run-time must be the first library of the process,
# and python was not linked to it, so it is preloaded, with libstdc++ whose exceptions it watches. Leaks
# are not looked for: CPython and torch keep memory until the process ends. A fault aborts, so that pytest
# shows the test it was in, and --capture=sys leaves the sanitizers' own report on the terminal.
SANITIZED     := build/sanitize
SANITIZE      := -fsanitize=address,undefined -fno-sanitize-recover=all -O2 -g
SANITIZED_RUN  = ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:abort_on_error=1 \
                 LD_PRELOAD="$(foreach lib,asan stdc++,$(shell $(CXX) -print-file-name=lib$(lib).so))"

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types unit triton emulate sanitize other-torch report gpu-kit gpu-sanitize \
        bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## the environment, the pinned tools and this package (editable)

# Made again when the pins, the package's metadata or the C++ change; a failed install leaves no stamp.
$(STAMP): requirements-dev.txt pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)
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

test: lint types unit triton emulate report  ## all that must pass: lint, types, unit, triton, emulate, report

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
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -k triton tests/triton \
	  tests/ops/test_table.py tests/ops/test_extremes.py tests/ops/test_invariants.py tests/ops/test_compiled_ops.py \
	  tests/ops/test_clipped_adam.py tests/ops/test_clipped_adam_checks.py tests/ops/test_broadcast.py \
	  tests/ops/test_derivatives.py tests/ops/test_autocast.py tests/ops/test_combiner_scan.py \
	  tests/ops/test_valued.py tests/optim/test_capturable.py --ignore tests/triton/test_compile.py

sanitize: $(STAMP)  ## the tests of the ops, with the C++ built to tell wrong memory and undefined behaviour
	CXXFLAGS="$(SANITIZE)" LDFLAGS="$(SANITIZE)" \
	  $(BIN)/python setup.py build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib
	$(SANITIZED_RUN) $(BIN)/python -m pytest -n 0 --capture=sys \
	  -o pythonpath="$(SANITIZED)/lib ." -p tests.sanitized tests/ops

# CUDA kernels on the CPU, thread-block clusters and all, under the same sanitizers: tests of their own, and the
# tests of the ops for backend "cuda".
EMULATOR := build/emulator
emulate: $(STAMP)  ## the CUDA kernels under the emulator, with the sanitizers
	@mkdir -p $(EMULATOR)
	@echo "python_includes = $$($(BIN)/python -m pybind11 --includes)" > $(EMULATOR)/settings.ninja
	@echo "module = $(EMULATOR)/dmm_emulator$$($(BIN)/python -m pybind11 --extension-suffix)" >> $(EMULATOR)/settings.ninja
	$(BIN)/ninja -f csrc/emulator/build.ninja
	$(SANITIZED_RUN) $(BIN)/python -m pytest -n 2 --capture=sys -o pythonpath="$(EMULATOR) ." -p tests.emulated \
	  -k cuda tests/cuda tests/ops/test_table.py tests/ops/test_extremes.py tests/ops/test_invariants.py \
	  tests/ops/test_compiled_ops.py tests/ops/test_combiner_scan.py tests/optim/test_capturable.py \
	  --ignore tests/cuda/test_compile.py --ignore tests/cuda/test_step_budget.py --ignore tests/cuda/test_machine_code.py

# Gigabytes are fetched for it, so `make test` leaves it out. Tests and benchmarks are copied: beside the sources they would
# import those and not the wheel.
OTHER_TORCH ?= 2.11.0
OTHER       := build/other-torch
other-torch: $(STAMP)  ## the wheel built here, installed beside another torch (OTHER_TORCH), passes the tests of the ops
	$(BIN)/python -m pip wheel --disable-pip-version-check --no-build-isolation --no-deps -w $(OTHER)/wheel .
	$(PYTHON) -m venv $(OTHER)/venv
	grep -E '^(numpy|pyro-ppl|hypothesis|pytest|pytest-xdist)==' requirements-dev.txt > $(OTHER)/requirements.txt
	$(OTHER)/venv/bin/python -m pip install --disable-pip-version-check torch==$(OTHER_TORCH) -r $(OTHER)/requirements.txt
	$(OTHER)/venv/bin/python -m pip install --disable-pip-version-check --force-reinstall --no-deps $(OTHER)/wheel/*.whl
	cp -r tests benchmarks pyproject.toml $(OTHER)
	cd $(OTHER) && venv/bin/python -m pytest tests/ops

report: $(STAMP)  ## the README's tables are what the committed results say
	$(BIN)/python -m benchmarks.report --check

# DATA: a file of chorales; without one JSB_Chorales.mat is looked for, as by every benchmark.
gpu-kit: $(STAMP)  ## build/gpu-kit: all that an offline machine with a GPU and torch needs for the GPU run
	$(BIN)/python -m benchmarks.kit $(if $(DATA),--data "$(DATA)")

# On a machine with a GPU. Of racecheck's hazards those on mbarrier objects and on what st.async writes are expected:
# the barrier that counts its bytes orders these writes, which the tool does not see.
TOOL ?= memcheck
gpu-sanitize: $(STAMP)  ## the kernels under compute-sanitizer, TOOL=memcheck, racecheck or synccheck
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $(TOOL) --error-exitcode 1 \
	  --target-processes application-only $(BIN)/python -m benchmarks.gpu.exercise

bench: $(STAMP)  ## time SVI steps and a JSB epoch against the baseline
	$(BIN)/python -m benchmarks.run --suite cpu

clean:  ## remove the environment, caches, builds and the demo
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
