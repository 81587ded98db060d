# Two commands for a newcomer, `make demo` and `make test`; each makes its own
# environment in .venv from the project's files. PYTHON=python3.13 picks another.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow test-peers experiments lint types format clean

demo: $(VENV)/demo
	$(BIN)/prefchat demo

test: lint types
	$(BIN)/python -m pytest -n 2

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

test-peers: $(VENV)/dev $(VENV)/peers
	$(BIN)/python -m pytest -m "slow or not slow" tests/test_peers.py tests/test_traps.py tests/test_benchmarks.py

# Writes docs/results.md; DATA is a folder with intents/ and prefs/.
experiments: $(VENV)/dev
	$(BIN)/python -m experiments.results --data $(DATA)

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev
	$(BIN)/pyrefly check

format: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/demo $(VENV)/dev $(VENV)/peers: setup.cfg pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'prefchat-jax needs Python 3.11 or newer: make PYTHON=python3.12')"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): about a minute"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(@F)]'
	touch $@
