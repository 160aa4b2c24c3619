# make reproduce   set up, then run the study of params.yaml and name its report
# make test        set up, then run all tests
# make oracle      compare with the `adapters` library itself, both ways (builds its environment once)
# make bench       speed and memory beside the adapters library (QUICK=1: under five minutes)
# make lint        formatting and lint, notebooks too
# make profile NAME=minilm    put a profile in place as params.yaml
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_DISABLE_TELEMETRY := 1
export DVC_NO_ANALYTICS := 1

.DEFAULT_GOAL := help
.PHONY: help reproduce test lint clean-notebooks profile oracle bench

help:
	@sed -n 's/^# make/make/p' Makefile

# The stamp is newer than the lock as long as the environment matches it; a second call starts at once.
$(BIN)/.ready: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

reproduce: $(BIN)/.ready
	@python -m adapterfusion.forecast
	@started=$$(date +%s); dvc repro && python -m adapterfusion.report --print --since $$started

test: $(BIN)/.ready
	python -m pytest -n auto --dist loadfile

lint: $(BIN)/.ready
	ruff format --check .
	ruff check .

oracle: $(BIN)/.ready
	python tests/golden/compare_live.py

bench: $(BIN)/.ready
	python benchmarks/bench.py $(if $(QUICK),--quick)

profile:
	@test -f profiles/$(NAME).yaml || { echo "profiles/ has: $$(ls profiles | sed 's/.yaml//' | tr '\n' ' ')"; exit 1; }
	cp profiles/$(NAME).yaml params.yaml

clean-notebooks: $(BIN)/.ready
	python -m adapterfusion.notebook strip
