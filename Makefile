# Needs Python 3.11 or 3.12 (tested with 3.11), make and a package index; everything else goes into .venv.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3 || echo python3)
BIN := .venv/bin

# What is installed is known by its contents, not by file times, which a fresh clone or a checkout changes.
# The path counts, too: an environment does not survive being moved.
FINGERPRINT := $(shell { pwd; cat pyproject.toml constraints.txt; } | sha256sum | cut -c1-16)
INSTALLED := .venv/.installed-$(FINGERPRINT)

SOURCES := pyproject.toml $(shell find vision3d pipelines evaluation viewer weights -name '*.py' -o -name py.typed)

.PHONY: help setup demo test lint types clean distclean

help:
	@echo 'make demo    depth of examples/desk.png with the embedded weights, in out/demo'
	@echo 'make test    style, types and tests'
	@echo 'make lint    style and types'
	@echo 'make setup   only install into .venv'
	@echo 'make clean   remove what was built; make distclean removes .venv, too'

setup: $(INSTALLED)

demo: $(INSTALLED)
	@start=$$(date +%s); \
	$(BIN)/vision3d depth examples/desk.png --out out/demo; \
	du -h out/demo/desk/*; \
	echo "The depth of examples/desk.png is in $$PWD/out/demo/desk (took $$(($$(date +%s) - start)) s)"

test: lint
	@$(BIN)/python -m pytest

lint: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory types

types: build/typed

# Type checkers do not follow the mapping of folders to packages, so they see what users see: the wheel.
build/typed: $(SOURCES) | $(INSTALLED)
	@rm -rf build/lib build/bdist.* build/site build/wheel
	@$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	@$(BIN)/python -m pip install --quiet --no-deps --target build/site build/wheel/vision3d-*.whl
	@cd build/site && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p vision3d
	@touch $@

$(INSTALLED): | $(BIN)/python
	@echo 'Installing into .venv (minutes the first time) ...'
	@$(BIN)/python -m pip install --quiet 'pip>=23.1' 'setuptools>=77'
	@$(BIN)/python -m pip install --quiet --editable '.[all,dev]' --constraint constraints.txt
	@rm -f .venv/.installed-*
	@touch $@

# Debian splits the venv module off; where it is missing, apt brings it.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
		|| { echo 'the pinned versions need Python 3.11 or 3.12; set PYTHON=...' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv > /dev/null 2>&1 \
		|| { root=; [ "$$(id -u)" = 0 ] || root=sudo; \
		     $$root apt-get update -qq && $$root apt-get install -y -qq "$$(basename $$(readlink -f "$$(command -v $(PYTHON))"))-venv"; \
		     $(PYTHON) -m venv --clear .venv; }

clean:
	rm -rf build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv
