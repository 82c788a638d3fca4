# The one entry point. `make run` and `make test` need Python 3.11 or newer with pip, and nothing else.
#
#   make run          serve the echo example on 8 shards, with /metrics on 127.0.0.1:9464
#   make test         all checks, and all tests but those below (minutes), on the compiled engine where there is a
#                     compiler; ENGINE=python runs them, and all that follows, on the interpreted one
#   make lint         the checks alone: ruff, mypy
#   make test-slow    the watcher at full size, CPython's own tests of asyncio, every fault under load (minutes; CI
#                     runs it)
#   make test-load    the full-size load tests (longer)
#   make coverage     every line and branch of the watcher, run by its tests (minutes)
#   make engine       compile the engine in place, what has changed of it: docs/building.md
#   make memcheck     the engine's tests with AddressSanitizer in it (minutes)
#   make bench        shardnet beside bare C, uvloop and asyncio, in .tools/bench/results (ten minutes, BENCH_ARGS)
#   make chaos        shardnet hurt in every way under load, for two minutes (CHAOS_ARGS): docs/reliability.md
#   make reliability  the same done to other servers (five minutes, RELIABILITY_ARGS)
#   make bench-micro  parts of the engine alone
#   make callgrind    instructions per message, compared with what is recorded (minutes; CI runs it)
#   make dashboards   grafana/dashboards/*.json, from grafana/content
#   make validate-dashboards  hold them against Grafana's types; needs npm
#   make pictures     docs/img: the dashboards of a real server, drawn by Grafana's components; needs npm (minutes)
#   make dist         an sdist and a wheel, in dist/
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
BENCH_ARGS ?=
CHAOS_ARGS ?= --faults full
RELIABILITY_ARGS ?=
ENGINE ?= $(SHARDNET_ENGINE)

BIN := $(VENV)/bin
# Silent about what build backends warn of: none of it is for whoever types `make run`.
PIP := PYTHONWARNINGS=ignore $(BIN)/python -m pip

export SHARDNET_ENGINE := $(ENGINE)

.PHONY: run dashboards validate-dashboards pictures engine test lint test-slow test-load coverage memcheck bench bench-micro callgrind chaos reliability dist stress clean

run: $(VENV)/.installed
	@$(BIN)/shardnet run examples.echo:handler --workers $(WORKERS) --bind $(BIND)

dashboards: $(VENV)/.installed-dev
	$(BIN)/python -m grafana

# Needs npm, and its registry.
validate-dashboards:
	cd grafana/validate && npm ci --no-audit --no-fund && npm run --silent validate

# Needs npm with its registry, Chromium, and 700 MB.
pictures: $(VENV)/.installed-dev
	tools/fetch-prometheus.sh
	tools/fetch-chromium.sh
	$(BIN)/python -m grafana.pictures

engine: $(VENV)/.installed-dev
ifneq ($(ENGINE),python)
	$(BIN)/python -m _build
endif

test: lint engine
	tools/fetch-prometheus.sh
	tools/fetch-strace.sh
	tools/fetch-tmux.sh
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-slow: engine
	tools/fetch-strace.sh
	tools/fetch-tmux.sh
	tools/fetch-python-tests.sh $(BIN)/python
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS)

test-load: engine
	$(BIN)/python -m pytest -m load --timeout 1200 $(PYTEST_ARGS)

# Interpreted: no tracer looks into compiled code.
coverage: export SHARDNET_ENGINE := python
coverage: $(VENV)/.installed-dev
	$(BIN)/python -m coverage erase
	$(BIN)/python -m coverage run -m pytest tests/engine tests/watcher $(PYTEST_ARGS)
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report

memcheck: $(VENV)/.installed-dev
	tools/memcheck.sh $(BIN)/python $(PYTEST_ARGS)

bench: engine $(VENV)/.installed-bench
	$(BIN)/python -m bench $(BENCH_ARGS)

bench-micro: engine $(VENV)/.installed-bench
	$(BIN)/python -m pytest bench/micro $(PYTEST_ARGS)

chaos: engine
	$(BIN)/shardnet chaos examples.echo:handler $(CHAOS_ARGS)

reliability: engine $(VENV)/.installed-reliability
	$(BIN)/python -m bench.reliability $(RELIABILITY_ARGS)

callgrind: engine
	tools/fetch-valgrind.sh
	$(BIN)/python -m bench.callgrind

dist: $(VENV)/.installed-dev
	$(BIN)/python -m build --outdir dist .

stress: $(VENV)/.installed
	$(BIN)/python -m tests.watcher.stress --seconds $(SECONDS) --connections $(CONNECTIONS) --poller $(POLLER)

$(VENV)/.created:
	@echo "Making $(VENV)"
	@PYTHON="$(PYTHON)" tools/make-venv.sh $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml
	@echo "Installing shardnet into $(VENV): a minute, where there is a compiler for its engine"
	@$(PIP) install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed pyproject.toml
	@echo "Installing the tools for development into $(VENV)"
	@$(PIP) install --quiet --group dev
	@touch $@

$(VENV)/.installed-reliability: $(VENV)/.installed-dev
	@echo "Installing the servers to compare with into $(VENV)"
	@$(PIP) install --quiet --group reliability
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	@echo "Installing what the benchmarks compare with into $(VENV)"
	@$(PIP) install --quiet --group bench
	@touch $@

clean:
	rm -rf $(VENV) .tools build dist *.egg-info shardnet/_compiled.*.txt .mypy_cache .ruff_cache .pytest_cache .coverage
	find shardnet -name '*.so' -delete
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
