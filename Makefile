# Needs python3 (3.11 or newer) and make, nothing else. `make PYTHON=python3.13 VENV=.venv-3.13 test` picks another Python.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
JOBS ?= 5
BACKEND_TESTS := tests/engine/test_dbos_uses.py tests/engine/test_internals.py tests/golden
BIN := $(VENV)/bin
UV := $(shell command -v uv 2>/dev/null)

ifneq ($(UV),)
MAKE_VENV = $(UV) venv --quiet --clear --python "$(PYTHON)" $(VENV)
INSTALL = $(UV) pip install --quiet --python $(BIN)/python
else
MAKE_VENV = $(PYTHON) -m venv --clear $(VENV)
# Not all compiled: most modules of the dependencies are never imported.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
endif
# What is imported is compiled at once, also where the environment forbids it later: each start would compile it anew, and take
# twice the time.
unexport PYTHONDONTWRITEBYTECODE
COMPILE = $(BIN)/python -c 'from durable_swarm import *; import durable_swarm.cli.runs, durable_swarm.testing, openai'

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help shots peers demo test unit crash backend faults check format bench site reference picture package clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed ## See a run survive a crash; no key needed
	@# Ctrl+C, which the demo asks for, is no error of make's.
	@trap : INT; $(BIN)/durable-swarm demo refund $(ARGS) || [ $$? -eq 130 ]

test: $(VENV)/.installed-dev ## Run all tests; ARGS='...' goes to pytest, JOBS=1 runs them one by one
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

unit: $(VENV)/.installed-dev ## Run the tests that need neither a database nor a process; about a minute
	$(BIN)/python -m pytest -q -n logical --maxprocesses 8 -m unit tests/test_*.py tests/contract $(ARGS)

crash: $(VENV)/.installed-dev ## Kill programs at every boundary, in every way; takes long
	DURABLE_SWARM_LONG=1 $(BIN)/python -m pytest --timeout=7200 tests/crash $(ARGS)

backend: ## Test what is used of DBOS with another version of it: make backend DBOS=3.5.0
	@test -n "$(DBOS)" || { echo "Name a version: make backend DBOS=3.5.0" >&2; exit 2; }
	@$(MAKE) --no-print-directory VENV=.venv-dbos-$(DBOS) .venv-dbos-$(DBOS)/.dbos
	.venv-dbos-$(DBOS)/bin/python -m pytest $(BACKEND_TESTS) $(ARGS)

faults: $(VENV)/.installed-dev ## Have the disk fail at every write; takes half an hour; ARGS='--every 7 kill power' takes less
	$(BIN)/python -m faults.disk $(ARGS)

check: $(VENV)/.installed-dev ## Check formatting, lint, types, layers, words and links
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house/test_words.py tests/house/test_sources.py tests/docs/test_contents.py

peers: $(VENV)/.installed-dev ## Test the doors with the clients of others, on Node, which npm brings, and in Python
	@mkdir -p .peers && cp scripts/peers/package.json .peers && cd .peers && npm install --no-audit --no-fund --silent
	@test -d .peers/venv || "$(PYTHON)" -m venv .peers/venv
	@.peers/venv/bin/python -m pip install --quiet --disable-pip-version-check -r scripts/peers/requirements.txt
	DURABLE_SWARM_PEERS=$(CURDIR)/.peers $(BIN)/python -m pytest tests/server/test_peers.py $(ARGS)

format: $(VENV)/.installed-dev ## Put the sources into shape
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

shots: $(VENV)/.installed-dev ## Take pictures of every page of the web console into .shots; needs Chromium
	$(BIN)/python -m tests.console.shots .shots

bench: $(VENV)/.installed-dev ## Run the benchmarks
	@set -e; for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

site: $(VENV)/.installed-tools ## Build the documentation into site/, with every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

reference: $(VENV)/.installed-dev ## Write docs/reference.md from the docstrings, and the commands in docs/command-line.md
	$(BIN)/python scripts/reference.py
	$(BIN)/python scripts/command_line.py

picture: $(VENV)/.installed-dev ## Record docs/demo.svg from the demo
	$(BIN)/python scripts/record_demo.py

package: $(VENV)/.installed-tools ## Build wheel and sdist, check them, and use them in a clean environment
	$(BIN)/python scripts/try_package.py

clean: ## Remove the environment and caches
	rm -rf $(VENV) dist site .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Made anew when pyproject.toml changed, so that nothing of an older set of packages stays behind.
$(VENV)/pyvenv.cfg: pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	$(MAKE_VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/pyvenv.cfg
	$(INSTALL) -e .
	$(COMPILE)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/pyvenv.cfg
	$(INSTALL) -e '.[dev]'
	$(COMPILE)
	@touch $(VENV)/.installed $@

$(VENV)/.installed-tools: $(VENV)/.installed-dev
	$(INSTALL) -e '.[site,release]'
	@touch $@

# An environment of its own with a version of DBOS that the package does not promise to work with.
$(VENV)/.dbos: $(VENV)/.installed-dev
	$(INSTALL) 'dbos==$(DBOS)'
	@touch $@
