# `make run` and `make test` set up everything they need on a fresh machine: a virtual environment in .venv with
# the versions of constraints.txt. PYTHON chooses the interpreter (3.11 or 3.12).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-long chaos check audit format clean
.DELETE_ON_ERROR:

run: .venv/installed  ## the demo: teacher -> student -> twin -> evaluation
	$(BIN)/hgrnx distill demo $(ARGS)

test: check  ## every test that this machine can run, but those of several minutes each
	$(BIN)/pytest -n 2 --dist loadfile $(ARGS)

test-long: .venv/installed  ## those
	$(BIN)/pytest -n 2 --dist loadfile -m long $(ARGS)

chaos: .venv/installed  ## 54 faults at random moments on a cluster of several raylets; HGRNX_CHAOS_SEED for other moments
	$(BIN)/pytest -m chaos -s tests/chaos $(ARGS)

check: .venv/installed  ## lint, format, types; known vulnerabilities are only told
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/audit.py --warn

audit: .venv/installed  ## known vulnerabilities of the pinned versions; fails where there is one
	$(BIN)/python .ci/audit.py

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch comes first and pinned: an open range asked for by another package could bring another build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(f"hgrnx needs Python 3.11 or 3.12, this is {v[0]}.{v[1]}: make PYTHON=python3.11") if v not in ((3, 11), (3, 12)) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
