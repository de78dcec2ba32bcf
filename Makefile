# The front door. `make help` lists what there is.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := pipelines,features,validate,train,registry,serve,dev
WORKDIR ?= .tandem
#: Processes that run tests; four cores are made use of, more gain little.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

export BENTOML_DO_NOT_TRACK := True
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test test-services lint format serve clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(READY) ## Make the virtual environment and install everything into it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: $(READY) ## Run the whole training chain on the embedded sample data set
	$(BIN)/tandem run --dataset sample --workdir $(WORKDIR)

test: $(READY) ## Run all tests that need no server of their own
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m 'not services and not containers'

test-services: $(READY) ## Run the tests that start real servers (Redis, PostgreSQL, S3); an absent one is said
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m services

lint: $(READY) ## Run ruff, mypy --strict and the import guard
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_guard.py

format: $(READY) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(READY) ## Serve the deployed model on loopback
	$(BIN)/tandem serve --workdir $(WORKDIR)

clean: ## Remove the virtual environment and all state of runs
	rm -rf $(VENV) .tandem build *.egg-info
