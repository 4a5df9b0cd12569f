# shellcheck shell=bash
# packages: installed, upgraded under a running guest, made the default, removed and purged by dpkg
# with: packages
images=/var/lib/xen/images
state=/var/lib/svirt-interpose
config=/etc/svirt-interpose.conf
qemu=/usr/libexec/xen-qemu-system-i386
ours=(svirt-interpose svirt-interpose-policy)

says() { # WORDS COMMAND…: fails, and says why
    local words=$1 output
    shift
    output=$("$@" 2>&1) && echo "it did not fail" && return 1
    [[ $output == *$words* ]] || { echo "$output" && return 1; }
}
type_is() { [[ $(disk_label "$1") == *:"$2":s0 ]] || { disk_label "$1" && return 1; }; }
is_confined() { [[ $(qemu_label "$1") == *":svirt_xen_t:s0:$(key "$1")" ]] || { qemu_label "$1" && return 1; }; }
labelled() { [[ $(disk_label "$1") == *":svirt_xen_image_t:s0:$(key "$2")" ]] || { disk_label "$1" && return 1; }; }
has() { [ "$(dpkg-query -Wf '${db:Status-Status}' "$1" 2>/dev/null)" = "$2" ] || { dpkg-query -W "$1" && return 1; }; }
is_version() { [ "$(dpkg-query -Wf '${Version}' "$1")" = "$2" ] || { dpkg-query -W "$1" && return 1; }; }
no_avcs() { local found; found=$(avcs); [ -z "$found" ] || { echo "$found" && return 1; }; }
modules() { semodule -lfull | grep -E '^[0-9]+ +svirt_interpose'; }
is_empty() { [ -z "$("$@")" ] || { "$@" && return 1; }; }

# newer PACKAGE: the same as the next version.
newer() {
    local tree
    tree=$(mktemp -d)
    dpkg-deb -R packages/"$1"_*.deb "$tree/new"
    sed -i 's/^Version: .*/&+1/' "$tree/new/DEBIAN/control"
    [ "$1" != svirt-interpose ] || echo '# new' >>"$tree/new$config"
    dpkg-deb -b "$tree/new" "/root/$1.deb" >/dev/null
    rm -r "$tree"
}

# shellcheck source=tests/host/scenarios/bare-host
. ./bare-host
dpkg --install packages/qemu-system-xen_*.deb >/dev/null # with the documents that the test host left out
host >/root/before

echo "installed"
check "dpkg --install" dpkg --install packages/svirt-interpose{,-policy}_*.deb || finish
check "no file differs from what was packed" is_empty dpkg --verify "${ours[@]}"
check "svirt-interpose has its label" type_is /usr/libexec/svirt-interpose svirt_interpose_exec_t
check "so has its configuration" type_is $config svirt_interpose_conf_t
check "so has QEMU" type_is $qemu svirt_xen_exec_t
check "the modules are there, at the priority of packages" test -z "$(modules | grep -v ^200)"
check "disks that are attached will be labelled, from the next boot on" test -L /etc/systemd/system/multi-user.target.wants/svirt-interpose-watch.service
check "no denial" no_avcs

echo "a guest that names it"
disk $images/one.raw
first=$(disk_label $images/one.raw)
check "xl create" guest one disk="$images/one.raw,raw,hda,rw" || finish
check "QEMU is confined" is_confined one
check "svirtctl audit" svirtctl audit

echo "under the running guest"
check "the packages are not removed" says "stays: in use by domain $(domid one) " dpkg --remove "${ours[@]}"
check "nor is svirt-interpose alone" says "guests that it started still run" dpkg --force-depends --remove svirt-interpose
for package in "${ours[@]}"; do check "$package stays as it is" has "$package" installed; done
check "its disk keeps its label" labelled $images/one.raw one
echo 'require = true' >>$config
for package in "${ours[@]}"; do newer "$package"; done
check "dpkg --install of newer packages" dpkg --force-confold --install /root/svirt-interpose{,-policy}.deb
for package in "${ours[@]}"; do check "$package is the newer one" is_version "$package" 0.1.0-1+1; done
check "the configuration keeps what the administrator wrote" grep -qx 'require = true' $config
check "the disk keeps its label" labelled $images/one.raw one
check "svirtctl audit" svirtctl audit
check "no denial" no_avcs

echo "the default"
unnamed() {
    sed '/^name=/d; /^disk=/d; /^device_model_override=/d' /etc/xen/one.cfg >/etc/xen/two.cfg
    printf 'name="two"\ndisk=["%s,raw,hda,rw"]\n' $images/two.raw >>/etc/xen/two.cfg
    timeout 120 xl create -q /etc/xen/two.cfg
}
disk $images/two.raw
check "a guest that names no device model cannot start" says "Permission denied" unnamed
check "svirt-interpose-default on" svirt-interpose-default on
check "QEMU keeps its label under its new name" type_is $qemu.distrib svirt_xen_exec_t
check "and restorecon agrees" is_empty restorecon -nv $qemu.distrib $qemu
avcs >/dev/null
check "the guest starts" unnamed
check "QEMU is confined" is_confined two
check "svirtctl audit" svirtctl audit
check "no denial" no_avcs
check "svirt-interpose-default on, again" svirt-interpose-default on
before=$(stat -c %i $qemu.distrib)
check "QEMU's package is upgraded" dpkg --install packages/qemu-system-xen_*.deb
check "QEMU is a new file" test "$(stat -c %i $qemu.distrib)" != "$before"
check "with its label" type_is $qemu.distrib svirt_xen_exec_t
check "svirt-interpose is the default" test "$(readlink $qemu)" = /usr/libexec/svirt-interpose
check "destroy two" destroy two
check "the guest starts" unnamed
check "QEMU is confined" is_confined two
check "destroy two" destroy two
check "no denial" no_avcs

echo "removed"
check "destroy one" destroy one
check "dpkg --remove" dpkg --remove "${ours[@]}"
check "the disk has its first label" test "$(disk_label $images/one.raw)" = "$first"
check "the configuration is kept" test -f $config
check "no module is left" is_empty modules
check "QEMU is in its place" test -f $qemu -a ! -L $qemu
check "a guest that names no device model starts" unnamed
check "destroy two" destroy two

echo "purged"
rm /etc/xen/{one,two}.cfg
mkdir -p $state/claims
echo "svirt-interpose claim 2" >$state/claims/c1,c2 # a later version's
check "state that a claim needs is kept" bash -c "/var/lib/dpkg/info/svirt-interpose.postrm purge && test -e $state/claims/c1,c2"
rm $state/claims/c1,c2
check "dpkg --purge" dpkg --purge "${ours[@]}"
check "the host is as it was" as_before /root/before
check "no denial" no_avcs
finish
