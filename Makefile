# Everything here needs Python 3.11 or newer and make; the rest is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test check format lint types layers examples docs bench hostile cancelled simulate mutants install clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | expand -t 16

demo: $(VENV)/.repid  ## Install repid into .venv and run the chained example
	$(BIN)/python examples/chain.py

test: $(VENV)/.tools  ## Install everything into .venv and run the whole test suite
	$(BIN)/python -m pytest

check: lint types layers test  ## All that CI checks but simulate: format, lint, types, layers, tests, examples, the README's code

format: $(VENV)/.tools  ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(VENV)/.tools  ## Check format and lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(VENV)/.tools  ## Check types with mypy (strictly) and pyright
	$(BIN)/mypy
	$(BIN)/pyright

layers: $(VENV)/.tools  ## Check that imports point downwards
	$(BIN)/lint-imports

examples: $(VENV)/.tools  ## Run the examples and check what they print
	$(BIN)/python -m pytest tests/examples

docs: $(VENV)/.tools  ## Run the code in the README and in docs/, and check their links
	$(BIN)/python -m pytest tests/house

bench: $(VENV)/.bench  ## Measure repid against its peers (some twenty-five minutes; installs them)
	$(BIN)/python -m benchmarks

hostile: $(VENV)/.tools  ## Try every hostile error and value in memory and on SQLite under both hosts (a minute)
	REPID_TEST_ALL=1 $(BIN)/python -m pytest tests/runtime/test_worker_hostile.py

cancelled: $(VENV)/.tools  ## Cancel public calls at each of their first 200 steps, under trio and asyncio (some ten minutes)
	REPID_STEPS=200 $(BIN)/python -m pytest -q tests/hosts/test_cancelled_calls.py

simulate: $(VENV)/.tools  ## Let simulated fleets live through ten thousand seeds, or as many as fit into four minutes
	$(BIN)/python -m repid.testing.simulate --seeds 0:10000 --processes 2 --within 240

mutants: $(VENV)/.mutants  ## Put small faults into repid one at a time and count those that the suite sees (an hour)
	$(BIN)/python -m tests.mutants $(MUTANTS)

install: $(VENV)/.tools  ## Install repid with every extra and the tools into .venv

clean:  ## Remove .venv and everything that was generated
	rm -rf $(VENV) .venvs .mutants build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps below say what is installed; a change of pyproject.toml installs again.

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "repid needs Python 3.11 or newer, but '$(PYTHON)' is not: make <target> PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

$(VENV)/.repid: $(VENV)/.python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.bench: $(VENV)/.repid
	$(BIN)/python -m pip install --quiet --editable . --group bench
	@touch $@

$(VENV)/.mutants: $(VENV)/.tools
	$(BIN)/python -m pip install --quiet --editable . --group mutants
	@touch $@

$(VENV)/.tools: $(VENV)/.repid
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group test --group check
	@touch $@
