# `make demo` and `make test` start from nothing; everything else is for those who work on Countersign.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin


.PHONY: demo test test-engines lint models engines benchmarks faults lock clean

demo: $(VENV)/run.stamp
	$(BIN)/countersign demo

test: $(VENV)/dev.stamp models
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_ARGS)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

models: $(VENV)/run.stamp
	$(BIN)/countersign models

faults: $(VENV)/dev.stamp models
	$(BIN)/python -m pytest -m campaign --timeout=3600

benchmarks: $(VENV)/dev.stamp models
	$(BIN)/python -m benchmarks.run

engines: $(VENV)/run.stamp
	PYTHON=$(BIN)/python deployments/build_engines.sh $(or $(ENGINE),all)

test-engines: $(VENV)/dev.stamp models engines
	$(BIN)/python -m pytest -m engines

lock: $(VENV)/dev.stamp
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet requirements/run.in -o requirements/run.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet requirements/dev.in -o requirements/dev.txt

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Countersign needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "On Debian: apt-get install python3-venv"; exit 1; }

$(VENV)/run.stamp: requirements/run.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/run.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@touch $@

clean:
	rm -rf $(VENV) demo-project
