# Tests of the bindings, included by the Makefile: `make bindings-test` for all, `make bindings-LANGUAGE`
# for one. Each runs against the library in $(BINDINGS_PREFIX), as an installation lays it out, on the
# demo guard and the vectors of this tree. A language whose tools are not there says SKIPPED.

BINDINGS_PREFIX ?= $(abspath $(or $(CARGO_TARGET_DIR),target))/bindings-prefix
BINDINGS := bindings-cpp bindings-go bindings-node bindings-dotnet bindings-python

.PHONY: bindings-test bindings-prefix dist-dev $(BINDINGS)

bindings-test: $(BINDINGS)  ## The tests of every language's binding

dist-dev:
	@$(MAKE) --no-print-directory -f packaging/install.mk dist PROFILE=dev

bindings-prefix: dist-dev
	@$(MAKE) --no-print-directory -f packaging/install.mk install-only PROFILE=dev PREFIX=$(BINDINGS_PREFIX) > /dev/null

$(BINDINGS): bindings-%: bindings-prefix
	bindings/$*/test.sh $(BINDINGS_PREFIX)
