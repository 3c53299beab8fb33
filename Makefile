# `make study` and `make test` do all the set-up on a machine that has Python 3.11 and make.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: study test lint docs clean constraints

study: .venv/installed  ## train the first study on the bundled photographs, and write its report
	$(BIN)/python run.py -m study=residual_bn hydra/launcher=joblib
	$(BIN)/python -m analysis residual_bn

test: .venv/installed  ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: .venv/installed  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed  ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .[dev,docs]
	touch $@

clean:
	rm -rf .venv

constraints:  ## rewrite constraints.txt from the newest versions that pyproject.toml allows
	rm -rf .venv-constraints
	$(PYTHON) -m venv .venv-constraints
	.venv-constraints/bin/pip install --quiet --editable .[dev,docs]
	.venv-constraints/bin/pip freeze --exclude-editable | sed "s/+cpu$$//" > constraints.txt
	rm -rf .venv-constraints
