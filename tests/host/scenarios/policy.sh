# shellcheck shell=bash
# policy: make install and make remove, each twice
# tier: plain
# with: policy
qemu=/usr/libexec/xen-qemu-system-i386
# semodule may read root's home, not where a scenario is unpacked.
cp -r --preserve=timestamps policy /root
cd /root || exit

label_is() { [[ $(disk_label "$1") == *":$2:s0" ]] || { disk_label "$1"; return 1; }; }
modules_are() { [ "$(semodule -l | grep -c '^svirt_interpose')" = "$1" ]; }
refused() { ! "$@" 2>/dev/null; }

echo "removed"
check "make remove" make -s -C policy remove
check "no module is left" modules_are 0
check "QEMU is a program like any other" label_is $qemu bin_t
check "root's shell executes it" $qemu -version
check "make remove, again" make -s -C policy remove

echo "installed again"
check "make install" make -s -C policy install
check "both modules are there" modules_are 2
check "QEMU is svirt_xen_exec_t" label_is $qemu svirt_xen_exec_t
check "root's shell cannot execute it" refused $qemu -version
check "make install, again" make -s -C policy install
finish
