# `make` builds the programs and the policy. `make install` puts them, with all that goes with them, where the host or a
# package wants them, below DESTDIR; `make uninstall` takes them away again, the configuration included. None of this
# changes the host's policy: /usr/libexec/svirt-interpose-policy does.

CARGO ?= cargo
CARGO_FLAGS ?= --locked
UNITDIR ?= /usr/lib/systemd/system

PROGRAMS = $(or $(CARGO_TARGET_DIR),target)/release
# The source of a release has its crates with it. Built from that, a program is the same in whatever directory.
ifneq ($(wildcard vendor),)
CARGO_FLAGS += --offline --config 'source.crates-io.replace-with="vendor"' --config 'source.vendor.directory="vendor"'
export RUSTFLAGS = --remap-path-prefix=$(CURDIR)=/usr/src/svirt-interpose
endif

MODULES = $(patsubst %.te,%.pp,$(wildcard policy/*.te)) $(wildcard policy/*.cil policy/*.fc policy/*.if)

.PHONY: all programs policy install install-programs install-policy uninstall

all: programs policy

programs:
	$(CARGO) build --release $(CARGO_FLAGS)

policy:
	$(MAKE) -C policy

install: install-programs install-policy

install-programs:
	install -D -m 755 -t $(DESTDIR)/usr/libexec $(PROGRAMS)/svirt-interpose
	install -D -m 755 -t $(DESTDIR)/usr/sbin $(PROGRAMS)/svirtctl packaging/svirt-interpose-default
	[ -e $(DESTDIR)/etc/svirt-interpose.conf ] || install -D -m 644 -t $(DESTDIR)/etc packaging/svirt-interpose.conf
	install -D -m 755 -t $(DESTDIR)/etc/xen/scripts packaging/xen/*
	install -D -m 644 -t $(DESTDIR)/usr/lib/udev/rules.d packaging/udev/*
	install -D -m 644 -t $(DESTDIR)$(UNITDIR) packaging/systemd/*
	install -D -m 644 -t $(DESTDIR)/usr/share/svirt-interpose packaging/*.json
	install -D -m 644 -t $(DESTDIR)/usr/share/doc/svirt-interpose $(wildcard *.md packaging/*.md)
	install -D -m 644 -t $(DESTDIR)/usr/share/man/man5 packaging/man/*.5
	install -D -m 644 -t $(DESTDIR)/usr/share/man/man8 packaging/man/*.8
	install -D -m 644 packaging/completions/svirtctl.bash $(DESTDIR)/usr/share/bash-completion/completions/svirtctl

install-policy:
	install -D -m 755 -t $(DESTDIR)/usr/libexec policy/svirt-interpose-policy
	install -D -m 644 -t $(DESTDIR)/usr/share/selinux/packages/svirt-interpose $(MODULES)

uninstall:
	files=$$(mktemp -d) && $(MAKE) --no-print-directory install DESTDIR=$$files >/dev/null && \
		(cd $$files && find . -type f -printf '/%P\n') | sed 's,^,$(DESTDIR),' | xargs rm -f && rm -r $$files
