# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test check unit fuzz soak history story bench bench-quick peers clean

setup: $(STAMP)

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "unjam needs Python 3.11 or newer; this is " + sys.version)'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || scripts/system_packages.sh no-venv-module=python3-venv
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## real agents, the same traffic under round robin and least_loaded, then yours to try
	$(BIN)/unjam demo

test: check unit  ## everything CI runs

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

unit: setup
	@scripts/system_packages.sh curl haproxy redis-server chromium
	$(BIN)/pytest

fuzz: setup  ## a million inputs through the parsers
	$(BIN)/python -m benchmarks.fuzz_wire

soak: setup  ## a million requests through a gateway: no lease left, memory flat
	$(BIN)/python -m benchmarks.soak

history: setup  ## 1,000 kills on each store: is a promise of durable runs broken?
	@scripts/system_packages.sh redis-server
	$(BIN)/python -m benchmarks.history --store redis --kills 1000
	$(BIN)/python -m benchmarks.history --store sqlite --kills 1000

story: setup  ## an audit of ten minutes on each store: cut, killed, restarted, and nobody misses anything
	@scripts/system_packages.sh curl redis-server chromium
	$(BIN)/python -m benchmarks.audit_story --store redis
	$(BIN)/python -m benchmarks.audit_story --store sqlite

peers:  ## HAProxy, nginx, Envoy, sglang-router, LiteLLM, arq, taskiq, each in its own place
	benchmarks/install_peers.sh

bench: setup peers
	@scripts/system_packages.sh redis-server
	$(BIN)/python -m benchmarks.decision_cost
	$(BIN)/python -m benchmarks.breaker
	$(BIN)/python -m benchmarks.versions
	$(BIN)/python -m benchmarks.proxy_cost
	$(BIN)/python -m benchmarks.heavy_tail
	$(BIN)/python -m benchmarks.held_streams
	$(BIN)/python -m benchmarks.report_cost
	$(BIN)/python -m benchmarks.memory_limit
	$(BIN)/python -m benchmarks.noisy_neighbour
	$(BIN)/python -m benchmarks.bad_reports
	$(BIN)/python -m benchmarks.runs

bench-quick: setup peers
	@scripts/system_packages.sh redis-server
	$(BIN)/python -m benchmarks.decision_cost --quick
	$(BIN)/python -m benchmarks.breaker --quick
	$(BIN)/python -m benchmarks.versions --quick
	$(BIN)/python -m benchmarks.proxy_cost --quick
	$(BIN)/python -m benchmarks.heavy_tail --quick
	$(BIN)/python -m benchmarks.held_streams --quick
	$(BIN)/python -m benchmarks.report_cost --quick
	$(BIN)/python -m benchmarks.memory_limit --quick
	$(BIN)/python -m benchmarks.noisy_neighbour --quick
	$(BIN)/python -m benchmarks.bad_reports --quick
	$(BIN)/python -m benchmarks.runs --quick

clean:
	rm -rf $(VENV) .demo build dist src/*.egg-info
