# Everything runs in .venv, which `setup` makes and keeps complete; a second `setup` installs nothing.
PYTHON ?= python3
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup doctor bench gpu gpu-pack tables test test-all lint format clean distclean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## */\1\t/' | expand -t 12

setup:  ## make .venv with the torch build that fits this machine
	@$(PYTHON) tools/install.py

doctor: setup  ## what this machine is and what can run on it
	$(PY) -m bench.doctor

# A wrong row is no reason to leave the training step out: both are run, and the first bad exit code is the end's.
bench: setup  ## the main job: this machine, attention's variants, a GPT-2 124M training step; results under runs/
	$(PY) -m bench.doctor
	@bad=0; \
	for command in "bench.layer attention --all --no-simulate -a B=2 --seconds 8" "bench.e2e gpt2-124m --steps 4"; do \
		echo "$(PY) -m $$command"; \
		$(PY) -m $$command || { code=$$?; [ $$bad -ne 0 ] || bad=$$code; [ $$code -ne 130 ] || break; }; \
	done; \
	echo "results, newest first:"; ls -1dt runs/*/ | head -n 2; \
	exit $$bad

# Nothing is installed while a card waits: what is missing is said. Without .venv, the python that is there.
ON_GPU := $(if $(wildcard $(PY)),$(PY),$(PYTHON))
PREPARED := runs/prepared.tar.gz

gpu:  ## everything on this machine's NVIDIA GPU in nine minutes; results under runs/suite-<utc>
	@$(ON_GPU) -m bench.suite --device cuda --out runs/suite-$$(date -u +%Y%m%dT%H%M%SZ) $(if $(wildcard $(PREPARED)),--prepared $(PREPARED))

gpu-pack: setup  ## without a GPU: what a cold one would compile, in runs/prepared.tar.gz (docs/gpu.md)
	$(PY) -m bench.static --table
	$(PY) -m bench.suite --prepare $(PREPARED)

tables: setup  ## rewrite README.md's tables from results/
	$(PY) -m bench.readme_tables

# What measures this machine runs by itself, and first: what it measured is then known to all else, on all cores at once.
MEASURING := tests/bench/machine/test_ceilings.py tests/bench/machine/test_examine.py

# Tests share the cores: threads that wait for others sleep instead of spinning, which halves the time.
test test-all: export OMP_WAIT_POLICY := passive

test: setup  ## the tests, without the slow ones
	$(PY) -m pytest -q -m "not slow" --durations=5 $(MEASURING)
	$(PY) -m pytest -q -m "not slow" --durations=5 -n auto --dist worksteal $(MEASURING:%=--ignore=%)

test-all: setup  ## all tests
	$(PY) -m pytest -q --durations=10 $(MEASURING)
	$(PY) -m pytest -q --durations=10 -n auto --dist worksteal $(MEASURING:%=--ignore=%)

lint: setup  ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: setup  ## let ruff repair what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove what tools leave behind; .venv and runs/ stay
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## also remove .venv
	rm -rf .venv
