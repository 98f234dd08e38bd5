# agentq: everything from a bare checkout. Needs make and Python 3.11 to 3.14; `make help` lists the rest.

# An interpreter of your choice: make test PYTHON=/opt/python3.12/bin/python3
PYTHON ?=
# More arguments for the program a target runs: make test ARGS="-k stack -x"
ARGS ?=

PY := .venv/bin/python

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo up test check pytest bench chaos lock venv clean

help: ## this list
	@echo 'make demo       a support desk of agents on a real fleet, with a worker killed in the middle'
	@echo 'make up         the fleet in the foreground until Ctrl-C: PostgreSQL, Valkey, workers, Flower'
	@echo 'make test       make check, then every test on real servers, with coverage'
	@echo 'make check      ruff, mypy and import-linter'
	@echo 'make bench      steps per second and latency beside bare Celery and raw Postgres'
	@echo 'make chaos      a fleet broken by a seeded schedule and judged by an outside record; ARGS="--seed 7"'
	@echo 'make venv       .venv with agentq in it; the other targets do this by themselves'
	@echo 'make lock       requirements.lock anew from pyproject.toml'
	@echo 'make clean      remove .venv, caches and reports; data in .agentq stay'
	@echo
	@echo 'PYTHON=... chooses the interpreter, ARGS="..." is passed on.'

demo: venv
	@$(PY) -m agentq demo $(ARGS)

up: venv
	@$(PY) -m agentq up $(ARGS)

test: check pytest

check: venv
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -c 'from importlinter.cli import lint_imports_command; lint_imports_command()'

pytest: venv
	$(PY) -m pytest --cov --cov-report=term $(ARGS)

bench: venv
	@$(PY) -m benchmarks $(ARGS)

chaos: venv
	@$(PY) -m agentq chaos $(ARGS)

lock: venv
	$(PY) scripts/lock.py

# Each candidate is run, not only looked for: some tools put names on the PATH that start nothing.
venv:
	@if [ -n '$(PYTHON)' ]; then set -- '$(PYTHON)'; this=--this; else \
	    set -- $(PY) python3.14 python3.13 python3.12 python3.11 python3 python; this=; fi; \
	for python in "$$@"; do \
	    if "$$python" scripts/bootstrap.py --suits >/dev/null 2>&1; then \
	        exec "$$python" scripts/bootstrap.py $$this; fi; \
	done; \
	echo "agentq needs Python 3.11 to 3.14 with venv and pip; none was found among: $$*" >&2; \
	echo 'Install one (Debian and Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python3' >&2; \
	exit 1

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .coverage .coverage.* htmlcov build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo 'Data of the embedded servers are left in .agentq'
