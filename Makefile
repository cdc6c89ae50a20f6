# Two commands: `make demo` sets everything up and runs the main job, `make test` sets up and runs all tests.
PYTHON ?= python3
VENV := .venv
# The torch that constraints.txt pins; with pip's options for another build of it: make demo TORCH="torch==2.13.0 --extra-index-url URL"
TORCH ?= torch==2.13.0

.PHONY: demo test lint docs setup
demo: setup
	$(VENV)/bin/python -m benchmarks.demo

test: setup
	$(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal

lint: setup
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

# The documentation as a site, build/site/index.html; a warning is an error.
docs: setup
	$(VENV)/bin/python -m pip install --quiet --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --quiet --upgrade pip
	@echo "Installing (a few minutes the first time) ..."
	$(if $(TORCH),$(VENV)/bin/python -m pip install --quiet --quiet --constraint constraints.txt $(TORCH))
	$(VENV)/bin/python -m pip install --quiet --quiet --constraint constraints.txt --editable ".[lora,sb3,capability,dev]"
	touch $@
