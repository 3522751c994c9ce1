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

FASHION := $(VENV)/share/qdgs_jax/fashion-mnist
FASHION_FILES := $(foreach part,train t10k,$(part)-images-idx3-ubyte.gz $(part)-labels-idx1-ubyte.gz)
FASHION_DEB := dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb
FASHION_SHA256 := 39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0

.PHONY: assets
assets: $(VENV)/installed $(FACES)/emotion.json $(FASHION)/t10k-labels-idx1-ubyte.gz  ## fetch a generator of faces (by pip), networks that read them (by npm) and Fashion-MNIST (by apt)
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

# Likewise without apt or its registry. Nothing is installed, so that root is not needed.
$(FASHION)/t10k-labels-idx1-ubyte.gz:
	@rm -rf .deb && mkdir -p .deb $(@D)
	@if (cd .deb && apt-get download -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=30 \
	  $(subst _,=,$(FASHION_DEB:_all.deb=)) 2>/dev/null); then \
	  cd .deb && echo "$(FASHION_SHA256)  $(FASHION_DEB)" | sha256sum --check --quiet - && \
	  dpkg-deb -x $(FASHION_DEB) . && \
	  mv $(addprefix usr/share/datasets/fashion-mnist/,$(FASHION_FILES)) $(abspath $(@D)); \
	else \
	  echo "Fashion-MNIST could not be fetched: on Debian run 'apt-get update', then 'make assets' again."; \
	fi
	@rm -rf .deb

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
