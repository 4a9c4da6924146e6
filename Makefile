# From a fresh clone to a trained model: `make quickstart`. Each target works alone, may be repeated and takes no step twice.
PYTHON ?= python3

.NOTPARALLEL:
.PHONY: help setup setup-dev quickstart check test test-slow coverage translations clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1@/p' Makefile | column -t -s @

setup: ## make .venv with the locked packages (CUDA build where there is an NVIDIA GPU)
	@$(PYTHON) .setup/install.py

setup-dev: ## the same with what the tests and checks need
	@$(PYTHON) .setup/install.py --dev

# Stopped and repeated it resumes; once it is complete it shows the run. `fasttune run recipes/quickstart.toml --on-existing new` trains
# another one.
quickstart: setup ## train the small model that ships with fasttune and let it answer
	.venv/bin/fasttune run recipes/quickstart.toml --on-existing skip

check: setup-dev ## ruff, mypy, import-linter and the Chinese catalog; changes nothing
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/python -m pytest tests/test_translations.py

# What Python compiles is kept, whatever the shell says: compiling the tests takes each of the two processes 5 s.
test: setup-dev ## the everyday tests
	PYTHONDONTWRITEBYTECODE= .venv/bin/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"
	@.venv/bin/python -c "import torch, sys; sys.exit(not torch.cuda.is_available())" || exit 0; \
	.venv/bin/python -m pytest -m "gpu and not slow"

test-slow: setup-dev ## all tests, the slow ones too
	.venv/bin/python -m pytest

coverage: setup-dev ## the everyday tests, and which lines of fasttune they run
	COVERAGE_FILE=.cache/coverage .venv/bin/python -m pytest -m "not slow" --cov=fasttune --cov-report=term-missing:skip-covered

translations: setup-dev ## bring the Chinese catalog up to the messages of the code and compile it
	@mkdir -p .cache
	.venv/bin/pybabel -q extract
	.venv/bin/pybabel update
	.venv/bin/pybabel compile

clean: ## remove .venv and caches; runs/ stays
	rm -rf .venv .cache .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
