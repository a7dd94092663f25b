# Debian's interpreter by its full name: version managers put another `python3` first on PATH,
# and the frozen bundle must be made from the one whose shared library Debian ships.
PYTHON ?= /usr/bin/python3

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

BIN := .venv/bin
# Without debugging records, which hold the directory of the build, and the hash made of them.
PIP := CFLAGS=-g0 LDFLAGS=-Wl,--build-id=none $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
LOCKS := packaging/requirements-bootstrap.txt packaging/requirements-build.txt packaging/requirements-dev.txt
SOURCES := $(shell find borg_pull -name '*.py' -o -name '*.pyi')
FREEZING := $(wildcard packaging/*.spec packaging/freeze.sh packaging/frozen/*)

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 12

.PHONY: demo
demo: system-run .venv/project dist/frozen ## pull real backups through a private sshd on loopback, and show what happened
	$(BIN)/python packaging/demo.py

.PHONY: test
test: system-run .venv/project dist/frozen ## run the tests, from source and from the frozen bundle, with borg 1.2 and 1.4
	borg14=$$(PYTHON=$(PYTHON) packaging/borg14.sh); \
	BORG_PULL_BORG12=/usr/bin/borg \
	BORG_PULL_BORG14="$$borg14" \
	packaging/reachable.sh $(BIN)/python -m pytest -n 2

# What the fuzzer learns stays in build/fuzz, what fails in tests/fuzz/crashes.
FUZZ_SECONDS ?= 300
.PHONY: fuzz
fuzz: system-run .venv/project .venv/fuzzer ## look for inputs that break a promise, for FUZZ_SECONDS (300); FUZZ="TARGET..." limits it to these
	borg14=$$(PYTHON=$(PYTHON) packaging/borg14.sh); \
	BORG_PULL_BORG12=/usr/bin/borg \
	BORG_PULL_BORG14="$$borg14" \
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ)

.PHONY: check
check: .venv/project ## ruff, strict mypy, import rules, exit codes unique, generated documentation current
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python packaging/generate_docs.py --check

.PHONY: frozen
frozen: dist/frozen ## make the frozen bundle dist/borg-pull

.PHONY: bench
bench: system-run .venv/project dist/frozen ## measure against the bare interpreter, socat and plain ssh, in one run; BENCH="a g" limits it to these parts
	packaging/reachable.sh $(BIN)/python -m tests.bench $(if $(BENCH),--only "$(BENCH)")

.PHONY: clean
clean: ## remove everything that was made here
	rm -rf .venv build dist borg_pull.egg-info borg_pull/linux/_kernel.c borg_pull/linux/_kernel.*.so
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find borg_pull tests packaging -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up: looked at each time, done once.

.PHONY: system-build system-run
system-build:
	@packaging/setup-system.sh build
system-run:
	@packaging/setup-system.sh run

# Two passes, because pip asks a source distribution for its metadata before it installs anything,
# and without isolation what builds it must be there by then. The project comes last, in place.
.venv/requirements: $(LOCKS) | system-build
	@echo "setting up .venv"
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	@$(PIP) install --require-hashes -r packaging/requirements-bootstrap.txt
	@$(PIP) install --require-hashes --no-build-isolation --use-pep517 \
	    -r packaging/requirements-build.txt -r packaging/requirements-dev.txt
	@touch $@

# Apart from the rest: 35 MB, and made for x86_64 alone.
.venv/fuzzer: packaging/requirements-fuzz.txt .venv/requirements
	@$(PIP) install --require-hashes -r packaging/requirements-fuzz.txt
	@touch $@

.venv/project: .venv/requirements pyproject.toml packaging/build_backend.py borg_pull/linux/_kernel_build.py | system-build
	@$(PIP) install --no-build-isolation --no-deps --editable .
	@touch $@

dist/frozen: .venv/project $(SOURCES) $(FREEZING) | system-build
	packaging/freeze.sh
	@touch $@
