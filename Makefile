# Each target does its own set-up: all it needs is Python 3.10 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src tests benchmarks zoo

.PHONY: help demo test test-parity test-targets test-aarch64 test-guard test-deep test-clients test-cluster check format proto bench faults accuracy clean

help:  ## Say what there is to make.
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

$(VENV)/installed-parity: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt 'torch==2.13.0' transformers
	touch $@

demo: $(VENV)/installed  ## Run a model of every task on real input.
	$(BIN)/educe demo --save demo-out

test: $(VENV)/installed  ## Run the tests, in random order, on all cores.
	$(BIN)/python -m pytest -n auto --dist worksteal --ignore=tests/parity --ignore=tests/clients --ignore=tests/cluster --cov --cov-report=term:skip-covered --cov-fail-under=90

test-parity: $(VENV)/installed-parity  ## Compare with PyTorch and transformers.
	$(BIN)/python -m pytest tests/parity

test-targets: $(VENV)/installed  ## Run the kernels' tests restricted to AVX2 and to baseline x86-64.
	EDUCE_TARGET=avx2 $(BIN)/python -m pytest -n auto tests/compiler tests/conformance
	EDUCE_TARGET=x86-64 $(BIN)/python -m pytest -n auto tests/compiler tests/conformance

test-aarch64: $(VENV)/installed  ## Run programs as AArch64 code under QEMU (qemu-user-static, gcc-aarch64-linux-gnu).
	$(BIN)/python -m pytest -n auto tests/aarch64

test-guard: $(VENV)/installed  ## Run the kernels' tests with untouchable pages around every buffer of the arena.
	EDUCE_GUARD=1 $(BIN)/python -m pytest -n auto tests/compiler tests/conformance

test-deep: $(VENV)/installed  ## Try many random graphs before and after the passes and as machine code, schedules, texts, schemas, and requests.
	$(BIN)/python -m pytest -n auto tests/graph tests/generate/test_scheduler_machine.py --hypothesis-profile=deep
	EDUCE_TEST_TEXTS=10000 $(BIN)/python -m pytest tests/text/test_tokenizer.py
	EDUCE_TEST_REQUESTS=300 $(BIN)/python -m pytest tests/serve/test_schemathesis.py
	EDUCE_TEST_SCHEMAS=500 $(BIN)/python -m pytest -n auto tests/text/test_constraint.py tests/text/test_constrained_tokenizers.py

.venv-clients/installed:
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet --disable-pip-version-check \
		openai kserve 'tritonclient[all]' 'lm-eval[api]' transformers
	mkdir -p out/clients
	npm install --silent --no-audit --no-fund --prefix out/clients openai@7 node@22
	touch $@

test-clients: $(VENV)/installed .venv-clients/installed  ## Have clients that others wrote ask the server, each as it is (npm, curl).
	$(BIN)/python -m pytest tests/clients

.venv-cluster/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-cluster
	.venv-cluster/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[ray]' pytest hypothesis
	touch $@

test-cluster: .venv-cluster/installed  ## Serve on a cluster of Ray, and kill one of its nodes.
	.venv-cluster/bin/python -m pytest -p no:randomly -W ignore tests/cluster

check: $(VENV)/installed  ## Lint, check types and layers.
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/house

format: $(VENV)/installed  ## Format the sources.
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

proto: $(VENV)/installed  ## Make the descriptions of gRPC's messages from the .proto files.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt grpcio-tools
	cd src/educe/serve/grpc && $(CURDIR)/$(BIN)/python -m grpc_tools.protoc --proto_path=. --descriptor_set_out=messages.binpb *.proto

bench: $(VENV)/installed  ## Compare the engines' speed on public architectures and the zoo, and Educe's own overhead.
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.integers
	$(BIN)/python -m benchmarks.quantized_linear
	$(BIN)/python -m benchmarks.suite

faults: $(VENV)/installed  ## Serve beside slow and aborted clients, reloads, the end, and too much load, at modest size.
	$(BIN)/python -m benchmarks.faults slow --connections 1000 --seconds 20
	$(BIN)/python -m benchmarks.faults aborted --connections 1000 --seconds 20
	$(BIN)/python -m benchmarks.faults reloads --reloads 100
	$(BIN)/python -m benchmarks.faults ending --rounds 3
	$(BIN)/python -m benchmarks.faults soak --minutes 3
	$(BIN)/python -m benchmarks.faults overload --seconds 20

accuracy: $(VENV)/installed  ## Measure how right the zoo's models are.
	$(BIN)/python -m benchmarks.accuracy

clean:  ## Remove what the targets made.
	rm -rf $(VENV) .venv-clients .venv-cluster demo-out out .pytest_cache .mypy_cache .ruff_cache .coverage*
