# Two commands: `make serve` runs the server on a fresh machine, `make test` runs the whole suite.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
JOBS ?= 6

# Images for containers often set it. Every process of the tests, and there are hundreds, would compile all over again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install serve test check bench lock clean

install: $(VENV)/.installed

# The stamp names the interpreter, so that `make test PYTHON=python3.13` makes the environment anew.
PYTHON_VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
STAMP := $(VENV)/.python-$(PYTHON_VERSION)

$(STAMP):
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.installed: $(STAMP) requirements.lock requirements-dev.lock pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

serve: install
	$(BIN)/moorage serve $(ARGS)

# pytest rewrites every assertion and keeps the result: the first time in one process, and not in all of them at once.
$(VENV)/.rewritten: $(VENV)/.installed
	-$(BIN)/python -m pytest --collect-only --quiet --quiet > /dev/null
	touch $@

test: install $(VENV)/.rewritten
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/moorage bench idle
	$(BIN)/moorage bench connect
	$(BIN)/moorage bench fanout
	$(BIN)/moorage bench direct
	$(BIN)/moorage bench admission
	$(BIN)/moorage bench rooms
	$(BIN)/moorage bench publish
	$(BIN)/moorage bench storm

# Pins every dependency with its hashes, for all Python versions and platforms at once.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.lock
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml --group dev -o requirements-dev.lock

clean:
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
