.DEFAULT_GOAL := help
SHELL := /bin/bash
PY := .venv/bin/python
# the tests start hundreds of Python processes, each of which would compile all of Osiris
unexport PYTHONDONTWRITEBYTECODE

help:  ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup:  ## install what is missing to run Osiris and to work on it
	@scripts/setup.sh dev

run-setup:
	@scripts/setup.sh run

demo: run-setup  ## the whole loop on this machine, with nothing configured
	@$(PY) -m osiris demo

test: setup  ## the tests of every change; the core with full branch coverage
	@$(PY) -m coverage run --data-file=.coverage.core --source=osiris.core -m pytest tests/core
	@$(PY) -m coverage report --data-file=.coverage.core --omit='osiris/core/ports/*' --fail-under=100
	@$(PY) -m pytest tests --part=short --ignore=tests/core --numprocesses=4 --dist=worksteal

test-long: setup  ## what `make test` leaves out: everything on both databases, as both users, and the long forms
	@$(PY) -m pytest tests --part=long --numprocesses=3 --dist=worksteal

test-all: test test-long  ## both

check: setup  ## format, lint, types, locks
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PY) scripts/lock.py --check

attack: setup  ## every attack on the sandbox, with its verdict and with the control in which it succeeds
	@$(PY) -m pytest tests/attacks --verdicts

VENDOR := scripted
real: setup  ## a real bug in a real project (tenacity), from issue to merge; VENDOR=anthropic|openai|google|openai-compatible
	@$(PY) -m realbug $(VENDOR)

bench-setup:
	@scripts/setup.sh bench

bench: bench-setup  ## measure, each figure beside another side in the same run; ARGS="--quick --only NAME --strict"
	@$(PY) -m bench $(ARGS)

torture: setup  ## kill, freeze and mislead Osiris for hours, and count what is lost or doubled; ARGS="--quick"
	@$(PY) -m chaos $(ARGS)
	@$(PY) scripts/torture.py

fidelity-setup:
	@scripts/setup.sh fidelity

fidelity: fidelity-setup  ## how GitHub-shaped devhub is, and whether Osiris asks GitHub for what GitHub knows
	@$(PY) -m fidelity

lock: setup  ## write requirements/*.txt anew from pyproject.toml
	@PATH=$$PWD/.venv/bin:$$PATH $(PY) scripts/lock.py

docs: setup  ## write what documents take from the code: the state table, and the figures of the architecture
	@$(PY) scripts/states.py
	@$(PY) scripts/figures.py

.PHONY: help setup run-setup demo test test-long test-all check attack real bench-setup bench torture fidelity-setup fidelity lock docs
