# The words a newcomer types. PYTHON chooses the interpreter: 3.11, 3.12 or 3.13.
PYTHON ?= python3
PROMPT ?= a red square on a black background
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SERVER := $(VENV)/.server
ALL := $(VENV)/.all
DOCS := $(VENV)/.docs
# Marks of pyproject.toml that a test of `make check` has none of.
HEAVY := server or browser or compile or training or slow or gpu or hub
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export PROMPT # by the environment, so that quotes in it are safe

.PHONY: run serve check test lint docs bench bench-gpu pictures recipe sheets gallery clean

run: $(READY)
	@$(BIN)/filmlet generate "$$PROMPT"

serve: $(SERVER)
	@$(BIN)/filmlet serve

check: $(ALL)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m pytest -n 2 --dist worksteal -p no:schemathesis -p no:hypothesispytest -m 'not ($(HEAVY))'

test: $(ALL)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(ALL)
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m mypy

docs: $(DOCS)
	@$(BIN)/python -m tools.generate_docs
	@$(BIN)/zensical build --strict --clean

bench: $(ALL)
	@$(BIN)/python -m bench
	@$(BIN)/python -m bench.scaling

bench-gpu: $(ALL)
	@$(BIN)/python -m bench.gpu

pictures: $(ALL)
	@$(BIN)/python -m tests.helpers.screenshots build/pictures

recipe: $(ALL)
	@$(BIN)/python -m recipe

sheets: $(ALL)
	@$(BIN)/python -m recipe.contact_sheets

gallery: $(ALL)
	@$(BIN)/python -m recipe.contact_sheets --gallery docs/pocket.webp

clean:
	rm -rf $(VENV) clips build

# What it takes to make clips with pocket: no torch.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "filmlet needs Python 3.11, 3.12 or 3.13, this is %d.%d" % v)'
	@$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned set into $(VENV); this takes a minute or two"
	@$(INSTALL) -e .
	@touch $(READY)

$(SERVER): $(READY)
	@$(INSTALL) -e '.[server]'
	@touch $(SERVER)

# torch first and alone: its pinned build is the CPU one where the index offers it.
$(ALL): $(READY)
	@echo "installing torch and the tools into $(VENV); this takes a minute or two"
	@$(INSTALL) torch
	@$(INSTALL) -e '.[dev]'
	@touch $(ALL)

$(DOCS): $(SERVER)
	@$(INSTALL) -e '.[docs]'
	@touch $(DOCS)
