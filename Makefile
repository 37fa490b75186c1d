# Everything runs in .venv, which is made and filled once; only Python, Git and make must be there.
#   make PYTHON=python3.12 ...   another Python (>= 3.11)
#   make test PYTEST="-m 'not slow'"   options for pytest
#   make ui PORT=5001   another port
#   make gpu-check PYTHON=python3 CHECK='--minutes 4'   with that Python's own PyTorch, and options

PYTHON ?= python3
PYTEST ?=
PORT ?= 5000
CHECK ?=

VENV := .venv
BIN := $(VENV)/bin
# What is never imported need not be compiled, and that is most of it.
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt --editable

# What the project starts phones nobody.
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
# Python keeps what it has compiled, also where the shell forbids it: an import takes a third of the time.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help repro test test-long lint style ui gpu-check clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

repro: $(VENV)/runtime.stamp ## Run the pipeline: what has changed, and what depends on it
	@[ -e .git ] || { $(BIN)/dvc config --local core.no_scm true; \
	  echo "no Git here: DVC goes without it; its experiments need one (git init, then remove .dvc/config.local)"; }
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/dvc repro

# Types are checked beside the tests, and what mypy says is shown after theirs. Either one's failure is a failure.
test: style ## Check style and types, run all tests
	@$(BIN)/mypy >$(VENV)/mypy.log 2>&1 & types=$$!; tests=0; \
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest --numprocesses auto --dist loadgroup $(PYTEST) || tests=$$?; \
	wait $$types || tests=$$?; cat $(VENV)/mypy.log; exit $$tests

test-long: ## Run the tests that take minutes: experiments, servers, clones
	$(MAKE) test PYTEST='-m long $(PYTEST)'

lint: style ## Check style and types
	$(BIN)/mypy

style: $(VENV)/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

ui: $(VENV)/runtime.stamp ## Open MLflow's pages on this project's runs, on port PORT of this machine
	$(BIN)/unveil ui --port $(PORT)

# A Python that was named is taken as it is, if it has what is needed; else .venv is.
ifneq ($(filter gpu-check,$(MAKECMDGOALS)),)
ifneq ($(origin PYTHON),file)
OWN := $(shell $(PYTHON) -c 'import torch, torchvision, safetensors, pydantic, pytest' 2>/dev/null && echo $(PYTHON))
endif
endif

gpu-check: $(if $(OWN),,$(VENV)/dev.stamp) ## Measure what a GPU does with this project, in 8 minutes
	PYTHONPATH=src $(or $(OWN),$(BIN)/python) -m tests.benchmarks.gpu_check $(CHECK)

clean: ## Remove what the tools cache; data, models and runs stay
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find src stages studies tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/runtime.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	@touch $@

$(VENV)/dev.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	@touch $(VENV)/runtime.stamp $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) not found; install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..." >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: $(PYTHON) is Python %d.%d.%d, expected 3.11 or newer; name one: make PYTHON=python3.12 ..." % sys.version_info[:3])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no ensurepip, which fills $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; \
	  exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
