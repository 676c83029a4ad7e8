# The library, the command and the demo guard, as packages want them. Included by the Makefile.
#
#   make install PREFIX=/usr/local DESTDIR=      builds and copies
#   make dist                                    builds only, into $(STAGE)
#   make install-only PREFIX=... DESTDIR=...     copies what `make dist` built
#
# PROFILE=dev builds without optimising across crates, for tests of the packaging itself.
# GLIBC=2.28 links against that glibc, so that the build runs where a newer one is; it takes
# cargo-zigbuild with ziglang. Without it the build needs this machine's glibc.

PREFIX ?= /usr/local
DESTDIR ?=
# What the .pc files say the prefix is.
PC_PREFIX ?= $(PREFIX)
PROFILE ?= release
CARGO ?= cargo
CARGO_FLAGS ?= --locked
INSTALL ?= install
GLIBC ?=

SIREN_VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SIREN_ABI_MAJOR := $(shell sed -n 's/^\#define SIREN_ABI_MAJOR //p' include/siren.h)
# What libsiren.a needs from the system (rustc --print native-static-libs).
SIREN_STATIC_LIBS := gcc_s pthread m dl

CARGO_BUILD := $(CARGO) build
CARGO_RUSTC := $(CARGO) rustc
TRIPLE :=
ifneq ($(GLIBC),)
TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
CARGO_BUILD := cargo-zigbuild zigbuild --target $(TRIPLE).$(GLIBC)
CARGO_RUSTC := cargo-zigbuild rustc --target $(TRIPLE).$(GLIBC)
endif
BUILT := $(or $(CARGO_TARGET_DIR),target)/$(if $(TRIPLE),$(TRIPLE)/)$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
STAGE := $(BUILT)/stage
SHARED := libsiren.so.$(SIREN_VERSION)

.PHONY: dist install install-only

# Cargo optimises the library across crates only when it is built as one kind. All its builds
# share the file names below, so what another one left is taken away first: that builds it anew.
dist:
	mkdir -p $(STAGE)
	$(CARGO_BUILD) $(CARGO_FLAGS) --profile $(PROFILE) --package siren-cli
	cp $(BUILT)/siren $(STAGE)/siren
	rm -f $(BUILT)/deps/libsiren.so
	$(CARGO_RUSTC) $(CARGO_FLAGS) --profile $(PROFILE) --package libsiren --lib --crate-type cdylib
	cp $(BUILT)/libsiren.so $(STAGE)/libsiren.so
	rm -f $(BUILT)/deps/libsiren.a
	$(CARGO_RUSTC) $(CARGO_FLAGS) --profile $(PROFILE) --package libsiren --lib --crate-type staticlib
	cp $(BUILT)/libsiren.a $(STAGE)/libsiren.a

install: dist
	$(MAKE) -f $(firstword $(MAKEFILE_LIST)) install-only

SUBSTITUTE = sed \
	-e 's|@PREFIX@|$(PC_PREFIX)|g' \
	-e 's|@VERSION@|$(SIREN_VERSION)|g' \
	-e 's|@ABI_MAJOR@|$(SIREN_ABI_MAJOR)|g' \
	-e 's|@STATIC_LIBS@|$(addprefix -l,$(SIREN_STATIC_LIBS))|g' \
	-e 's|@STATIC_LIBS_LIST@|$(subst $() ,;,$(SIREN_STATIC_LIBS))|g'

TO := $(DESTDIR)$(PREFIX)

install-only:
	$(INSTALL) -d $(TO)/bin $(TO)/include $(TO)/lib/pkgconfig $(TO)/lib/cmake/siren
	$(INSTALL) -m 755 $(STAGE)/siren $(TO)/bin/siren
	$(INSTALL) -m 755 $(STAGE)/libsiren.so $(TO)/lib/$(SHARED)
	ln -sf $(SHARED) $(TO)/lib/libsiren.so.$(SIREN_ABI_MAJOR)
	ln -sf libsiren.so.$(SIREN_ABI_MAJOR) $(TO)/lib/libsiren.so
	$(INSTALL) -m 644 $(STAGE)/libsiren.a $(TO)/lib/libsiren.a
	$(INSTALL) -m 644 include/siren.h $(TO)/include/siren.h
	$(INSTALL) -m 644 bindings/cpp/siren.hpp $(TO)/include/siren.hpp
	$(SUBSTITUTE) packaging/siren.pc.in > $(TO)/lib/pkgconfig/siren.pc
	$(SUBSTITUTE) packaging/siren-static.pc.in > $(TO)/lib/pkgconfig/siren-static.pc
	$(SUBSTITUTE) packaging/sirenConfig.cmake.in > $(TO)/lib/cmake/siren/sirenConfig.cmake
	$(SUBSTITUTE) packaging/sirenConfigVersion.cmake.in > $(TO)/lib/cmake/siren/sirenConfigVersion.cmake
	chmod 644 $(TO)/lib/pkgconfig/*.pc $(TO)/lib/cmake/siren/*.cmake
	find models/demo -type f -exec $(INSTALL) -D -m 644 {} $(TO)/share/libsiren/{} \;
