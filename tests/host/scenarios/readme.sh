# shellcheck shell=bash
# readme: a host that had nothing, and README in hand: installed, a guest confined, removed, and the host as before
# with: packages
images=/var/lib/xen/images
# shellcheck source=tests/host/scenarios/bare-host
. ./bare-host
dpkg-deb --fsys-tarfile packages/svirt-interpose_*.deb | tar -xO ./usr/share/doc/svirt-interpose/README.md.gz | zcat >/root/README.md
host >/root/before

# block HEADING N: the Nth of its indented blocks; follow: its commands, each a check.
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
is_confined() { [[ $(qemu_label "$1") == *":svirt_xen_t:s0:$(key "$1")" ]] || { qemu_label "$1" && return 1; }; }
no_avcs() { local found; found=$(avcs); [ -z "$found" ] || { echo "$found" && return 1; }; }
create() { timeout 120 xl create -q "/etc/xen/$1.cfg"; }
# A configuration that an administrator may have.
config() { # NAME
    cat <<-END_OF_CONFIG
	name = "$1"
	type = "hvm"
	memory = 32
	disk = ["$images/$1.raw,raw,hda,rw"]
	vnc = 0
	nographic = 1
	vga = "none"
	on_reboot = "destroy"
	on_crash = "destroy"
	END_OF_CONFIG
}

disk $images/one.raw
disk $images/two.raw
first=$(disk_label $images/one.raw)
echo "Install"
follow Install 1
echo "Enable"
{ config one && block Enable 1; } >/etc/xen/one.cfg
check "for one guest: xl create" create one || finish
check "it is confined" is_confined one
follow Enable 2
config two >/etc/xen/two.cfg
check "for all that name none: xl create" create two
check "it is confined" is_confined two
check "it writes to its disk" stamped $images/two.raw $images/two.raw
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
check "the guests are destroyed" eval 'destroy one && destroy two'
follow Remove 1
check "a disk has its first label" test "$(disk_label $images/one.raw)" = "$first"
check "the host is as it was" as_before /root/before
finish
