# make demo: set up and explain a photograph. make test: set up and run all tests. make check: what CI runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
READY := $(VENV)/ready
SOURCES := pyproject.toml constraints.txt

.PHONY: help setup demo test test-slow lint check docs clean

help:
	@echo "make demo    explain a real photograph with the embedded model and write an HTML report"
	@echo "make test    run all tests"
	@echo "make check   linters, types, import contracts, generated documentation, tests"
	@echo "make docs    write docs/techniques.md and the README's pictures anew"
	@echo "make clean   remove what was built"

setup: $(READY)

# --no-build-isolation, since the package is to be built with the very torch that it will run with.
$(READY): $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "cnnviz needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(PIP) install --constraint constraints.txt pip setuptools wheel
	$(PIP) install --constraint constraints.txt torch torchvision
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[figure,timm,test,lint]'
	@touch $@

demo: $(READY)
	$(BIN)/cnnviz demo

test: $(READY)
	$(BIN)/python -m pytest

test-slow: $(READY)
	$(BIN)/python -m pytest --slow

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

docs: $(READY)
	$(BIN)/python docs/generate.py

check: lint test

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache cnnviz-report cnnviz-out
