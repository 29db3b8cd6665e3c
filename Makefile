# `make demo` and `make test` each do everything on a machine that has Python 3.11 or newer and make.

# The first of these two that is new enough. Name another with `make setup PYTHON=/path/to/python3`.
PYTHON ?= $(shell for python in python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; \
	done)

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed

# For `make test ARGS="-k growth"` and `make constraints KEEP="torch==2.13.0"`.
ARGS ?=
KEEP ?=
# How many of the tests that need no Ray cluster run at a time: `make test JOBS=8`.
JOBS ?= 2
# For `make drills KILLS=100 SEED=3`.
KILLS ?= 30
SEED ?= 0

.PHONY: help setup demo test drills gpu lint docs constraints clean

help:
	@echo "make setup        create $(VENV) and install raystage with the versions of constraints.txt"
	@echo "make demo         setup, then train the quickstart in three stages and report what it saved"
	@echo "make test         setup, then the tests; ARGS=... goes to pytest"
	@echo "make drills       setup, then the tests that take minutes: every fault, and 30 random kills (KILLS=30)"
	@echo "make gpu          setup, then what only a GPU can show: speed, memory, energy, bits; figures in build/gpu.json"
	@echo "make lint         setup, then ruff"
	@echo "make docs         setup, then write the generated pages and build the site in build/site; a dead link fails"
	@echo "make constraints  write constraints.txt again from the newest versions; KEEP=... keeps some as they are"
	@echo "make clean        remove what the other targets made; finished stages in .raystage stay"

setup: $(INSTALLED)

demo: setup
	$(VENV)/bin/raystage run jobs/schedules/quickstart.yaml

# Tests that need a Ray cluster share one and run one after another. They are all in tests/end_to_end: collecting the
# others for them, too, takes seconds. If ARGS selects no test of a kind, pytest ends with status 5; if it selects no test
# at all, this target does, too.
test: setup
	$(VENV)/bin/python -m pytest -m "not drill and not cluster and not gpu" -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS); first=$$?; \
	[ $$first -eq 0 ] || [ $$first -eq 5 ] || exit $$first; \
	$(VENV)/bin/python -m pytest -m "not drill and cluster" --ignore-glob='tests/[!e]*' $(ARGS); second=$$?; \
	[ $$second -ne 5 ] || exit $$first; exit $$second

drills: setup
	KILLS=$(KILLS) SEED=$(SEED) $(VENV)/bin/python -m pytest -m drill $(ARGS)

# Everything that only a GPU can show, in under 8 minutes. Its figures are in build/gpu.json as soon as they are there.
gpu: setup
	$(VENV)/bin/python -m pytest -s -m gpu tests/gpu $(ARGS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

docs: $(VENV)/bin/zensical
	$(VENV)/bin/python docs/generate.py
	$(VENV)/bin/zensical build --strict

$(VENV)/bin/zensical: $(INSTALLED)
	$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

# torch is installed first, at its pinned version: an open version can be another build, of several gigabytes.
$(INSTALLED): pyproject.toml constraints.txt
	@$(require_python)
	@$(PIP) --version >/dev/null 2>&1 || { echo "creating $(VENV)"; "$(PYTHON)" -m venv --clear $(VENV); }
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch $@

constraints:
	@$(require_python)
	"$(PYTHON)" -m venv --clear build/constraints
	build/constraints/bin/python -m pip install '.[test,docs,energy]' optuna $(KEEP)
	grep '^#' constraints.txt > build/constraints.txt
	build/constraints/bin/python -m pip freeze --all --exclude pip --exclude raystage \
	| sed 's/+.*//' | grep -Ev '^(cuda|nvidia-[^m]|triton)' >> build/constraints.txt
	mv build/constraints.txt constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define require_python
"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo "raystage needs Python 3.11 or newer; found: $$("$(or $(PYTHON),python3)" --version 2>&1)." >&2; \
	echo "Install python3.11, or name another with: make setup PYTHON=/path/to/python3" >&2; exit 1; }
endef
