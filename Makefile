# The targets of AVIO. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
RELEASE := $(TARGET_DIR)/release
PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
UNITDIR ?= /usr/lib/systemd/system
UDEVDIR ?= /usr/lib/udev/rules.d
DAEMONS := avio-vswitchd avio-stord
PROGRAMS := avio hpvmnet avio-pktgen avio-iogen gvsdmgr

# gvsdmgr runs in guests, whatever they are: it brings its C library along.
STATIC := -C target-feature=+crt-static -C strip=symbols

.PHONY: help build demo demo-vm test test-long lint test-deps install deb soak fuzz bench bench-net bench-stor bench-wire bench-micro bench-deps instructions-update

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## release binaries in target/release
	$(CARGO) build --release --locked -p avio-vswitch -p avio-storage -p avio-tools
	$(CARGO) rustc --release --locked -p gvsdmgr -- $(STATIC)

demo: build ## the main job in under a minute: guests on a switch, traffic, the statistics (no root)
	@$(RELEASE)/avio demo

demo-vm: test-deps build ## real Linux guests: two on one switch (User-Mode Linux and QEMU), one with disks
	@$(CARGO) run -q --locked -p avio-tests --bin avio-demo-vm

test: test-deps build ## everything CI runs; the last line counts
	@$(CARGO) run -q --locked -p avio-tests --bin avio-test

test-long: test-deps build ## the same with many more random cases and rounds
	@$(CARGO) run -q --locked -p avio-tests --bin avio-test -- --long

soak: test-deps build ## the system tests over and over for SOAK_MINUTES (default 60), stopping at the first failure
	@$(CARGO) run -q --locked -p avio-tests --bin avio-test -- --soak $(or $(SOAK_MINUTES),60)

fuzz: ## coverage-guided fuzzing of sessions, rings and configuration, FUZZ_SECONDS each (default 60)
	@scripts/fuzz $(or $(FUZZ_SECONDS),60) $(TARGET_DIR)/fuzz $(FUZZ_TARGETS)

lint: ## formatting, clippy, documentation, house rules
	@scripts/lint

test-deps: ## what the system tests need, from Debian packages (root where something is missing)
	@scripts/install-test-deps

bench-deps: test-deps ## what bench-net and bench-stor measure beside us, from Debian packages (root where something is missing)
	@scripts/install-bench-deps

bench-net: bench-deps build ## beside OVS-DPDK and testpmd: benches/results/net.md; QUICK=1: ratios in under three minutes (root)
	@$(CARGO) run -q --release --locked -p avio-benches --bin bench-net -- $(if $(QUICK),--quick) $(BENCH_ARGS)

bench-stor: bench-deps build ## beside qemu-storage-daemon and fio: benches/results/stor.md; QUICK=1: ratios in under three minutes (root)
	@$(CARGO) run -q --release --locked -p avio-benches --bin bench-stor -- $(if $(QUICK),--quick) $(BENCH_ARGS)

bench-wire: bench-deps build ## beside OVS and testpmd on veth pairs: benches/results/wire.md; QUICK=1: under three minutes (root)
	@$(CARGO) run -q --release --locked -p avio-benches --bin bench-wire -- $(if $(QUICK),--quick) $(BENCH_ARGS)

# One after the other, also under make -j: each wants the machine for itself.
bench: ## bench-net, bench-stor and bench-wire, one after the other (root); QUICK=1 as for each
	@for each in bench-net bench-stor bench-wire; do \
	    $(MAKE) --no-print-directory $$each || exit 1; done

bench-micro: ## micro-benchmarks of the data path (criterion)
	@$(CARGO) bench -q --locked -p avio-benches --bench rings --bench frames --bench requests

instructions-update: test-deps ## takes today's instructions per frame and request as the baseline that make test compares with
	@$(CARGO) run -q --release --locked -p avio-benches --bin avio-instructions -- update

deb: build ## a Debian package of what `make install` installs, in target/debian
	@scripts/build-deb $(TARGET_DIR)/debian

install: build ## into $(DESTDIR)$(PREFIX): programs, systemd units, udev rule for guests, example configuration
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITDIR) $(DESTDIR)$(UDEVDIR) $(DESTDIR)$(SYSCONFDIR)/avio/guests \
	    $(DESTDIR)$(PREFIX)/share/doc/avio/examples/guests
	install -m 755 $(addprefix $(RELEASE)/,$(DAEMONS) $(PROGRAMS)) $(DESTDIR)$(PREFIX)/bin/
	for unit in $(DAEMONS); do \
	    sed 's|@PREFIX@|$(PREFIX)|' systemd/$$unit.service > $(DESTDIR)$(UNITDIR)/$$unit.service && \
	    chmod 644 $(DESTDIR)$(UNITDIR)/$$unit.service || exit 1; done
	install -m 644 systemd/60-avio-gvsd.rules $(DESTDIR)$(UDEVDIR)/
	install -m 644 examples/*.toml $(DESTDIR)$(PREFIX)/share/doc/avio/examples/
	install -m 644 examples/guests/*.toml $(DESTDIR)$(PREFIX)/share/doc/avio/examples/guests/
	for file in vswitches.toml storage.toml; do [ -e $(DESTDIR)$(SYSCONFDIR)/avio/$$file ] || \
	    install -m 644 examples/$$file $(DESTDIR)$(SYSCONFDIR)/avio/$$file || exit 1; done
