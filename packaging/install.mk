# The library, the command and the demo guard, as packages want them. Included by the Makefile.
#
#   make install PREFIX=/usr/local DESTDIR=      builds and copies
#   make dist                                    builds only, into $(STAGE)
#   make install-only PREFIX=... DESTDIR=...     copies what `make dist` built
#
# PROFILE=dev builds without optimising across crates, for tests of the packaging itself.

PREFIX ?= /usr/local
DESTDIR ?=
PROFILE ?= release
CARGO ?= cargo
CARGO_FLAGS ?= --locked
INSTALL ?= install

SIREN_VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
SIREN_ABI_MAJOR := $(shell sed -n 's/^\#define SIREN_ABI_MAJOR //p' include/siren.h)
# What libsiren.a needs from the system (rustc --print native-static-libs).
SIREN_STATIC_LIBS := gcc_s pthread m dl

BUILT := $(or $(CARGO_TARGET_DIR),target)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
STAGE := $(BUILT)/stage
SHARED := libsiren.so.$(SIREN_VERSION)

.PHONY: dist install install-only

# Cargo optimises the library across crates only when it is built as one kind. All its builds
# share the file names below, so what another one left is taken away first: that builds it anew.
dist:
	mkdir -p $(STAGE)
	$(CARGO) build $(CARGO_FLAGS) --profile $(PROFILE) --package siren-cli
	cp $(BUILT)/siren $(STAGE)/siren
	rm -f $(BUILT)/deps/libsiren.so
	$(CARGO) rustc $(CARGO_FLAGS) --profile $(PROFILE) --package libsiren --lib --crate-type cdylib
	cp $(BUILT)/libsiren.so $(STAGE)/libsiren.so
	rm -f $(BUILT)/deps/libsiren.a
	$(CARGO) rustc $(CARGO_FLAGS) --profile $(PROFILE) --package libsiren --lib --crate-type staticlib
	cp $(BUILT)/libsiren.a $(STAGE)/libsiren.a

install: dist
	$(MAKE) -f $(firstword $(MAKEFILE_LIST)) install-only

SUBSTITUTE = sed \
	-e 's|@PREFIX@|$(PREFIX)|g' \
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
