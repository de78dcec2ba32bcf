# The front door. `make help` lists what there is.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SPARK := $(VENV)/.spark
EXTRAS := pipelines,features,validate,train,registry,embedded,serve,dev
WORKDIR ?= .tandem
#: Processes that run tests; four cores are made use of, more gain little.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 4 ? n : 4)))

export BENTOML_DO_NOT_TRACK := True
export GX_ANALYTICS_ENABLED := false
export MLFLOW_DISABLE_TELEMETRY := true
export HF_HUB_OFFLINE ?= 1

.PHONY: help setup demo test test-services test-containers images lint lint-manifests format serve clean
.DEFAULT_GOAL := help

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(READY) ## Make the virtual environment and install everything into it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

$(SPARK): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[scale]'
	@touch $@

demo: $(READY) ## Run the whole training chain on the embedded sample data set
	$(BIN)/tandem run --dataset sample --workdir $(WORKDIR)

# One thread each: several workers with a thread for every core wait for each other.
test test-services test-containers: export OMP_NUM_THREADS := 1

test: $(READY) ## Run all tests that need no server of their own
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 60 -m 'not services and not containers'

test-services: $(SPARK) ## Run the tests that start real servers (Redis, PostgreSQL, S3, Spark); an absent one is said
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m services

images: $(READY) ## Build the images: train, serve, follow, push and mlflow (TORCH=cuda for GPUs, BASE_IMAGE, TAG)
	PYTHON=$(abspath $(BIN)/python) infra/images/build.sh

test-containers: images ## Run the compiled pipeline and the service in the images, with real servers beside them
	$(BIN)/python -m pytest -m containers tests/containers

lint: $(READY) ## Run ruff, mypy --strict and the import guard
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_import_guard.py

lint-manifests: ## Lint the cluster files with checkov, in an environment of its own
	[ -x .venv-checkov/bin/checkov ] || { $(PYTHON) -m venv .venv-checkov && .venv-checkov/bin/pip install --quiet checkov==3.3.30; }
	for overlay in dev staging prod; do \
	  kubectl kustomize infra/kustomize/overlays/$$overlay >build-$$overlay.yaml && \
	  .venv-checkov/bin/checkov --skip-download --quiet --compact --framework kubernetes -f build-$$overlay.yaml || exit 1; \
	  rm build-$$overlay.yaml; done

format: $(READY) ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: $(READY) ## Serve the deployed model on loopback
	$(BIN)/tandem serve --workdir $(WORKDIR)

clean: ## Remove the virtual environment and all state of runs
	rm -rf $(VENV) .tandem build *.egg-info
