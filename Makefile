# Everything runs in a virtual environment of its own: `make demo` and `make test` need only python3 with
# venv, a C++ compiler, and make. `DMM_FAST_PURE=1 make demo` does without the compiler, many times slower.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# The demo trains on 1,000 built-in chorales for about two minutes. The notes of a chord depend on each other
# (NADE) and on the chord before (augment), without which forecasts lose the key and their chords clash. KL is
# held low while the latents learn what a chord is; with more of it at once the posterior collapses onto the prior.
DEMO_OUT      ?= demo
DEMO_TRAIN    ?= --data chorales --num-sequences 1000 --emission nade --augment both --rnn tanh --rnn-dim 200 \
                 --num-epochs 80 --annealing-epochs 50 --minimum-annealing-factor 0.1 --learning-rate 0.008 \
                 --lr-schedule cosine --warmup-steps 200 --elbo mean_field --eval-frequency 10 --seed 0
DEMO_GENERATE ?= --num 3 --temperature 0.7 --program 19 --seed 0

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
.PHONY: help install demo test lint types unit triton emulate sanitize wheel other-torch report docs linkcheck \
        gpu-kit gpu-sanitize bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP)  ## the environment, the pinned tools and this package (editable)

# Made again when the pins, the package's metadata or the C++ change; a failed install leaves no stamp. The pin of triton is
# for the CPU build of torch and for PyPI's build for CUDA, which names another one and which pip would refuse beside it.
$(STAMP): requirements-dev.txt pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)
	@command -v $(PYTHON) >/dev/null || { \
	  echo "make: $(PYTHON) not found; install Python 3.10 or newer, or name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make: expected Python 3.10 or newer, got $$($(PYTHON) --version); name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: $(PYTHON) has no venv; on Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	grep -v '^triton==' requirements-dev.txt > $(VENV)/requirements.txt
	grep '^triton==' requirements-dev.txt > $(VENV)/triton.txt
	$(BIN)/python -m pip install --disable-pip-version-check -r $(VENV)/requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r $(VENV)/triton.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

demo: $(STAMP)  ## train on built-in chorales, then draw and play chorales from the model
	$(BIN)/dmm-fast train $(DEMO_TRAIN) --out $(DEMO_OUT)
	$(BIN)/dmm-fast generate $(DEMO_OUT) $(DEMO_GENERATE) --out $(DEMO_OUT)
	@printf '%s\n' '' 'The files above are the pictures and the music. The model is $(DEMO_OUT)/best.safetensors.' \
	  'Look at $(DEMO_OUT)/forecast_1.png first: the first 32 beats of a chorale from the test set, and how the' \
	  'model continues it. To listen, open $(DEMO_OUT)/forecast_1.mid in any player or notation program,' \
	  'or in a terminal, where TiMidity++ is installed: timidity $(DEMO_OUT)/forecast_1.mid'

test: lint types unit triton emulate report docs  ## all that must pass: lint, types, unit, triton, emulate, report, docs

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

# The wheel is built from the source distribution, and tagged with the oldest glibc that it runs on. torch brings its
# own libraries; any other library outside the manylinux policy would be copied in, which the audit refuses.
BUILT := build/wheel
wheel: $(STAMP)  ## dist/: the source distribution and the wheel, tagged and audited
	rm -rf $(BUILT) dist
	$(BIN)/python -m build --no-isolation --outdir $(BUILT)
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude libc10.so --exclude 'libtorch*.so' -w dist $(BUILT)/*.whl
	cp $(BUILT)/*.tar.gz dist
	$(BIN)/python -m tests.wheel_audit dist/*.whl

# The oldest torch and the newest one, which are builds for CUDA 12 and CUDA 13 on PyPI. Gigabytes are fetched for each, so
# `make test` leaves them out, and an environment is removed when its tests have passed. Tests and benchmarks are copied:
# beside the sources they would import those and not the wheel. `newest` is the newest torch that pip finds.
OTHER_TORCH ?= 2.10.0 2.15.0
OTHER       := build/other-torch
OTHER_NEEDS := numpy|pyro-ppl|hypothesis|pytest|pytest-xdist|matplotlib|mido|safetensors|scipy|tqdm
OTHER_TESTS := tests/ops tests/test_model.py tests/test_package.py tests/test_stable_abi.py tests/test_extension_load.py
other-torch: $(OTHER_TORCH:%=other-torch-%)  ## the wheel beside each OTHER_TORCH passes its tests; WHEEL=FILE: one already built

other-torch-%: $(if $(WHEEL),,wheel)
	rm -rf $(OTHER)/$*
	$(PYTHON) -m venv $(OTHER)/$*/venv
	grep -E '^($(OTHER_NEEDS))==' requirements-dev.txt > $(OTHER)/$*/requirements.txt
	$(OTHER)/$*/venv/bin/python -m pip install --disable-pip-version-check $(patsubst torch==newest,torch,torch==$*) \
	  -r $(OTHER)/$*/requirements.txt
	$(OTHER)/$*/venv/bin/python -m pip install --disable-pip-version-check --no-deps $(or $(WHEEL),dist/*.whl)
	cp -r tests benchmarks pyproject.toml $(OTHER)/$*
	cd $(OTHER)/$* && venv/bin/python -c 'import dmm_fast, sys; sys.exit(dmm_fast.info()["missing"].get("cpp"))'
	cd $(OTHER)/$* && venv/bin/dmm-fast info && venv/bin/python -m pytest $(OTHER_TESTS)
	rm -rf $(OTHER)/$*

report: $(STAMP)  ## the tables of the README and the documentation are what the committed results say
	$(BIN)/python -m benchmarks.report --check

# -n: every reference has a target. -W: a warning fails the build. No network is needed.
docs: $(STAMP)  ## the documentation, as HTML in build/docs
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs build/docs

linkcheck: $(STAMP)  ## the addresses in the documentation answer (needs the network)
	$(BIN)/python -m sphinx -q -b linkcheck docs build/linkcheck

# DATA: a file of chorales; without one JSB_Chorales.mat is looked for, as by every benchmark.
gpu-kit: $(STAMP)  ## build/gpu-kit: all that an offline machine with a GPU and torch needs for the GPU run
	$(BIN)/python -m benchmarks.kit $(if $(DATA),--data "$(DATA)")

# On a machine with a GPU. Of racecheck's hazards those on mbarrier objects and on what st.async writes are expected:
# the barrier that counts its bytes orders these writes, which the tool does not see.
TOOL ?= memcheck
gpu-sanitize: $(STAMP)  ## the kernels under compute-sanitizer, TOOL=memcheck, racecheck or synccheck
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $(TOOL) --error-exitcode 1 \
	  --target-processes application-only $(BIN)/python -m benchmarks.gpu.call_ops

bench: $(STAMP)  ## time SVI steps and a JSB epoch against the baseline
	$(BIN)/python -m benchmarks.run --suite cpu

clean:  ## remove the environment, caches, builds and the demo
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
