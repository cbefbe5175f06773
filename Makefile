# Every target is one command that can also be typed by hand.
.DEFAULT_GOAL := help
PYTHON ?= python3
UV_VERSION := 0.13.9
BIN := .venv/bin
export VIRTUAL_ENV := $(CURDIR)/.venv
export UV_LINK_MODE ?= hardlink
# Each stage and many tests are processes of their own, which would compile the project again.
unexport PYTHONDONTWRITEBYTECODE

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

.venv/.ready: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found; install Python 3.11 or pass PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing uv $(UV_VERSION)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "Installing the locked dependencies (5.5 GB with CUDA; about a minute, then cached)"
	@$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --no-deps -e .
	@touch $@

install: .venv/.ready ## Make .venv with the locked dependencies and this project

LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-annotate
WORKER := images/worker
TEST_TOOLS := chromium dcmtk dicom3tools orthanc orthanc-dicomweb prometheus prometheus-pushgateway

lock: .venv/.ready ## Resolve pyproject.toml into requirements.lock and the image's locks again
	$(LOCK) --extra dev pyproject.toml -o requirements.lock
	$(LOCK) --extra radiomics --extra trainer -c requirements.lock pyproject.toml -o $(WORKER)/requirements.lock
	grep -o '^kfp==[^ ]*' requirements.lock | $(LOCK) --no-deps - -o $(WORKER)/kfp.lock
	$(LOCK) $(WORKER)/build-requirements.in -o $(WORKER)/build-requirements.lock

lock-torch-cpu: .venv/.ready ## Lock CPU wheels of torch: TORCH_INDEX=<package index with CPU wheels>
	@test -n "$(TORCH_INDEX)" || { echo "make: set TORCH_INDEX to a package index with CPU wheels of torch" >&2; exit 1; }
	grep -oE '^torch(vision)?==[^ ]*' requirements.lock \
	  | $(LOCK) --no-deps --default-index "$(TORCH_INDEX)" - -o $(WORKER)/torch-cpu.lock

images: ## Build the worker image with docker, podman or buildah
	@$(PYTHON) images/build.py $(IMAGE_FLAGS)

test-image: .venv/.ready ## Run every stage inside the worker image, without root, network or rights
	@$(BIN)/python -m images.run_stages

test-backend: .venv/.ready ## Train and score on the Kubeflow of KFP_HOST and kubectl's context, and remove it again
	@$(BIN)/python -m pipelines acceptance

test-cluster: .venv/.ready ## Apply every overlay to a real API server (etcd, kube-apiserver: KUBEBUILDER_ASSETS or PATH)
	@$(BIN)/python -m pytest -m cluster tests/manifests

demo: .venv/.ready ## Train on generated X-rays and score an inbox, on this machine (DEMO="--seed 8")
	@$(BIN)/python -m pipelines demo $(DEMO)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope --no-loadscope-reorder

test: .venv/.ready ## Run all tests, on two processes
	@$(PYTEST)

test-fast: .venv/.ready ## Run what needs no server and no training, in under 3 minutes on two cores
	@$(PYTEST) -m "not slow and not trains and not image and not cluster" tests/unit tests/manifests

test-tools: ## Install on Debian the programs that some tests need (root)
	@apt-get update -qq && apt-get install -y -qq --no-install-recommends $(TEST_TOOLS) >/dev/null

format: .venv/.ready ## Format the code and sort its imports
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

check: .venv/.ready ## Check format, lint, types and import contracts
	$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy && $(BIN)/lint-imports

clean: ## Remove what the demo and the tests left (not .venv)
	rm -rf .demo .kfp build .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help install lock lock-torch-cpu images test-image test-cluster test-backend demo test test-fast test-tools format check clean
