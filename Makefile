# The README's two commands are `make demo` and `make test`. Each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Tests and runs start hundreds of processes: none compiles the library anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: venv demo test quick-tests test-all all-tests lint bench docs drills knobs record mutants sample lock image operator clean

# Stop with one line if a required command fails: the command, and the message.
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

# The two images of docs/deploy, with the checkout's version as their tag.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
image:
	docker build -f docs/deploy/Containerfile -t runbook-notebooks:$(VERSION) .
	docker build -f docs/deploy/Containerfile.lab --build-arg IMAGE=runbook-notebooks:$(VERSION) -t runbook-notebooks-lab:$(VERSION) .

# The Prometheus Operator's objects of docs/deploy/operator, from prometheus/rules.yaml and alertmanager.yaml.
operator: venv
	$(RUN)/python -m tests.tools.operator_objects

demo: venv
	$(RUN)/runbook sandbox demo

# Workers of the tests: more than two cores, because most tests wait; their sandboxes and servers are busy, too.
WORKERS := 5

# The gate: what is deterministic, in minutes. Lint and documents are checked beside the tests.
test: venv
	@$(MAKE) --no-print-directory -j2 --keep-going quick-tests lint docs
quick-tests: venv
	$(RUN)/python -m pytest -n $(WORKERS) -m "not lint and not slow and not docker"

# Everything: also what depends on how long things take (each fault live), random properties, containers. It goes on
# after a failure; what failed is named at the end.
test-all: venv
	@$(MAKE) --no-print-directory --keep-going lint docs all-tests
all-tests: venv
	RUNBOOK_TEST_ALL=1 $(RUN)/python -m pytest -n $(WORKERS) -m "not lint"

lint: venv
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .
	$(RUN)/mypy
	$(RUN)/mypy examples/procrastinate
	$(RUN)/lint-imports --no-logo
	$(RUN)/python -m pytest -q --durations 0 -m lint tests/lint

bench: venv
	$(RUN)/python -m tests.bench

# The documents as a site in build/site, without the network; a broken link is an error.
docs: venv
	NO_MKDOCS_2_WARNING=1 $(RUN)/mkdocs build --strict --quiet

# Random incidents for one night, and the page of their results. Seeds that have a line in the file are not played again; another state of the code begins a new file. SEEDS=3991:3994
# plays three.
SEEDS ?= 3991:4231
DRILLS := tests/drills/drills.jsonl.gz
drills: venv
	$(RUN)/python -m tests.drills play --seeds $(SEEDS) --results $(DRILLS) --at-once 3
	$(RUN)/python -m tests.drills report $(DRILLS) $(wildcard tests/drills/knobs.jsonl.gz) --write docs/truth.md

# Change at random what the servers let a person change, N times, six at once, and say what the runbook made of it. KNOBS=FILE adds to
# that file; tests/drills/knobs.jsonl.gz becomes part of docs/truth.md.
KNOBS ?= build/knobs.jsonl
knobs: venv
	$(RUN)/python -m tests.drills knobs --plays $(N) --results $(KNOBS) --at-once 6
	$(RUN)/python -m tests.drills report $(KNOBS)

# Record each fault of the sandbox, and moments without one, in tests/recordings, which `make test` judges. Default: the missing ones.
# CHANGED=1: also the stale ones; ONLY="name ...": these; ACCEPT=1: expect today's verdicts; QUERIES=1: only write queries.toml.
record: venv
	$(RUN)/python -m tests.tools.make_recordings $(if $(CHANGED),--changed) $(if $(ACCEPT),--accept) $(if $(QUERIES),--queries) $(ONLY)

# Change one condition, constant or row of what decides at a time, N times, and say who notices it: the tests, the recordings.
N ?= 100
SEED ?= 1
mutants: venv
	$(RUN)/python -m tests.tools.mutants $(N) --seed $(SEED)

# Renew the sample dossier in outputs/, at a release only.
sample: venv
	$(RUN)/python -m tests.tools.sample

# uv resolves for every platform and Python at once; the file names no index and no host.
lock: venv
	$(RUN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --upgrade --quiet \
	  --generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links \
	  --no-emit-package runbook-notebooks --output-file requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
