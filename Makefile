# Every target does its own set-up. Python packages go into .venv, Apache Kafka into .cache; as root, missing
# system packages are installed with apt-get.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
ARGS ?=
KEEP ?=

.PHONY: help venv system demo test lint fuzz bench peers statistics report pins clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "reluscope needs Python 3.11 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments (Debian: python3-venv)" >&2; exit 1; }

# The pinned packages first, then the product itself without any look at an index.
define install
	$(PIP) install --quiet --require-hashes -r $(1)
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
endef

$(VENV)/.demo: requirements/demo.txt pyproject.toml | $(BIN)/python
	$(call install,requirements/demo.txt)
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	$(call install,requirements/dev.txt)
	@touch $@ $(VENV)/.demo

venv: $(VENV)/.dev ## Make .venv with every package that development needs

system: ## Install what the tests need beside Python (as root), or say what is missing
	@deploy/local/system-packages

demo: $(VENV)/.demo ## Watch the product do its job on this machine (KEEP=1 leaves the services up)
	KEEP=$(KEEP) $(BIN)/python -m deploy.demo $(ARGS)

test: $(VENV)/.dev system ## Run all tests against real servers (ARGS='-k dead' for some)
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

SECONDS_ := $(if $(SECONDS),--seconds $(SECONDS),)
ROUNDS_ := $(if $(ROUNDS),--rounds $(ROUNDS),)

fuzz: $(VENV)/.dev ## Feed every decoder with mutated messages (SECONDS=600 or ROUNDS=10000, ARGS='--seed 7')
	$(BIN)/python -m tests.fuzz $(SECONDS_) $(ROUNDS_) $(ARGS)

bench: $(VENV)/.dev ## Run every benchmark; the last line of each is JSON
	@for file in tests/bench/*.py; do \
	  name=$$(basename "$$file" .py); \
	  case "$$name" in _*) continue;; esac; \
	  echo "== $$name"; $(BIN)/python -m "tests.bench.$$name"; \
	done

# The libraries compared with need other versions of numpy than reluscope, and of each other's: two more environments.
# --no-deps, for the lists are complete, and some pips ask anew for what is pinned without an extra that is wanted.
PEERS := .cache/peers

$(PEERS)/%/.done: requirements/peers-%.txt | $(BIN)/python
	@rm -rf $(@D) && $(PYTHON) -m venv $(@D)
	@echo "installing $< into $(@D)"; $(@D)/bin/python -m pip --disable-pip-version-check install --quiet --no-deps \
	  --require-hashes -r $< >$(@D)/install.log 2>&1 || echo "failed, and said so in the tables: $(@D)/install.log" >&2
	@touch $@

peers: $(PEERS)/numpy1/.done $(PEERS)/numpy2/.done ## Install the libraries that reluscope is compared with

statistics: $(VENV)/.dev peers ## Calibrate every test and compare with peers: 40 minutes, writes docs/calibration
	$(BIN)/python -m tests.statistics $(ARGS)

report: $(VENV)/.demo ## Write a drift report (ARGS='--model digits --output report.html')
	$(BIN)/reluscope report $(ARGS)

# Index settings of this machine stay out of the lock files.
PIN := env -u PIP_FIND_LINKS -u PIP_INDEX_URL -u PIP_EXTRA_INDEX_URL CUSTOM_COMPILE_COMMAND='make pins' \
  $(BIN)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options
EXTRAS := --build-deps-for editable --extra agent --extra detector --extra demo

pins: $(VENV)/.dev ## Renew the hashes in requirements/ after a change of pyproject.toml (ARGS=--upgrade)
	$(PIN) $(ARGS) $(EXTRAS) --extra dev -o requirements/dev.txt pyproject.toml
	$(PIN) $(ARGS) $(EXTRAS) -c requirements/dev.txt -o requirements/demo.txt pyproject.toml
	for set in numpy1 numpy2; do $(PIN) $(ARGS) -o requirements/peers-$$set.txt requirements/peers-$$set.in; done

clean: ## Remove what the other targets made
	rm -rf $(VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist out
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
