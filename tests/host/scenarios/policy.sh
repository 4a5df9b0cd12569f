# shellcheck shell=bash
# policy: make install, where all is installed and a guest runs, and make remove, twice
# tier: plain
# with: policy
qemu=/usr/libexec/xen-qemu-system-i386
types=/etc/selinux/default/contexts/customizable_types
claims=/var/lib/svirt-interpose/claims
# semodule may read root's home, not where a scenario is unpacked.
cp -r --preserve=timestamps policy /root
cd /root || exit

modules() { semodule -lfull | grep -E '^[0-9]+ +svirt_interpose'; }
all_modules() { [ "$(modules)" = "$installed" ]; }
no_modules() { ! modules; }
refused() { ! "$@" 2>/dev/null; }
as_packaged() { dpkg-query -Wf '${Conffiles}' selinux-policy-default | awk -v file=$types '$1 == file { print $2 "  " $1 }' | md5sum -c; }
has_types() { grep -qx svirt_xen_image_t "$types" && grep -qx virt_content_t "$types"; }

echo "installed again, under a running guest"
installed=$(modules)
label=system_u:object_r:svirt_xen_image_t:s0:c1,c2
disk=/var/lib/xen/images/a.raw
node=/dev/xen/blktap-2/tapdev0
touch $disk
mkdir -p ${node%/*}
mknod $node b 1 0
chcon $label $disk $node
before=$(<$types)
check "restorecon is told of the types of guests' disks" has_types
check "make install" make -s -C policy install
check "every module is there" all_modules
check "QEMU is svirt_xen_exec_t" type_is $qemu svirt_xen_exec_t
check "root's shell cannot execute it" refused $qemu -version
check "its disk, a file, keeps its label" label_is $disk $label
check "its disk, a device, keeps its label" label_is $node $label
check "restorecon is told nothing twice" test "$(<$types)" = "$before"
rm $disk $node

echo "removed"
mkdir -p $claims
echo "svirt-interpose claim 2" >$claims/c1,c2 # of a later version, which reconcile leaves
check "make remove, where a disk carries a guest's label" refused make -s -C policy remove
check "leaves everything" all_modules
check "make remove FORCE=1" make -s -C policy remove FORCE=1
rm $claims/c1,c2
check "no module is left" no_modules
check "restorecon is told of no type of ours" as_packaged
check "QEMU is a program like any other" type_is $qemu bin_t
check "root's shell executes it" $qemu -version
check "make remove, again" make -s -C policy remove
finish
