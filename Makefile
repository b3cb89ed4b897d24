# `make` lists the targets; each sets up what it needs.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
DISTS := sdk core plugins/postgres plugins/http plugins/suprsend plugins/generated

.PHONY: help setup demo test simulate chaos up bench lint types contracts wheels docs

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: .venv/.ready  ## make .venv with every package of this repository, editable

.venv/.ready: constraints.txt requirements-dev.txt $(addsuffix /pyproject.toml,$(DISTS))
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt $(addprefix -e ./,$(DISTS))
	touch $@

demo: setup  ## a warehouse, a schedule and a store on this machine: 100,000 rows moved, then only the changes
	$(BIN)/wsync-engine demo

up: setup  ## a scheduler and a worker with embedded servers, until Ctrl-C
	$(BIN)/wsync-engine up

bench: setup  ## the benchmarks; each prints one JSON object as its last line
	$(BIN)/python benchmarks/extract.py
	$(BIN)/python benchmarks/render_json.py
	$(BIN)/python benchmarks/concurrency.py

test: setup  ## set up and run all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

simulate: setup  ## 3,000 simulated histories of schedulers and workers; SEED=7: one, with all that happened in it
	PYTHONPATH=core/tests $(BIN)/python -m simulation.simulate

chaos: setup  ## two minutes of kills, flushes, restarts and cut lines under load, by a new seed
	$(BIN)/python -m pytest tests/test_chaos.py -s --chaos-s=120

lint: setup  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## strict types, package by package
	$(BIN)/mypy sdk/src core/src plugins/postgres/src plugins/http/src plugins/suprsend/src plugins/generated/src benchmarks

contracts: setup  ## which package may import which
	$(BIN)/lint-imports

docs: setup  ## write docs/reference/ from the program itself
	$(BIN)/python docs/generate.py

wheels: setup  ## build every wheel and try them in a clean environment
	$(BIN)/python tests/wheels.py
