# The words a newcomer types. PYTHON chooses the interpreter: 3.11 or 3.12.
PYTHON ?= python3
PROMPT ?= a red square on a black background
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PROMPT # by the environment, so that quotes in it are safe

.PHONY: run serve test lint bench pictures recipe clean

run: $(READY)
	@$(BIN)/filmlet generate "$$PROMPT"

serve: $(READY)
	@$(BIN)/filmlet serve

test: $(READY)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(READY)
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m mypy

bench: $(READY)
	@$(BIN)/python -m bench
	@$(BIN)/python -m bench.growth

pictures: $(READY)
	@$(BIN)/python -m tests.pictures build/pictures

recipe: $(READY)
	@$(BIN)/python -m recipe

clean:
	rm -rf $(VENV) clips build

# torch first and alone: its pinned build is the CPU one where the index offers it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 13) else "filmlet needs Python 3.11 or 3.12, this is %d.%d" % v)'
	@$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned set into $(VENV); this takes a minute or two"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(READY)
