# Everything a developer types. `make help` lists it.
#
#   PYTHON=python3.12       the interpreter that makes the environment (3.11 or newer)
#   PY=/some/bin/python     use an environment of your own; nothing is installed into it
#   local.mk                your own settings, e.g. a line `PY = ...`; git ignores it

-include local.mk

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
VENV ?= .venv
BUILD ?= build/dev
PYTEST_ARGS ?=
# Tests in as many processes as there are processors (JOBS=0: in one). Two threads each, asleep while
# they wait: the ops' own default is then the same two on every machine, and nobody spins.
JOBS ?= auto
PARALLEL = -n $(JOBS) --maxprocesses 8 --dist worksteal
TEST_THREADS = OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive
TRITON_TESTS ?= tests/ops tests/gpu
CUDA_TESTS ?= $(wildcard tests/ops/test_nearest_centroid*.py tests/ops/test_patch_tokens*.py \
                tests/ops/test_masked_l*.py)
DEMO_OUT ?= runs/demo

ifeq ($(origin PY), undefined)
  PY := $(VENV)/bin/python
  READY := $(VENV)/.installed
endif
# cmake, ninja and clang-format come with the environment when the machine has none
export PATH := $(dir $(abspath $(PY))):$(PATH)

CPP_FILES = $(shell find csrc tests/cpp tests/gpu -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu' 2>/dev/null)

.PHONY: help venv core test test-wheel wheel release-wheel audit demo lint format types layers bench check clean \
        check-pages check-slow check-triton check-cuda check-gpu-mutations \
        check-cuda-mutations check-bounds check-sanitizers check-floor \
        print-python

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

venv: $(READY)  ## the environment: torch, timm and the tools, and this checkout in editable form

# The default torch of PyPI on purpose: a +cpu build under a torchvision of PyPI fails at import.
$(VENV)/.installed: pyproject.toml setup.py clustermim_fast/_version.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed, got " + sys.version + "; say make PYTHON=python3.11")'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing torch, timm and the tools into $(VENV): 6 GB, some minutes without a word"
	CLUSTERMIM_EDITABLE_WITHOUT_CORE=1 $(VENV)/bin/python -m pip install --quiet --editable '.[test,dev]'
	@touch $@

core: $(BUILD)/build.ninja  ## compile csrc/ in place; seconds after an edit
	@cmake --build $(BUILD)
	@cmake --install $(BUILD) --prefix $(CURDIR) | grep -v Up-to-date || true

# Configured again when the interpreter changes, because the name of the extension does.
$(BUILD)/build.ninja: CMakeLists.txt $(READY)
	cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release -DCMAKE_EXPORT_COMPILE_COMMANDS=ON \
	  -DPython_EXECUTABLE=$$($(PY) -c 'import sys; print(sys.executable)') \
	  -Dpybind11_DIR=$$($(PY) -m pybind11 --cmakedir)
	@touch $@

test: core  ## build in place and run the tests; skips are counted with their reasons
	$(TEST_THREADS) $(PY) -m pytest $(PARALLEL) $(PYTEST_ARGS)

wheel: $(READY)  ## sdist, and the wheel built from that sdist, into dist/
	rm -rf dist
	$(PY) -m build --outdir dist .

release-wheel: $(READY)  ## what cibuildwheel does, without containers: build, repair, audit, test from an empty environment
	$(PY) tools/build_release_wheel.py

audit: core  ## what the wheel in dist/ holds and links, and that no AVX code stands where it must not
	$(PY) tools/audit_wheel.py dist/*.whl
	$(PY) tools/check_disassembly.py $(BUILD)/libclustermim_core.a dist/*.whl

test-wheel: $(if $(WHEEL_READY),,wheel)  ## the same tests against the installed wheel, outside this tree
	$(TEST_THREADS) $(PY) tools/test_installed_wheel.py dist/*.whl $(PARALLEL) $(PYTEST_ARGS)

demo: core  ## fit a tokenizer on scikit-learn's digits, pretrain, evaluate, write the report
	$(PY) -m clustermim_fast pretrain digits_demo out=$(DEMO_OUT)
	$(PY) -m clustermim_fast evaluate knn $(DEMO_OUT)
	$(PY) -m clustermim_fast evaluate linear $(DEMO_OUT)
	@echo "look at $(DEMO_OUT)/report.html"

lint: $(READY)  ## ruff and clang-format, checking only
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@if [ -n "$(CPP_FILES)" ]; then echo clang-format; clang-format --dry-run -Werror $(CPP_FILES); fi

format: $(READY)  ## ruff and clang-format, writing
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	@if [ -n "$(CPP_FILES)" ]; then clang-format -i $(CPP_FILES); fi

types: $(READY)  ## mypy
	$(PY) -m mypy

layers: $(READY)  ## who may import and include whom
	$(PY) tools/check_layers.py

bench: core  ## time the ops; see benchmarks/README.md
	$(PY) -m pytest $(wildcard benchmarks/*/bench_*.py) --benchmark-enable --benchmark-only $(PYTEST_ARGS)

check: test lint types layers test-wheel audit check-pages check-slow check-triton check-cuda check-gpu-mutations check-cuda-mutations check-bounds check-sanitizers check-floor  ## all of it, before an issue is called done

check-pages: core  ## reports in Chromium without network: pictures load, nothing is wider than the screen
	$(PY) -m tools.check_report_pages

check-slow: core  ## large cases and long runs
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

# A run of its own: Triton reads the variable when it is imported.
check-triton: core  ## the ops' own tests on the Triton kernels, interpreted and checked strictly
	TRITON_INTERPRET=1 $(TEST_THREADS) $(PY) -m pytest $(PARALLEL) $(TRITON_TESTS) $(PYTEST_ARGS)

# The same with CUDA C++ in place of what it replaces of Triton (tests/gpu/emulated.py).
check-cuda: core  ## the tests of the ops that have CUDA kernels on these, emulated on the CPU
	TRITON_INTERPRET=1 CLUSTERMIM_TEST_CUDA=emulated $(TEST_THREADS) $(PY) -m pytest $(PARALLEL) $(CUDA_TESTS) $(PYTEST_ARGS)

check-gpu-mutations: core  ## bugs planted in the GPU kernels: a test has to notice each
	$(PY) tools/check_gpu_mutations.py

check-cuda-mutations: $(READY)  ## bugs planted in the CUDA kernels: a test of their emulation has to notice each
	$(PY) tools/check_cuda_mutations.py

check-bounds: $(READY)  ## every term of the certificate's bounds taken out of the core once: a test has to notice
	$(PY) tools/check_bound_terms.py

check-sanitizers: $(READY)  ## the C++ tests under ASan + UBSan and under TSan
	bash tools/check_sanitizers.sh

check-floor: $(if $(WHEEL_READY),,wheel)  ## the wheel beside an older torch and timm: nothing changes, ops and nn pass
	PYTHON=$(PYTHON) bash tools/check_torch_floor.sh dist/*.whl

print-python:
	@echo $(PYTHON)

clean:  ## remove builds, not environments or runs
	rm -rf build dist *.egg-info clustermim_fast/*.so clustermim_fast/kernels
