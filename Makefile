# Two commands matter: `make up` and `make test`. Each makes what it needs, from nothing but Python 3.11+ and pip.
PYTHON ?= python3
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

up: install
	@$(BIN)/strandline up

# Two at a time: end to end is mostly waiting for processes. What it said comes last.
test: install
	@$(BIN)/pytest tests/e2e > .e2e.log 2>&1 & e2e=$$!; \
	$(BIN)/pytest tests/unit tests/integration; code=$$?; \
	wait $$e2e || code=1; cat .e2e.log; exit $$code

# In a headless Chromium, if there is one on the path.
test-browser: install
	$(BIN)/pytest tests/browser

# The oracle of tests/e2e with new seeds, for an hour unless STRANDLINE_SOAK_SECONDS says otherwise.
soak: install
	STRANDLINE_SOAK_SECONDS=$${STRANDLINE_SOAK_SECONDS:-3600} $(BIN)/pytest tests/e2e/test_feed_oracle.py -s

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf format --diff --exit-code protos
	$(BIN)/buf lint $(DESCRIPTORS) --config buf.yaml --path strandline
	$(BIN)/buf breaking $(DESCRIPTORS) --against protos/baseline.json --config buf.yaml --path strandline

bench: install
	$(BIN)/python -m benchmarks

bench-peers: install
	$(BIN)/python -m benchmarks.peers

# The dependencies, when the lock is newer than the environment; then the project and its stubs, when a proto is.
install: .venv/installed .venv/stubs

.venv/installed: requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing dependencies (once)"
	@$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	@touch $@

.venv/stubs: pyproject.toml protos/build_stubs.py $(shell find protos -name '*.proto') .venv/installed
	@echo "Building stubs"
	@$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The same after editing a .proto by hand.
stubs: .venv/stubs

lock:
	uv pip compile pyproject.toml --all-extras --group dev --generate-hashes --universal --python-version 3.11 \
	  --no-emit-index-url --no-header --no-annotate --quiet --output-file requirements.lock

baseline: install
	$(BIN)/buf build $(DESCRIPTORS) --path strandline --exclude-source-info --output protos/baseline.json

.PHONY: up test test-browser soak lint bench bench-peers install stubs lock baseline
DESCRIPTORS = $(shell $(BIN)/python -c 'from pathlib import Path; import strandline.rpc; print(Path(list(strandline.rpc.__path__)[0]).parent / "descriptors.binpb")')
