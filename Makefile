.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# CONSTRAINTS=.ci/oldest.txt VENV=.venv-oldest: with the oldest versions that pyproject.toml allows
CONSTRAINTS ?=
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check \
  $(addprefix --constraint ,$(CONSTRAINTS))

.PHONY: help
help:  ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/installed  ## install, search the built-in shapes generator, export a balanced dataset
	rm -rf demo
	$(BIN)/qdgs sample configs/search/shapes.toml --out demo/run
	$(BIN)/qdgs export demo/run demo/dataset

.PHONY: assets
assets: $(VENV)/installed  ## fetch the generator of faces (the package gan-face-generate, without its dependencies)
	$(INSTALL) --no-deps --ignore-requires-python gan-face-generate==1.1.1

.PHONY: test
test: $(VENV)/installed-test  ## install, run all tests but the slow ones
	$(BIN)/python -m pytest -q -n auto --dist worksteal

.PHONY: slow
slow: $(VENV)/installed-slow  ## run the tests that take long
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m slow

.PHONY: check
check: $(VENV)/installed-test  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

LOCK := $(BIN)/uv pip compile --quiet --upgrade --extra test --extra tpu-compile --python-version 3.11 \
  --no-header --no-annotate --no-emit-index-url --no-emit-find-links pyproject.toml

.PHONY: lock
lock: | $(VENV)/bin/python  ## resolve anew: .ci/oldest.txt for CI, .ci/requirements.lock for development
	$(INSTALL) uv
	$(LOCK) --resolution lowest-direct --output-file .ci/oldest.txt
	$(LOCK) --universal --output-file .ci/requirements.lock

.PHONY: clean
clean:  ## delete the virtual environment and the demo's results
	rm -rf $(VENV) demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) --editable '.[test]'
	touch $@ $(VENV)/installed

$(VENV)/installed-slow: $(VENV)/installed-test
	$(INSTALL) --editable '.[test,tpu-compile]'
	touch $@
