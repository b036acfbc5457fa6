# make demo    distil a student in minutes and look at what came out (see demo/)
# make test    the whole suite, a real ComfyUI server and a real browser included
# make lint    ruff and mypy
# Each makes its environment in .venv first; a second call reuses it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SHARED := --numprocesses 2 --dist loadfile
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-all lint format browser clean

demo: $(VENV)/train
	$(BIN)/spectral-diffusion demo --out demo

test: $(VENV)/dev browser
	$(BIN)/python -m pytest $(SHARED) -m "not long"

test-all: $(VENV)/dev browser
	$(BIN)/python -m pytest $(SHARED)

lint: $(VENV)/dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/dev
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

# A browser is no Python package: Debian's is installed where that is allowed; elsewhere the test says what it needs.
browser:
	@command -v chromium chromium-browser google-chrome >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium >/dev/null; } || true

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/train: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[train]"
	@touch $@

$(VENV)/dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable ".[dev]"
	@touch $@ $(VENV)/train

clean:
	rm -rf $(VENV) .cache demo
