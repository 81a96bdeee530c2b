# make demo: set up and explain a photograph. make test: set up and run all tests. make check: what CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
READY := $(VENV)/ready
SOURCES := pyproject.toml constraints.txt setup.py $(wildcard csrc/*.h csrc/*/*)

.PHONY: help setup demo test test-reference test-slow test-sanitized test-gpu built-for-gpu bench bench-gpu lint check docs gallery clean

help:
	@echo "make demo    explain a real photograph with the embedded model and write an HTML report"
	@echo "make test    run all tests"
	@echo "make bench   measure every operator beside the obvious PyTorch"
	@echo "make check   linters, types, import contracts, generated documentation, tests"
	@echo "make docs    write docs/techniques.md, docs/metrics.md and the README's pictures anew"
	@echo "make gallery write docs/gallery.md and its pictures anew, from trained weights"
	@echo "make clean   remove what was built"

setup: $(READY)

# What was built another way than is asked for now is built again.
BUILT_AS := $(VENV)/built-as
WANTED := $(strip $(CNNVIZ_BUILD) $(FORCE_CUDA:%=FORCE_CUDA=%) $(TORCH_CUDA_ARCH_LIST))
ifneq ($(WANTED),)
$(shell test "$$(cat $(BUILT_AS) 2>/dev/null)" = "$(WANTED)" || rm -f $(READY))
endif

# --no-build-isolation, since native code is built with the very torch that it will run with; see setup.py.
$(READY): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cnnviz needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --constraint constraints.txt pip setuptools wheel
	$(PIP) install --constraint constraints.txt torch torchvision ninja pybind11
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[timm,test,lint]'
	@# Quantus asks for opencv-python, whose files are those of opencv-python-headless, which is there already.
	$(PIP) install --constraint constraints.txt --no-deps quantus
	@echo "$(WANTED)" >$(BUILT_AS)
	@touch $@

demo: $(READY)
	$(BIN)/cnnviz demo

# Tests side by side: threads that wait must not take the processor from those of another test.
SIDE_BY_SIDE := OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

test: $(READY)
	$(SIDE_BY_SIDE)

# Once more without native code, all tests but those of what calls no operator itself (packages, commands, pages), and
# those that compare with other libraries or trained networks what the tests of operators compare with PyTorch.
NATIVE_ALONE := packaging cli report data engines test_docs.py test_plugin_distribution.py index/test_real_images.py \
  models/test_fields_of_architectures.py \
  $(addprefix techniques/test_,$(addsuffix .py,agreement oracles sanity integrated_gradients feature_inversion class_visualization deep_dream))

test-reference: $(READY)
	CNNVIZ_NATIVE=0 $(SIDE_BY_SIDE) $(addprefix --ignore=tests/,$(NATIVE_ALONE))

test-slow: $(READY)
	$(SIDE_BY_SIDE) --slow $(TESTS)

# The native code under the address and the undefined-behaviour sanitizer.
test-sanitized: $(READY)
	PYTHON=$(abspath $(BIN))/python tests/sanitized.sh

# On a machine with a GPU test-gpu and bench-gpu build, test and measure all that asks for one.
built-for-gpu:
	$(MAKE) setup CNNVIZ_BUILD=cuda

test-gpu: built-for-gpu
	PYTHON=$(abspath $(BIN))/python tests/gpu.sh

bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH)

bench-gpu: built-for-gpu
	$(BIN)/python -m benchmarks --device cuda $(BENCH)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(READY)
	$(BIN)/python docs/generate.py

# From trained weights and photographs, which are not part of the project; see docs/gallery.py.
gallery: $(READY)
	$(BIN)/python docs/gallery.py $(or $(CNNVIZ_TEST_DATA),../shared/data)

check: lint test test-reference

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache cnnviz-report cnnviz-out
