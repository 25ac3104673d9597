# Every target sets itself up: needs Python 3.11 or newer, pip and make. `make demo` is the place to start.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c "import sys; print('ok' if sys.version_info >= (3, 11) else '')" 2>/dev/null),$(p))))
VENV := .venv
# Waiting threads sleep instead of spinning: far quicker on a machine that does something else besides.
export OMP_WAIT_POLICY ?= PASSIVE
BIN := $(VENV)/bin

.PHONY: demo test test-e2e wheel-test check bench docs pages clean help

help:  ## this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

demo: $(VENV)/.user  ## train a small ViT, make it lean, measure it, write the report (minutes)
	$(BIN)/leanvit demo $(ARGS)

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.dev  ## the tests that every change needs (ARGS="tests/data -k shards": a part)
	$(PYTEST) -m "not e2e" --seconds test $(ARGS)

test-e2e: $(VENV)/.e2e  ## whole chains, whole matrices and every extra: the other tests
	$(PYTEST) -m "e2e or extra" --seconds e2e $(ARGS)

wheel-test:  ## the wheel, installed into a fresh environment and used there
	.ci/wheel

check: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --no-cache --check .
	$(BIN)/mypy

bench: $(VENV)/.bench  ## every benchmark, into benchmarks/results/ (long)
	$(BIN)/python benchmarks/demo_digits.py
	$(BIN)/python benchmarks/tokens_deit_small.py
	$(BIN)/python benchmarks/outlets.py

docs: $(VENV)/.docs  ## the documentation, as a site in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

pages: $(VENV)/.e2e  ## the pages that are made: the README's table, docs/methods/, support, runtimes, references, performance
	PYTHONPATH=tools $(BIN)/python -m pages.make $(ARGS)

clean:  ## forget the environment
	rm -rf $(VENV)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "leanvit needs Python 3.11 or newer: none of python3, python3.13, python3.12, python3.11 is"; exit 1; }
	@# Debian ships Python without ensurepip: the pip outside then fills the environment.
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(BIN)/python install pip; } || { rm -rf $(VENV); exit 1; }

# A stamp for each set of extras: quick when nothing changed, made again when pyproject.toml did.
EXTRAS_user := data
EXTRAS_dev := data,dev
EXTRAS_e2e := data,heic,onnx,bench,gpu,log,loops,docs,dev
EXTRAS_bench := data,bench
EXTRAS_docs := docs
$(VENV)/.%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$(EXTRAS_$*)]"
	@touch $@
