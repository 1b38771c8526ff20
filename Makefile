# The two commands of the README are `make demo` and `make test`; each does all its own set-up.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: venv demo test lint bench drills sample lock clean

# What is missing is said in one line, before anything is made: a command that must succeed, and what is said if not.
need = $(if $(shell $(1) >/dev/null 2>&1 && echo there),,$(error $(2)))

venv: $(STAMP)
$(STAMP): requirements.lock pyproject.toml
	$(call need,command -v git,git is needed (Debian: apt install git))
	$(call need,$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))',Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11)
	$(call need,$(PYTHON) -c 'import ensurepip',Python lacks its module venv (Debian: apt install python3-venv))
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(RUN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: venv
	$(RUN)/runbook sandbox demo

test: venv lint
	$(RUN)/pytest -n 4

lint: venv
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/mypy examples/procrastinate
	$(RUN)/lint-imports --no-logo

bench: venv
	$(RUN)/python -m tests.bench

# Incidents at random, a night's worth, and the page of what they show. Interrupted, it goes on where it was. The file also holds
# seeds before and after these: of kinds that had come up fewer than three times. `make drills SEEDS=N:M` plays others.
SEEDS ?= 1758:1945
DRILLS := tests/drills.jsonl
drills: venv
	$(RUN)/runbook drill --seeds $(SEEDS) --results $(DRILLS) --at-once 3
	$(RUN)/runbook drill report $(DRILLS) --write docs/truth.md

# The dossier that git keeps; after a change that alters verdicts or pages.
sample: venv
	$(RUN)/python tests/sample.py

# uv resolves for every platform and Python at once; the file names no index and no host.
lock: venv
	$(RUN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet \
	  --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	  --no-emit-package runbook-notebooks --output-file requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
