# demo: the README's first command; test: everything that CI proves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
THREADS ?= 1
WORKERS ?= 2
AUDIT := $(VENV)-audit

.NOTPARALLEL:
.PHONY: demo test bench lint format docs audit-dependencies model chromium gcc clean

demo: $(VENV)/installed
	$(BIN)/undertow demo

test: $(VENV)/installed-dev model chromium gcc
	OMP_NUM_THREADS=$(THREADS) TOKENIZERS_PARALLELISM=false \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(TESTS)

bench: $(VENV)/installed-dev model
	$(BIN)/python -m benchmarks

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed-docs
	$(BIN)/python docs/write_schema.py
	$(BIN)/python docs/write_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

model: $(VENV)/installed
	$(BIN)/undertow models pull smollm2-135m

# Known vulnerabilities of everything that is pinned; pip-audit has an environment of its own.
audit-dependencies: $(AUDIT)/installed
	$(AUDIT)/bin/python .ci/audit_dependencies.py $(AUDIT)/bin/pip-audit

# Debian's Chromium, for the tests that open a report; without it they are skipped.
chromium:
	@if command -v chromium >/dev/null || command -v google-chrome >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	else echo "no Chromium: the browser tests will be skipped"; fi

# Compiles the kernels; without it everything works, more slowly, and their tests are skipped.
gcc:
	@if command -v gcc >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev >/dev/null; \
	else echo "no gcc: the kernels' tests will be skipped"; fi

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt -e '.[dev,inspect,notebooks,ray,track,trl]'
	touch $(VENV)/installed $@

$(VENV)/installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	touch $(VENV)/installed $@

$(AUDIT)/installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip --disable-pip-version-check install -q pip-audit==2.10.1
	touch $@

clean:
	rm -rf $(VENV) $(AUDIT) build dist site .mypy_cache .pytest_cache .ruff_cache
