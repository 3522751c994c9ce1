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

# DEMO="--search.generations 20": with other values of its config
DEMO ?=
.PHONY: demo
demo: $(VENV)/installed  ## install, search the built-in shapes generator, export a balanced dataset
	rm -rf demo
	$(BIN)/qdgs sample configs/search/shapes.toml --out demo/run $(DEMO)
	$(BIN)/qdgs export demo/run demo/dataset

FACES := $(VENV)/share/qdgs_jax/faceres
NETWORKS := $(foreach name,faceres blazeface emotion,$(name).bin $(name).json)
HUMAN_SHA256 := 425e9c51dbbca0c8934362b170cb0d54c2529c11c654b3c03092b16e9d6ad3f7

.PHONY: assets
assets: $(VENV)/installed $(FACES)/emotion.json  ## fetch a generator of faces (by pip) and networks that read them (by npm)
	$(INSTALL) --no-deps --ignore-requires-python gan-face-generate==1.1.1

# Without npm or its registry this says so and succeeds; a file with another checksum is an error.
$(FACES)/emotion.json:
	@rm -rf .npm && mkdir -p .npm $(@D)
	@if (cd .npm && npm pack --silent --fetch-retries=1 --fetch-timeout=30000 @vladmandic/human@3.3.6 >/dev/null); then \
	  cd .npm && echo "$(HUMAN_SHA256)  vladmandic-human-3.3.6.tgz" | sha256sum --check --quiet - && \
	  tar -xzf vladmandic-human-3.3.6.tgz $(addprefix package/models/,$(NETWORKS)) && \
	  mv $(addprefix package/models/,$(NETWORKS)) $(abspath $(@D)); \
	else \
	  echo "Networks that read faces could not be fetched: install npm, then 'make assets' again."; \
	fi
	@rm -rf .npm

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
