# Everything here sets itself up: Python 3.10+ is all that a fresh machine needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
SPEECH := ../shared/data/unpack.py
COURSE ?= balanced-pretrained
DEMO_RUN := --runs-dir runs --model resnet10t --n-mels 32

.PHONY: setup demo race test test-long lint bench-cache bench-train bench-infer

setup: $(VENV)/.ready
$(VENV)/.ready: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

demo: setup # in demo/, never in data/
	mkdir -p demo
	test -d demo/data/audio || (cd demo && $(BIN)/python -m pipeline.demo_corpus)
	cd demo && $(BIN)/python -m pipeline.build_cache --n-mels 32 --folds 2
	cd demo && OMP_NUM_THREADS=1 $(BIN)/torchrun --nproc_per_node 2 -m train.run --recipe smoke --fold all --hold-back 0.05
	cd demo && $(BIN)/python -m infer.calibrate $(DEMO_RUN) --folds all --tta 4
	cd demo && $(BIN)/python -m infer.predict $(DEMO_RUN) --folds all --tta 4
	cd demo && $(BIN)/python -m infer.evaluate $(DEMO_RUN) --folds all --tta 4 --input data/test
	cd demo && $(BIN)/python -m infer.report $(DEMO_RUN) --folds all --tta 4 --input data/test

race: setup data/audio
	$(BIN)/pip install --quiet --editable '.[pretrained]'
	rm -rf data/race/$(COURSE)
	$(BIN)/python -m tests.bench.race --course $(COURSE)

data/audio: # the speech that lies beside the checkout of some machines, else the public corpus
	if [ -f $(SPEECH) ]; then rm -rf data/part && $(BIN)/python $(SPEECH) data/part && mv data/part $@; \
	else $(BIN)/python -m pipeline.download speech-commands-v0.01; fi

test: setup
	$(PYTEST) -m "not long"

test-long: setup
	$(PYTEST) -m long

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-cache: setup
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m tests.bench.cache

bench-train: setup
	$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m tests.bench.train

bench-infer: setup
	$(BIN)/python -m tests.bench.infer
