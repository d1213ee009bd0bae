# Every target that needs the environment makes it: one .venv, stamped with what it was made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
SOURCES := pyproject.toml Cargo.toml Cargo.lock rust_tokenize/Cargo.toml rust_tokenize/simd/Cargo.toml \
	$(shell find rust_tokenize/src rust_tokenize/simd -name '*.rs')
# Small models on few cores: spinning worker threads cost more than they give. Tests that ask for two have them wait
# asleep: beside another process, spinning took 10 to 20 times their processor time.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q
# Python as a slow GPU; on a real one `make gpu-check` runs the same tests.
SIMULATED := $(PYTEST) --numprocesses 2 -p tests.simulated.plugin tests/gpu tests/simulated

# An environment whose making was cut short, or whose Python is too old, is made anew. pip comes last into one.
IS_NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
REFUSE_OLD = $(PYTHON) $(IS_NEW_ENOUGH) || { \
	echo 'this needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=python3.11 $(MAKECMDGOALS)' >&2; exit 1; }
make_venv = test -x $(1)/bin/pip && $(1)/bin/python $(IS_NEW_ENOUGH) || { $(REFUSE_OLD); $(PYTHON) -m venv --clear $(1); }

.DEFAULT_GOAL := help
.PHONY: help install demo test test-simulated check check-kernels check-kernels-lowest agreement docs examples audit test-faults faults-all test-ray test-wheel release test-matrix test-parity fuzz bench bench-memory bench-tokenize soak gpu-wheels gpu-check clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): $(SOURCES)
	@$(call make_venv,$(VENV))
	@echo 'installing into $(VENV), which takes minutes the first time'
	@cmp -s pyproject.toml $(VENV)/.pyproject || $(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	@cp pyproject.toml $(VENV)/.pyproject && touch $@

install: $(STAMP) ## Make .venv with everything in it; PYTHON=python3.11 where python3 is older

demo: $(STAMP) ## Score 1,000 real answers with the embedded model
	$(BIN)/fam-engine score --model embedded --data embedded --out demo-out

test: $(STAMP) ## Run all tests but those of faults, of Ray and of a real GPU
	cargo test --quiet --manifest-path rust_tokenize/Cargo.toml
	$(PYTEST) --numprocesses 2 -m 'not faults and not ray'
	$(SIMULATED) -m 'not real_gpu'

test-simulated: $(STAMP) ## Run every test of a GPU on a simulated one (three quarters of an hour)
	$(SIMULATED) --deselect tests/gpu/test_cuda.py::test_rows_of_products_of_one_height_are_independent

check: $(STAMP) ## Lint, types, layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=engine $(BIN)/lint-imports --no-cache
	MYPYPATH=engine $(BIN)/python -m mypy.stubtest fam_engine._rust_tokenize
	cargo fmt --all --check --manifest-path rust_tokenize/Cargo.toml
	cargo clippy --quiet --all-targets --all-features --manifest-path rust_tokenize/Cargo.toml -- -D warnings
	$(MAKE) docs

check-kernels: $(STAMP) ## Compile every Triton kernel for every GPU known and compare with what is recorded (minutes)
	$(BIN)/python -m tests.kernels.offline --all

TRITON_LOWEST := target/triton-3.6.0
check-kernels-lowest: $(STAMP) ## Compare every Triton kernel with what is recorded for the lowest Triton allowed (fetches it, 190 MB)
	test -d $(TRITON_LOWEST)/triton || $(BIN)/pip install --quiet --no-deps --target $(TRITON_LOWEST) triton==3.6.0
	PYTHONPATH=$(TRITON_LOWEST) $(BIN)/python -m tests.kernels.offline

docs: $(STAMP) ## Build the documentation site into target/docs, warnings as errors, links checked
	$(BIN)/python -m sphinx --fail-on-warning --fresh-env --quiet docs target/docs
	$(BIN)/python docs/check_site.py target/docs

examples: $(STAMP) ## Run the tutorial and the notebook and write what they print now into them
	$(BIN)/python -m tests.docs.examples

DENY := target/cargo-deny
audit: ## Licences, sources and versions of the Rust dependencies, offline (builds cargo-deny once, minutes)
	test -x $(DENY)/bin/cargo-deny || cargo install --quiet --locked --root $(DENY) --version 0.20.2 cargo-deny
	$(DENY)/bin/cargo-deny --offline check licenses bans sources

test-faults: $(STAMP) ## Kill jobs at random moments and compare their results
	$(PYTEST) -m faults

test-ray: $(STAMP) ## Share jobs on a real Ray with four logical GPUs (installs Ray, 240 MB)
	$(BIN)/pip install --quiet 'ray>=2.50'
	$(PYTEST) -m ray

faults-all: $(STAMP) ## Every fault at every call that changes the folder of a small job (hours; goes on where it stopped)
	$(PYTEST) tests/faults/every_call.py

test-wheel: $(STAMP) ## Build wheel and sdist, install each in a clean environment, import every module
	$(BIN)/python tests/wheel/check_wheel.py

release: $(STAMP) ## Wheels for manylinux, sdist and release notes into dist/, installed and tested
	$(BIN)/pip install --quiet ziglang==0.17.1
	$(BIN)/python -m release.build
	$(BIN)/python tests/wheel/check_wheel.py dist

COLUMNS ?= lowest middle newest
test-matrix: ## Run the tests with the lowest, middle and newest versions allowed, minutes a column; COLUMNS=lowest, TESTS=tests/model
	@$(REFUSE_OLD)
	TESTS='$(or $(TESTS),tests)' $(PYTHON) tests/matrix/run_matrix.py $(COLUMNS)

test-parity: $(STAMP) ## Compare 10 M random texts and all that can be listed with the reference (over an hour)
	PARITY_STRINGS=10000000 PARITY_DEFINITIONS=20000 $(PYTEST) tests/rust_tokenize/parity
	FAM_ENGINE_CACHE=off $(BIN)/python -m tests.rust_tokenize.parity.exhaustive

FUZZ_SECONDS ?= 60
FUZZ_TARGETS := json_lines definition kept_definition encoder records spool
FUZZ := target/fuzz
fuzz: $(STAMP) ## Fuzz every reader in Rust, guided by coverage; FUZZ_SECONDS a target (60), two at a time
	RUSTC_WRAPPER=$(CURDIR)/rust_tokenize/fuzz/instrument.sh cargo build --quiet --release --target-dir $(FUZZ)/build \
		--manifest-path rust_tokenize/fuzz/Cargo.toml
	$(BIN)/python -m tests.rust_tokenize.fuzz_definitions $(FUZZ)/definitions
	mkdir -p $(addprefix $(FUZZ)/found/,$(FUZZ_TARGETS)) $(FUZZ)/failed
	@printf '%s\n' $(FUZZ_TARGETS) | FUZZ_DEFINITIONS=$(FUZZ)/definitions xargs -P 2 -I TARGET sh -c ' \
		$(FUZZ)/build/release/TARGET -max_total_time=$(FUZZ_SECONDS) -timeout=10 -rss_limit_mb=2048 \
			-artifact_prefix=$(FUZZ)/failed/TARGET- $(FUZZ)/found/TARGET rust_tokenize/fuzz/corpus/TARGET \
			2>$(FUZZ)/TARGET.log || { cat $(FUZZ)/TARGET.log; exit 255; }; \
		echo TARGET: $$(grep "cov:" $(FUZZ)/TARGET.log | tail -n 1)'

bench: $(STAMP) ## Measure against the peers, side by side
	$(BIN)/python benchmarks/bench_score.py --peers transformers transformers-dequantize

AGREEMENT_MODELS ?= embedded $(wildcard ../shared/models/stories260K)
agreement: $(STAMP) ## Log-probs of the same records in every tool; builds llama-cpp-python once (minutes; without it its rows stay empty)
	@$(call make_venv,.venv-peers)
	-CMAKE_ARGS=-DLLAVA_BUILD=OFF .venv-peers/bin/pip install --quiet --requirement benchmarks/requirements-llama-cpp.txt
	$(BIN)/python benchmarks/agreement.py --models $(AGREEMENT_MODELS) --peers .venv-peers/bin/python \
		--out benchmarks/results/agreement_cpu.json --markdown docs/agreement.md

bench-memory: $(STAMP) ## Peak memory of scoring 100 MB, 1 GB and 10 GB (half an hour, 20 GB of disk)
	$(BIN)/python benchmarks/bench_memory.py --megabytes 100 1000 10000 --out benchmarks/results/memory_cpu.json

soak: $(STAMP) ## An hour of scoring with kills, full disks and little memory
	$(BIN)/python benchmarks/soak.py --seconds 3600 --out benchmarks/results/soak_cpu.json

TOKENIZERS ?= ../shared/tokenizers
bench-tokenize: $(STAMP) ## Tokenizing beside the peers; TOKENIZERS=DIR holds NAME/tokenizer.json, GSM8K=FILE its train.jsonl
	@$(call make_venv,.venv-peers)
	.venv-peers/bin/pip install --quiet --requirement benchmarks/requirements-peers.txt
	$(BIN)/python benchmarks/bench_tokenize.py --tokenizers $(TOKENIZERS) --peers .venv-peers/bin/python

gpu-wheels: $(STAMP) ## Bundles of what a GPU machine lacks, and of peers, into dist/gpu*
	$(BIN)/python benchmarks/gpu_wheels.py

gpu-check: ## On a GPU machine: tests, kernels, scoring, decoding, training, as one JSON file; PEERS='transformers peft'
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) benchmarks/gpu_check.py --out $(or $(OUT),gpu-check-out) \
		$(if $(PEERS),--peers $(PEERS)) $(if $(PARTS),--parts $(PARTS))

clean: ## Remove what the targets made
	rm -rf $(VENV) .venv-lowest .venv-middle .venv-newest .venv-peers target dist demo-out gpu-check-out
