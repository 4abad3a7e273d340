# make demo   sets everything up and runs the main job; ends with the path of its report
# make test   sets everything up and passes the tests
# make setup  only sets up; PYTHON=python3.12 picks another interpreter
PYTHON ?= python3
JOBS ?= 2
# The demo starts from the shipped model as it was 1,500 updates before its end, and goes on for about ten minutes;
# `gamut run step_audio_2` learns everything from nothing, in more than ten times that.
DEMO := --init weights/step_audio_2_base --hear-steps 0 --align-steps 0 --main-steps 0 --sft-steps 900 --lr 0.0006 --each 16
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

ifneq ($(wildcard ../shared/data),)
export GAMUT_DATA ?= $(abspath ../shared/data)
endif
ifneq ($(wildcard ../shared/parity),)
export GAMUT_PARITY ?= $(abspath ../shared/parity)
endif

.PHONY: demo test setup lint readme claims
.DELETE_ON_ERROR:

demo: .venv/.demo
	@$(BIN)/gamut run step_audio_2 $(DEMO) $(ARGS)

# One thread a worker: OpenMP threads of two workers on two cores wait for one another.
test: .venv/.test
	@$(BIN)/ruff check .
	@$(BIN)/codespell
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 10 $(ARGS)

setup: .venv/.demo

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/pyright

# Fills the generated blocks of README.md; a test says when that is due.
readme: .venv/.test
	$(BIN)/python -m dev.readme

# Runs every built recipe at tiny size (hours) and records minutes and claims for gamut list and the README.
claims: .venv/.test
	$(BIN)/python -m dev.claims $(ARGS)

.venv/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gamut needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1); try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing torch, the largest part"
	@$(PIP) torch numpy
	@touch $@

.venv/.demo .venv/.test: .venv/.%: .venv/.torch pyproject.toml
	@echo "installing gamut[$*]"
	@$(PIP) --editable '.[$*]'
	@touch $@
