# Two commands: `make demo` and `make test`. Both set up .venv by themselves.
PYTHON ?= python3
# A machine without a GPU can do without the CUDA wheels: make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
TORCH := $(shell grep '^torch==' requirements.lock)
# What installs all the rest: uv, or pip where uv does not work.
INSTALLER ?= uv
RAY := 2.60.0
BIN := .venv/bin
STAMP := .venv/.installed-$(shell cat requirements.lock pyproject.toml | sha256sum | cut -c1-16)
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Where it is set, every process compiles all that it imports again: three seconds for the command line alone.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-cluster test test-fast test-quick test-slow test-cluster with-ray explore coverage lint types clean lock

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(STAMP) ## create .venv and install the locked dependencies

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"Python {v[0]}.{v[1]} is too old: Winnow needs 3.11 or newer; try make PYTHON=python3.11")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the locked dependencies into .venv (about a minute, once)"
	@$(if $(TORCH_INDEX),PIP_EXTRA_INDEX_URL=$(TORCH_INDEX)) $(PIP) install --no-compile $(TORCH)
	@$(BIN)/python .ci/install_locked.py $(INSTALLER)
	@rm -f .venv/.installed-*
	@touch $@

demo: setup ## start the servers, find the best digits model inside a budget, prove it, serve it
	@$(BIN)/winnow up
	@$(BIN)/winnow run digits_budget --report report
	@printf '\nIt answers: '
	@$(BIN)/python -c 'import json; print(json.load(open("report/report.json"))["curl"])' | sh
	@echo

# Ray has an environment of its own, where what is in .venv comes first.
CLUSTER := .venv/cluster
CLUSTER_STAMP := $(CLUSTER)/.installed-$(RAY)
WITH_RAY = PATH=$(CURDIR)/$(CLUSTER)/bin:$(CURDIR)/$(BIN):$$PATH PYTHONPATH=$(CURDIR):$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

$(CLUSTER_STAMP): $(STAMP)
	@$(BIN)/python -m venv --clear --without-pip $(CLUSTER)
	@echo "installing Ray into $(CLUSTER)"
	@$(PIP) --python $(CLUSTER)/bin/python install --no-compile 'ray[serve]==$(RAY)' aiohttp
	@printf '#!/bin/sh\nexec "$${0%%/*}/python" -m flows.commands.cli "$$@"\n' > $(CLUSTER)/bin/winnow
	@chmod +x $(CLUSTER)/bin/winnow
	@touch $@

demo-cluster: $(CLUSTER_STAMP) ## the same on a Ray cluster of two nodes on this machine; the report says which node did what
	@$(BIN)/winnow up
	@$(WITH_RAY) winnow cluster --nodes 2 -- winnow run digits_budget --set place=ray --set search.parallel=2 --report report
	@printf '\nWhich node did what: the table of stages in report/report.html\n'

test: test-fast test-slow test-cluster ## lint, strict types, all tests

# Three workers for two cores, since who tests servers waits for them half of the time. A worker has servers of its own.
PYTEST := $(BIN)/python -m pytest --numprocesses=3 --dist=loadfile --no-loadscope-reorder

test-fast: setup lint ## lint, strict types, the tests that need no server: two minutes
	@$(MAKE) --no-print-directory -j2 types test-quick

test-quick: setup
	@$(PYTEST) -m "not slow"

test-slow: setup ## the other tests
	@$(PYTEST) -m "slow and not ray" --durations=25 --durations-min=5

# By themselves: Ray's nodes give up where something else keeps the cores from them.
with-ray: $(CLUSTER_STAMP) # make with-ray DO='python benchmarks/node_kills.py'
	@$(WITH_RAY) $(DO)

test-cluster: $(CLUSTER_STAMP) ## the tests that need Ray, on a cluster on this machine
	@$(WITH_RAY) python -m pytest -m ray --durations=5 --durations-min=5

coverage: setup ## all tests, and which lines they never reach; they take longer so
	@$(PYTEST) --cov --cov-report=term:skip-covered

explore: setup ## tests that draw their examples, with new ones each time; what one finds is a fault
	@$(PYTEST) -m "not slow" --hypothesis-profile=explore $$(grep -l '^from hypothesis' tests/test_*.py)

lint: setup ## ruff: rules and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## mypy --strict over source and tests
	@$(BIN)/mypy

clean: ## stop the stack and remove everything that was made here (asks nothing)
	@test ! -x $(BIN)/winnow || $(BIN)/winnow down
	@rm -rf .venv .winnow report build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage

lock: setup ## write requirements.lock from what is installed in .venv
	@{ $(BIN)/python -m pip freeze --all --exclude-editable | grep -vi '^pip=' | sed -E 's/^(torch==[0-9.]+)[+].*/\1/'; } > requirements.lock
