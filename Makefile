# make demo and make test are all that a newcomer needs. Both create .venv on
# their first run and reuse it afterwards; it is brought up to date when one of
# the files that describe it changes.

PYTHON ?= python3
JOBS ?= auto
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
# Threads that wait would keep the cores from the other workers.
QUIET := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive
TEST := $(QUIET) $(RUN) -m pytest -n $(JOBS) --maxprocesses 4
SOURCES := torch_picard examples benchmarks tests docs setup.py

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-compiled sanitize lint format
.PHONY: docs bench clean

help:
	@echo "make demo       iterated graph networks against plain ones, on noisy data"
	@echo "make test       unit tests, and every code block of the docs"
	@echo "make test-slow  the tests that take longer"
	@echo "make sanitize   the operators' tests under AddressSanitizer and UBSan"
	@echo "make test-compiled  tests with torch-scatter and torch-sparse, built first"
	@echo "make lint       format check, lint, types      make format  repairs"
	@echo "make docs       HTML pages in docs/build/html"
	@echo "make bench      timings against peers"
	@echo "make clean      removes what the others wrote, .venv excepted"
	@echo "PYTHON=python3.11 picks the interpreter that .venv is made with."

install: $(VENV)/package.stamp

demo: install
	$(RUN) examples/node_classification.py

test: install
	$(TEST)

# pytest exits with 5 when there is no such test.
test-slow: install
	$(TEST) -m slow || test $$? -eq 5

sanitize: install
	PYTHON=$(RUN) tests/sanitize.sh

# PyG's compiled packages have folders of their own, which only this target puts
# on the path: every other one goes without them, as most users do. There are no
# wheels for this torch; the builds run side by side. --no-deps: nothing
# that is in .venv may be replaced. -g0: debugging symbols take time.
SCATTER := $(VENV)/compiled/torch-scatter
SPARSE := $(VENV)/compiled/torch-sparse

%/stamp: $(VENV)/requirements.stamp
	rm -rf $*
	CFLAGS=-g0 FORCE_ONLY_CPU=1 $(PIP) install --no-build-isolation \
	    --no-deps -c constraints.txt --target $* $(notdir $*)
	@touch $@

test-compiled: install
	$(MAKE) -j 2 $(SCATTER)/stamp $(SPARSE)/stamp
	PYTHONPATH=$(CURDIR)/$(SCATTER) $(TEST) tests/ops -k scatter
	PYTHONPATH=$(CURDIR)/$(SCATTER):$(CURDIR)/$(SPARSE) $(TEST) tests/nn tests/test_docs.py

lint: install
	$(RUN) -m ruff format --check $(wildcard $(SOURCES))
	$(RUN) -m ruff check $(wildcard $(SOURCES))
	$(RUN) -m mypy

format: install
	$(RUN) -m ruff check --fix $(wildcard $(SOURCES))
	$(RUN) -m ruff format $(wildcard $(SOURCES))

docs: install
	$(RUN) -m sphinx -W --keep-going -b html docs/source docs/build/html

bench: install
	set -e; for script in benchmarks/[!_]*.py; do $(RUN) $$script; done

clean:
	rm -rf build dist *.egg-info docs/build docs/source/generated
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The environment, in two steps: a changed setup.py need not resolve the
# requirements again. A .venv without a working pip (the folder was moved, that
# Python removed, the set-up interrupted) is made anew.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 10))'

$(VENV)/requirements.stamp: constraints.txt requirements.txt
	@if ! $(PIP) --version >/dev/null 2>&1; then \
	    $(PYTHON) $(NEW_ENOUGH) || { \
	        echo "torch_picard needs Python 3.10 or newer: $(PYTHON) is older" \
	            "or does not start." >&2; \
	        echo "Name another one, such as: make test PYTHON=python3.11" >&2; \
	        exit 1; }; \
	    rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); \
	fi
	@$(RUN) $(NEW_ENOUGH) || { \
	    echo "$(VENV) has a Python older than 3.10: remove it and say" \
	        "make test PYTHON=python3.11, for example." >&2; \
	    exit 1; }
	$(PIP) install -r requirements.txt
	@touch $@

# Without build isolation: the build must see the torch installed above.
$(VENV)/package.stamp: $(VENV)/requirements.stamp pyproject.toml setup.py \
		$(wildcard torch_picard/csrc/*/*)
	$(PIP) install --no-build-isolation --no-deps -e .
	@touch $@
