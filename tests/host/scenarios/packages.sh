# shellcheck shell=bash
# packages: a host that had nothing, README in hand: installed, upgraded under a guest, the default, purged, as before
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
has() { [ "$(dpkg-query -Wf '${db:Status-Status}' "$1" 2>/dev/null)" = "$2" ] || { dpkg-query -W "$1" && return 1; }; }
is_version() { [ "$(dpkg-query -Wf '${Version}' "$1")" = "$2" ] || { dpkg-query -W "$1" && return 1; }; }
modules() { semodule -lfull | grep -E '^[0-9]+ +svirt_interpose'; }
is_empty() { [ -z "$("$@")" ] || { "$@" && return 1; }; }
labels() { disk_label $images/one.raw && disk_label /dev/ram0; }
keep_labels() { [ "$(labels | uniq)" = "system_u:object_r:svirt_xen_image_t:s0:$(key one)" ] || { labels && return 1; }; }

# newer PACKAGE: the same as the next version.
newer() {
    local tree
    tree=$(mktemp -d)
    dpkg-deb -R packages/"$1"_*.deb "$tree/new"
    sed -i 's/^Version: .*/&+1/' "$tree/new/DEBIAN/control"
    [ "$1" != svirt-interpose ] || echo '# new' >>"$tree/new$config"
    dpkg-deb -Znone -b "$tree/new" "/root/$1.deb" >/dev/null
    rm -r "$tree"
}

# block HEADING N: the Nth of README's indented blocks there; follow: its commands, each a check.
block() {
    sed "s/\<DOMID\>/$(domid one 2>/dev/null)/" /root/README.md | awk -v heading="## $1" -v wanted="$2" '
        /^## / { here = $0 == heading }
        !here { next }
        /^    / { if (!inside) count++; inside = 1; if (count == wanted) print substr($0, 5); next }
        { inside = 0 }'
}
follow() { # HEADING N
    local command
    while read -r command; do
        case $command in
        packaging/build*) ;; # the packages are those that it built
        *) check "$command" bash -c "$command" ;;
        esac
    done < <(block "$@")
}

# A configuration that an administrator may have.
config() { # NAME DISKS
    cat <<-END_OF_CONFIG
	name = "$1"
	type = "hvm"
	memory = 32
	disk = [$2]
	vnc = 0
	nographic = 1
	vga = "none"
	on_reboot = "destroy"
	on_crash = "destroy"
	END_OF_CONFIG
}
create() { timeout 120 xl create -q "/etc/xen/$1.cfg"; }

# shellcheck source=tests/host/scenarios/bare-host
. ./bare-host
dpkg --install packages/qemu-system-xen_*.deb >/dev/null # with the documents that the test host left out
dpkg-deb --fsys-tarfile packages/svirt-interpose_*.deb | tar -xO ./usr/share/doc/svirt-interpose/README.md.gz | zcat >/root/README.md
host >/root/before
disk $images/one.raw
disk $images/two.raw
disk /dev/ram0
first=$(labels)

echo "Install"
follow Install 1
check "no file differs from what was packed" is_empty dpkg --verify "${ours[@]}"
check "svirt-interpose has its label" type_is /usr/libexec/svirt-interpose svirt_interpose_exec_t
check "so has its configuration" type_is $config svirt_interpose_conf_t
check "so has QEMU" type_is $qemu svirt_xen_exec_t
check "the modules are there, at the priority of packages" test -z "$(modules | grep -v ^200)"
check "disks that are attached will be labelled, from the next boot on" test -L /etc/systemd/system/multi-user.target.wants/svirt-interpose-watch.service

echo "Enable, for one guest"
{ config one "'$images/one.raw,raw,hda,rw', '/dev/ram0,raw,hdb,rw'" && block Enable 1; } >/etc/xen/one.cfg
check "xl create" create one || finish
check "it is confined" is_confined one
check "no denial" no_avcs

echo "under the running guest"
check "the packages are not removed" says "stays: in use by domain $(domid one) " dpkg --remove "${ours[@]}"
check "nor is svirt-interpose alone" says "guests that it started still run" dpkg --force-depends --remove svirt-interpose
for package in "${ours[@]}"; do check "$package stays as it is" has "$package" installed; done
check "its disks keep their labels" keep_labels
echo 'require = true' >>$config
for package in "${ours[@]}"; do newer "$package"; done
check "dpkg --install of newer packages" dpkg --force-confold --install /root/svirt-interpose{,-policy}.deb
for package in "${ours[@]}"; do check "$package is the newer one" is_version "$package" 0.1.0-1+1; done
check "the configuration keeps what the administrator wrote" grep -qx 'require = true' $config
check "its disks keep their labels" keep_labels
check "no denial" no_avcs

echo "Enable, for all that name none"
config two "'$images/two.raw,raw,hda,rw'" >/etc/xen/two.cfg
check "such a guest cannot start" says "Permission denied" create two
follow Enable 2
check "QEMU keeps its label under its new name" type_is $qemu.distrib svirt_xen_exec_t
check "and restorecon agrees" is_empty restorecon -nv $qemu.distrib $qemu
avcs >/dev/null
check "xl create" create two
check "it is confined" is_confined two
check "it writes to its disk" stamped $images/two.raw $images/two.raw
check "svirt-interpose-default on, again" svirt-interpose-default on
before=$(stat -c %i $qemu.distrib)
check "QEMU's package is upgraded" dpkg --install packages/qemu-system-xen_*.deb
check "QEMU is a new file" test "$(stat -c %i $qemu.distrib)" != "$before"
check "with its label" type_is $qemu.distrib svirt_xen_exec_t
check "svirt-interpose is the default" test "$(readlink $qemu)" = /usr/libexec/svirt-interpose
check "the guest is destroyed" eval 'destroy two && svirtctl reconcile'
check "it starts again" create two
check "it is confined" is_confined two

echo "Check"
busybox syslogd # every host has one
check "syslog" within 10 test -S /dev/log
restorecon /dev/log
follow Check 1
follow Check 2
follow Check 3
follow Check 4
check "no denial" no_avcs

echo "Remove"
echo "svirt-interpose claim 2" >$state/claims/c1,c2 # a later version's
check "state that a claim needs would be kept" bash -c "/var/lib/dpkg/info/svirt-interpose.postrm purge && test -e $state/claims/c1,c2"
rm $state/claims/c1,c2
check "the guests are destroyed" eval 'destroy one && destroy two'
follow Remove 1
check "the disks have their first labels" test "$(labels)" = "$first"
check "no module is left" is_empty modules
check "the host is as it was" as_before /root/before

echo "without svirt-interpose"
check "QEMU's domain is none" says "Invalid argument" runcon system_u:system_r:svirt_xen_t:s0:c1,c2 /bin/true
check "a guest that names no device model starts" create two
as_xl() { [[ $(qemu_label two) == *:unconfined_t:s0* ]] || { qemu_label two && return 1; }; }
check "QEMU runs as what xl runs as" as_xl
check "it is destroyed" destroy two
check "no denial" no_avcs
finish
