# The committed files of the C ABI, and the checks of it that `cargo test` leaves out. Included by
# the Makefile.

.PHONY: header test-panics test-install test-asan

# Rewrites include/siren.h, include/siren-layout.json and tests/abi/symbols.txt from the code.
header:
	SIREN_BLESS=1 cargo test --test abi committed

# What panics do, in a build that plants some.
test-panics:
	cargo test --features planted-panics --test abi

test-install:
	tests/abi/install.sh release

test-asan:
	tests/abi/asan.sh
