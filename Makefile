# Two commands on a fresh machine: make demo, make test. Everything happens inside .venv.
#
#   make setup TORCH_INDEX=URL    take PyTorch from this package index: point it at PyTorch's own
#                                 index of CPU builds to download 0.2 GB instead of several
#   make setup PYTHON=python3.12  use this interpreter (3.11 to 3.13)

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP_EXTRA := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX),)
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo test test-docker check bench images sbom clean
help:
	@sed -n '1,7p' Makefile; echo; echo "targets: setup demo test test-docker check bench images sbom clean"

setup: $(STAMP)

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "grapevine: needs Python 3.11, 3.12 or 3.13; found none of them. Debian, Ubuntu: apt install python3 python3-venv" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "grapevine: $(PYTHON) cannot make a virtual environment. Debian, Ubuntu: apt install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 2; }
	@echo "Installing into $(VENV): about 0.4 GB to download with PyTorch's CPU build, 3 GB and more with the default build"
	@test -n "$(TORCH_INDEX)" || echo "(set TORCH_INDEX to the address of PyTorch's CPU package index for the small one)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_EXTRA) -e '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/grapevine demo

# shared by three or four workers; to look into one test: .venv/bin/python -m pytest tests/…
test: $(STAMP)
	$(BIN)/python -m pytest -q -m "not docker" -n auto

# needs a Docker engine and builds the images first; without one, says why it skips
test-docker: $(STAMP)
	$(BIN)/python -m pytest -q -m docker

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python benchmarks/simulation.py
	$(BIN)/python benchmarks/link.py
	$(BIN)/python benchmarks/determinism.py

images:
	docker build --target node --build-arg TORCH_INDEX=$(TORCH_INDEX) --tag grapevine-node .
	docker build --target scenario --build-arg TORCH_INDEX=$(TORCH_INDEX) --tag grapevine-scenario .

# the node image's bill of materials, CycloneDX as JSON: it lies in the image itself
sbom: images
	@mkdir -p dist
	docker run --rm --network none --entrypoint cat grapevine-node /opt/app/sbom.cdx.json > dist/sbom.cdx.json
	@echo "dist/sbom.cdx.json"

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis grapevine-demo
