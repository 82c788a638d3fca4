# The one entry point. `make run` and `make test` need Python 3.11 or newer with pip, and nothing else.
#
#   make run          serve the echo example on 8 shards, with /metrics on 127.0.0.1:9464
#   make test         all checks, and all tests but those below (minutes)
#   make lint         the checks alone: ruff, mypy
#   make test-slow    the watcher at full size: 12,000 connections, 100 MB, random scripts (minutes; CI runs it)
#   make test-load    the full-size load tests (longer)
#   make coverage     every line and branch of the watcher, run by its tests (minutes)
#   make stress       the watcher under random operations on 8000 connections, for SECONDS (600)
#   make clean        remove everything that these made
#
# Another interpreter:  make test PYTHON=python3.13 VENV=.venv-3.13

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 8
SECONDS ?= 600
CONNECTIONS ?= 8000
POLLER ?= epoll
BIND ?= 127.0.0.1:9000
PYTEST_ARGS ?=

BIN := $(VENV)/bin
# Silent about what build backends warn of: none of it is for whoever types `make run`.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip

.PHONY: run test lint test-slow test-load coverage stress clean

run: $(VENV)/.installed
	@$(BIN)/shardnet run examples.echo:handler --workers $(WORKERS) --bind $(BIND)

test: lint
	tools/fetch-prometheus.sh
	tools/fetch-strace.sh
	tools/fetch-python-tests.sh $(BIN)/python
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-load: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m load --timeout 1200 $(PYTEST_ARGS)

coverage: $(VENV)/.installed-dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest tests/engine tests/watcher $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

stress: $(VENV)/.installed
	$(BIN)/python -m tests.watcher.stress --seconds $(SECONDS) --connections $(CONNECTIONS) --poller $(POLLER)

$(VENV)/.created:
	@echo "Making $(VENV)"
	@PYTHON="$(PYTHON)" tools/make-venv.sh $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	@echo "Installing shardnet into $(VENV)"
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	@echo "Installing the tools for development into $(VENV)"
	@$(PIP) install --quiet --group dev
	@touch $@

clean:
	rm -rf $(VENV) .tools build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
