# Needs Python 3.10 to 3.14, make and, for `make bench` alone, a C++ compiler.
PYTHON ?= python3
PROMPT ?= Why is the sky blue?
MODEL  ?=
TESTS  ?= tests
PYTEST_ARGS ?=
BENCH_ARGS  ?=
# Test processes. A file's tests stay in one, which compiles the kernels that they share.
JOBS   ?= 2

DEMO := .venv
TEST := .venv-test
PIP  := -m pip --disable-pip-version-check --quiet
SOURCES := $(shell find edgellm -type f ! -name '*.pyc')

.PHONY: help demo test test-aarch64 lint format bench peers docs clean

help:
	@echo "make demo    install edgellm into $(DEMO), fetch a small model, answer PROMPT=\"...\""
	@echo "make test    run every test (PYTEST_ARGS=\"-m 'not slow'\" skips the slow ones)"
	@echo "make test-aarch64    run the native tests under emulated aarch64 CPUs (on Debian or Ubuntu)"
	@echo "make lint    ruff and mypy"
	@echo "make format  let ruff rewrite the sources"
	@echo "make docs    write the help texts into docs/cli.md"
	@echo "make peers   build llama.cpp's programs, to compare with"
	@echo "make bench   every figure beside its bar and its peers (BENCH_ARGS='--quick --check');"
	@echo "             with MODEL=file.gguf one model beside llama-bench"
	@echo "make clean   remove the virtual environments and caches of this folder"

demo: $(DEMO)/.installed
	$(DEMO)/bin/edgellm pull
	$(DEMO)/bin/edgellm run "$(PROMPT)" -n 128 --temp 0

test: $(TEST)/.installed
	$(TEST)/bin/python -m pytest --timeout 600 -n $(JOBS) --dist loadfile $(TESTS) $(PYTEST_ARGS)

test-aarch64: $(TEST)/.installed
	$(TEST)/bin/python -m tools.aarch64 $(PYTEST_ARGS)

lint: $(TEST)/.installed
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/mypy

format: $(TEST)/.installed
	$(TEST)/bin/ruff check --fix .
	$(TEST)/bin/ruff format .

docs: $(TEST)/.installed
	$(TEST)/bin/python -m tools.docs.cli_help

peers: $(TEST)/.installed
	$(TEST)/bin/python -m tools.peers build

bench: $(TEST)/.installed
ifeq ($(MODEL),)
	$(TEST)/bin/python -m tools.peers matrix --json build/bench.json --svg build/bench.svg $(BENCH_ARGS)
else
	$(TEST)/bin/python -m tools.peers bench $(MODEL) $(BENCH_ARGS)
endif

clean:
	rm -rf $(DEMO) $(TEST) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache

# The demo runs the package as a user would install it; the tests run these sources in place.
$(DEMO)/.installed: pyproject.toml README.md $(SOURCES)
	@$(call make-venv,$(DEMO))
	$(DEMO)/bin/python $(PIP) install --upgrade .
	@touch $@

$(TEST)/.installed: pyproject.toml
	@$(call make-venv,$(TEST))
	$(TEST)/bin/python $(PIP) install --upgrade --editable '.[dev]'
	@touch $@

define make-venv
$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 15))' || \
    { echo "edgellm needs Python 3.10 to 3.14: set PYTHON=, as in make demo PYTHON=python3.12" >&2; exit 2; }; \
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
endef
