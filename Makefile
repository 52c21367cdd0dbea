# make run    both ends on this machine, on loopback: a proxy to point curl or a browser at
# make test   all tests, with branch coverage
# make lint   style and types
# make fuzz   every grammar that a stranger reaches, each for FUZZ_SECONDS
# make soak   exits die and return while 200 clients go on, for SOAK_SECONDS
# make bench        gsocks beside other proxies, about 35 minutes, into docs/benchmarks.md
# make bench-quick  the same in small, under 2 minutes: shows that it works, not how fast

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# tests wait more than they work, so that a few processes are quicker than one even on one core
TESTERS ?= 4
SOAK_SECONDS ?= 300

.PHONY: run test lint fuzz soak bench bench-quick clean

run: $(VENV)/installed
	@exec $(BIN)/gsocks -c config.example.yaml

test: $(VENV)/installed-dev tests/node/node_modules
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n $(TESTERS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fuzz: $(VENV)/installed-fuzz
	$(BIN)/python -m fuzz

soak: $(VENV)/installed-dev
	PYTHONPATH=. $(BIN)/python tests/soak.py --seconds $(SOAK_SECONDS)

bench: $(VENV)/installed-bench
	$(BIN)/python -m bench
	$(BIN)/python -m bench.document bench/results/full.json

bench-quick: $(VENV)/installed-bench
	$(BIN)/python -m bench --quick

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "gsocks needs Python 3.10 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	@touch $@

$(VENV)/installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev,clients,scraping]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-fuzz: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-bench: $(BIN)/python pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@ $(VENV)/installed

# Node's clients; where there is no npm, their tests are skipped and say so
tests/node/node_modules: tests/node/package-lock.json
	@if command -v npm >/dev/null; then npm ci --silent --prefix tests/node && touch $@; fi

clean:
	rm -rf $(VENV) tests/node/node_modules .coverage* .mypy_cache .pytest_cache .ruff_cache .hypothesis
