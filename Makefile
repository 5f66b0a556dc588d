# Every target does its own set-up from nothing, and running one twice is quick and safe.
#   make demo    the whole circle on the built-in model and manual, offline, in minutes
#   make test    the test suite          make check   ruff, mypy, the rules of the tree
#   make docs    the reference pages     make matrix  what works with what, tried
#                                        make bench   speed against peers (about two hours);
#                                                     RESULTS=benchmarks/results/NAME for another kind of machine

PYTHON ?= $(firstword $(shell command -v python3.11) $(shell command -v python3))
JOBS ?= 2
# Any encoder for the benchmark of frozen features: a name, or a folder where there is no network.
ENCODER ?= sentence-transformers/all-MiniLM-L6-v2
# Where `make bench` keeps what it measured.
RESULTS ?= benchmarks/results
VENV := .venv
BIN := $(VENV)/bin
PEER := $(VENV)-peer
VERSIONS := pyproject.toml constraints.txt

.PHONY: demo test check docs matrix bench format clean

demo: $(VENV)/.has-client
	$(BIN)/tunesmith demo

# One thread a worker: on few cores two workers finish sooner than one worker with two threads.
test: $(VENV)/.has-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.has-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py tests/test_invariants.py

docs: $(VENV)/.has-client
	$(BIN)/python -m tunesmith.reports.reference docs/reference

# What works with what: every method, objective and architecture, and which decoders are packed (minutes).
matrix: $(VENV)/.has-dev
	cd tests && ../$(BIN)/python -m contracts.matrix
	cd tests && ../$(BIN)/python -m contracts.packing

bench: export RESULTS := $(RESULTS)
bench: $(VENV)/.has-client $(PEER)/.has-peers
	$(BIN)/python benchmarks/train_speed.py --peer-python $(PEER)/bin/python
	$(BIN)/python benchmarks/encoder_speed.py
	$(BIN)/python benchmarks/loss_parity.py
	$(BIN)/python benchmarks/checkpoint_cost.py
	$(BIN)/python benchmarks/input.py
	$(BIN)/python benchmarks/plan_accuracy.py
	$(BIN)/python benchmarks/frozen.py --model $(ENCODER)
	$(BIN)/python benchmarks/targets.py

format: $(VENV)/.has-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PEER) demo runs build dist

# .venv/.has-EXTRA is the stamp of a finished installation of tunesmith[EXTRA].
$(VENV)/.has-%: $(VERSIONS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

$(PEER)/.has-peers: benchmarks/peers.txt constraints.txt | $(PEER)/bin/python
	$(PEER)/bin/python -m pip install --quiet --constraint constraints.txt --requirement benchmarks/peers.txt
	touch $@

%/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Tunesmith needs Python 3.11 or newer: make PYTHON=...")'
	$(PYTHON) -m venv $*

.SECONDARY:
