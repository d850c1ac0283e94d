# Shortcuts; each does what the script it names does. `make check` is what continuous integration runs.
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint types check lock bench

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## create .venv with everything pinned in requirements/all.txt
	@script/bootstrap all

demo: ## run the demonstration: policies compared on a drifting workload
	@script/demo

test: ## run the whole test suite
	@script/test

lint: setup ## check formatting and lint
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .

types: setup ## check types
	@.venv/bin/mypy

check: ## format, lint, types and tests, as continuous integration does
	@.ci/run

lock: ## resolve pyproject.toml into requirements/*.txt again
	@script/lock

bench: setup ## measure the core with a million tickets waiting; ARGS="..." go to benchmarks/scheduler.py
	@.venv/bin/python benchmarks/scheduler.py $(ARGS)
