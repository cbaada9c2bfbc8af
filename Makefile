# Everything here sets itself up: Python 3.10+ is all that a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin

.PHONY: setup demo test test-long lint bench-cache bench-train bench-infer

setup: $(VENV)/.ready
$(VENV)/.ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[demo,dev]'
	touch $@

demo: setup
	PATH=$(BIN):$$PATH bash tests/demo.sh

test: setup
	$(BIN)/python -m pytest -m "not long"

test-long: setup
	$(BIN)/python -m pytest -m long -s

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench-cache: setup
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m tests.bench.cache

bench-train: setup
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m tests.bench.train

bench-infer: setup
	$(BIN)/python -m tests.bench.infer
