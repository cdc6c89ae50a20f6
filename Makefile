# `make demo` sets everything up and runs the main job, `make test` sets everything up and runs the tests.
PYTHON ?= python3
VENV := .venv
# What constraints.txt pins; with pip's options for another build of it: TORCH="torch==2.13.0 --index-url URL".
TORCH ?= torch==2.13.0
PYTEST := $(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal

.PHONY: help demo demo-real test test-slow test-real lint format docs setup clean
.DEFAULT_GOAL := help

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## Train RLEdit, edit 1,000 held-out facts, print the table
	$(VENV)/bin/python -m benchmarks.demo

demo-real: setup ## The same on a public language model: 200 corrections; the model is fetched once (93 MB)
	$(VENV)/bin/python -m benchmarks.demo --suite demo-real-10x20 --out runs/demo-real

test: setup ## Run all tests but the slow ones
	$(PYTEST) -m "not slow and not real"

test-slow: setup ## Run the slow tests
	$(PYTEST) -m "slow and not real"

test-real: setup ## Run the tests on a public model, which is fetched once (93 MB)
	$(PYTEST) -m real

lint: setup ## Check style and types: ruff, mypy
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

format: setup ## Correct what ruff can correct
	$(VENV)/bin/ruff check --fix . && $(VENV)/bin/ruff format .

docs: setup ## Build the documentation as a site, build/site/index.html; a warning is an error
	$(VENV)/bin/python -m pip install --quiet --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

setup: $(VENV)/ready ## Make .venv with the package and what its development needs

clean: ## Remove builds and caches
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --quiet --upgrade pip
	@echo "Installing (a few minutes the first time) ..."
	$(if $(TORCH),$(VENV)/bin/python -m pip install --quiet --quiet --constraint constraints.txt $(TORCH))
	$(VENV)/bin/python -m pip install --quiet --quiet --constraint constraints.txt --editable ".[lora,sb3,capability,context,gguf,dev]"
	touch $@
