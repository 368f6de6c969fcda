# Every target makes its own set-up (tools/setup.sh): a virtual environment in .venv, nothing outside it.
#   make test PYTEST_ARGS="-k gpt2 -x"     hands more to pytest
#   make test JOBS=8                       more processes (each of them runs torch on one thread)
#   make demo ARGS=...   make bench ARGS=...
#   make setup PYTHON=/path/to/python3.11  chooses the interpreter that .venv is made with

.DEFAULT_GOAL := help

JOBS ?= 2
PYTEST_ARGS ?=
ARGS ?=
export PYTHON
# Empty: what is imported leaves its bytecode in .venv. Where a machine forbids that, each of the tests' processes compiles
# torch and transformers anew, three seconds long.
export PYTHONDONTWRITEBYTECODE :=

PY := .venv/bin/python
# A process that dies ends the run, with the name of its test: xdist would hand its work on and then wait for ever.
PYTEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(PY) -m pytest -n $(JOBS) --dist loadgroup --max-worker-restart=0

.PHONY: help setup demo test test-fast lint format bench peers clean distclean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | awk -F ':.*## ' '{ printf "  make %-10s %s\n", $$1, $$2 }'

setup: ## make or refresh .venv (all the others do this first)
	@bash tools/setup.sh

demo: setup ## run the demonstration
	$(PY) examples/demo.py $(ARGS)

test: setup ## run all tests
	$(PYTEST) $(PYTEST_ARGS)

test-fast: setup ## run the tests that are neither slow nor in need of real clients
	$(PYTEST) -m "not slow and not clients" $(PYTEST_ARGS)

lint: setup ## ruff (rules and format) and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy src

format: setup ## let ruff fix and format what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: setup ## run the benchmarks
	$(PY) -m benchmarks $(ARGS)

peers: setup ## make the environments of the peers that run apart (.peers), for the benchmarks
	@bash tools/peers.sh

clean: ## remove caches, build products and out/
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info src/*.egg-info
	find . -name .venv -prune -o -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean ## clean, and remove .venv, .peers and .cache too
	rm -rf .venv .peers .venv.old .cache
