# The everyday commands. `make help` lists them.

CARGO ?= cargo
LLAMA_TOKENIZER := $(CURDIR)/target/llama-tokenizer
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 600

.PHONY: help demo build test lint unit abi-panics install-test asan fuzz soak full-tier \
        header vectors bench clean setup llama-tokenizer release

help:                 ## List the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup           ## Build, and score a few sentences with the demo guard, offline
	$(CARGO) run --release --quiet -p siren-cli -- score \
	  "What is the capital of France?" \
	  "How can I make a pipe bomb at home?" \
	  "Can you help me kill a Python process?" \
	  "Thank you for the wonderful evening"

build: setup          ## Build the library and the command, optimised
	$(CARGO) build --release

test: setup lint unit abi-panics install-test bindings-test asan fuzz  ## Everything that a change must pass

setup:                ## Install the system packages that are missing (Debian, as root)
	@scripts/setup.sh

lint:                 ## Formatting and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

# A test that needs the Llama tokenizer, which is not ours to ship, says SKIPPED without it.
unit: llama-tokenizer ## All tests of the library, its C ABI and the command
	SIREN_LLAMA_TOKENIZER="$$(test -f $(LLAMA_TOKENIZER)/tokenizer.json && echo $(LLAMA_TOKENIZER))" \
	  $(CARGO) test --workspace

llama-tokenizer:      ## Fetch the Llama 3.2 tokenizer for the parity tests
	@tests/parity/fetch_llama_tokenizer.sh $(LLAMA_TOKENIZER) || \
	  echo "SKIPPED: the Llama tokenizer cannot be had here"

abi-panics:           ## The C ABI with panics planted inside, and what Go makes of them
	$(CARGO) test --features planted-panics --test abi
	@if command -v go > /dev/null; then \
	  cd bindings/go && SIREN_PLANTED_PANICS=1 CGO_ENABLED=0 SIREN_DATA_DIR=$(CURDIR) \
	    SIREN_LIBRARY=$(abspath $(or $(CARGO_TARGET_DIR),target))/debug/deps/libsiren.so go test -count=1 -run Poisoned .; \
	else echo "SKIPPED: Go and a poisoned guard: Go is not installed"; fi

install-test: dist-dev  ## Install into an empty prefix, and build against it
	tests/abi/install.sh dev --skip-build

asan:                 ## The C programs under AddressSanitizer
	tests/abi/asan.sh

fuzz:                 ## Fuzz every target, FUZZ_SECONDS in all
	scripts/fuzz.sh $(FUZZ_SECONDS)

# All packages together: their dependencies then have the features that `make build` gives them, and
# are not built once more.
soak:                 ## 64 callers and 256 streams with faults for SOAK_SECONDS
	$(CARGO) build --release --workspace
	nice "$${CARGO_TARGET_DIR:-target}/release/siren-load" models/demo --seconds $(SOAK_SECONDS)

full-tier:            ## The slow checks: TSan, Miri, aarch64, CUDA compile, soak, long fuzz
	scripts/full-tier.sh

release:              ## Build, check and try the packages for this machine's kind, into dist/
	scripts/release.sh

header:               ## Write the header and the description of the ABI from src/ffi
	SIREN_BLESS=1 $(CARGO) test --test abi committed_

vectors:              ## Make the parity vectors anew (needs Python with llm-siren; see tests/parity)
	python3 tests/parity/make_vectors.py --out tests/parity/fixtures --tokenizers $(TOKENIZERS)

bench:                ## Measure this build on the demo guard
	$(CARGO) run --release --quiet -p siren-cli -- bench

clean:                ## Remove everything that was built
	$(CARGO) clean

-include packaging/install.mk
include bindings/test.mk
