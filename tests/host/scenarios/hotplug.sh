# shellcheck shell=bash
# hotplug: disks attached to running guests and taken from them, by xl alone, by hand, and by a hotplug script
# with: packaging
images=/var/lib/xen/images
state=/var/lib/svirt-interpose
said=/run/host/watch

unlabelled() { label_is "$1" "${first[$1]}"; }
opened() { find "/proc/$(qemu_pid "$1")/fd" -lname "$2" | grep -q .; }
phy() { echo "format=raw,vdev=$1,access=rw,target=$2"; }
# The guest's own driver has it.
connected() { [ "$(timeout 20 xenstore-read "/local/domain/$(domid "$1")/device/vbd/$2/state")" = 4 ]; }
watcher_said() { grep -Fq "$1" $said || { cat $said; return 1; }; }
# QEMU tries a disk before its label is there, and again afterwards.
only_too_early() {
    local denials
    denials=$(avcs | grep -Ev "\{ (open|write|read write) \} .*comm=\"xen-qemu-system\" name=\"$1\" .*:svirt_xen_t:.*:xen_image_t:")
    [ -z "$denials" ] || { echo "$denials"; return 1; }
}
# As systemd does what one of our units says: its command, with its capabilities and no others.
as_unit() {
    local unit=packaging/systemd/$1 command capabilities
    read -ra command < <(sed -n 's/^ExecStart=//p' "$unit")
    capabilities=-all$(sed -n 's/^CapabilityBoundingSet=//p' "$unit" | sed -E 's/ ?CAP_/,+/g' | tr '[:upper:]' '[:lower:]')
    as_service setpriv --bounding-set "$capabilities" "${command[@]}"
}
relabel() { svirtctl relabel "$(domid "$1")" "${@:2}"; }

declare -A first
for path in $images/{pv.raw,hvm.raw,a.qcow2,b.raw,c.raw,d.raw,e.raw,one.iso,two.iso}; do
    case $path in
    *.qcow2) disk "$path" 4M qcow2 ;;
    *) disk "$path" ;;
    esac
    first[$path]=$(disk_label "$path")
done
for path in /dev/ram{0,1}; do disk "$path" && first[$path]=$(disk_label "$path"); done
check "a PV guest" guest pv type=pv disk="$(qdisk xvda $images/pv.raw)" || finish
check "an HVM guest" guest hvm disk="$(qdisk hda $images/hvm.raw)" disk="$images/one.iso,,hdc,cdrom" || finish
avcs >/dev/null

echo "svirtctl watch"
as_unit svirt-interpose-watch.service >$said &
confined() { [[ $(ps -C svirtctl -o label=) == *:svirt_interpose_t:* ]]; }
check "runs in the interposer's domain" within 10 confined
check "a qcow2 file is attached" xl block-attach pv "$(qdisk xvdb $images/a.qcow2 qcow2)"
check "QEMU opens it" within 30 opened pv $images/a.qcow2
check "it is the guest's" labelled $images/a.qcow2 pv
check "who has it" within 30 connected pv 51728
check "a raw file is attached, for the kernel's backend" xl block-attach pv "$(phy xvdc $images/b.raw)"
check "it is the guest's" within 30 labelled $images/b.raw pv
check "who has it" within 30 connected pv 51744
check "a block device is attached to the HVM guest" xl block-attach hvm "$(phy xvdb /dev/ram0)"
check "it is the guest's" within 30 labelled /dev/ram0 hvm
check "svirtctl audit" svirtctl audit
check "no denial but of QEMU's tries" only_too_early a.qcow2

echo "a disk of another guest"
check "is attached" xl block-attach hvm "$(qdisk xvdc $images/a.qcow2 qcow2)"
check "to no avail" within 30 watcher_said "cannot label $images/a.qcow2: it is in use by domain $(domid pv) "
check "QEMU does not open it" fails opened hvm $images/a.qcow2
check "it stays the other's" labelled $images/a.qcow2 pv
xl block-detach -f hvm xvdc >/dev/null 2>&1
avcs >/dev/null

echo "a disk that only XenStore knows of"
forged=/local/domain/0/backend/qdisk/$(domid hvm)/51760 record=/libxl/$(domid hvm)/device/vbd/51760
xenstore-write "$record/backend" "$forged" "$record/mode" w "$record/params" aio:/dev/ram1 "$forged/mode" w \
    "$forged/dev" xvdd "$forged/device-type" disk "$forged/online" 1 "$forged/state" 1 "$forged/params" aio:/dev/ram1
check "is refused" within 30 watcher_said "cannot label /dev/ram1: libxl has no such disk on record"
check "and keeps its label" unlabelled /dev/ram1
check "QEMU has not opened it" fails opened hvm /dev/ram1
xenstore-rm "$forged" "$record"
avcs >/dev/null

echo "CD-ROMs"
check "one is ejected" xl cd-eject hvm hdc
check "another is inserted" xl cd-insert hvm hdc $images/two.iso
check "QEMU has it" opened hvm $images/two.iso
content() { [[ $(disk_label "$1") == *:virt_content_t:s0 ]] || { disk_label "$1"; return 1; }; }
check "every guest may read it" within 30 content $images/two.iso
check "no denial" only_too_early none

echo "detached"
for device in xvdb xvdc; do check "$device" xl block-detach pv $device; done
check "QEMU closes the file" within 30 fails opened pv $images/a.qcow2
check "svirtctl relabel, as a service" as_service svirtctl relabel "$(domid pv)"
for path in $images/a.qcow2 $images/b.raw; do check "${path##*/} has its first label" unlabelled "$path"; done
check "the guest's other disk keeps its own" labelled $images/pv.raw pv
check "another guest gets one of them" xl block-attach hvm "$(qdisk xvde $images/a.qcow2 qcow2)"
check "QEMU opens it" within 30 opened hvm $images/a.qcow2
check "no denial but of QEMU's tries" only_too_early a.qcow2

echo "by hand"
check "nobody watches" pkill -x svirtctl
check "a disk is attached" xl block-attach pv "$(qdisk xvdb $images/c.raw)"
check "QEMU cannot open it" fails opened pv $images/c.raw
check "svirtctl relabel DOMID xvdb" relabel pv xvdb
check "QEMU opens it" within 30 opened pv $images/c.raw
check "svirtctl relabel, again" test -z "$(relabel pv)"
check "no denial but of QEMU's tries" only_too_early c.raw

echo "by block-svirt"
install -m 755 packaging/xen/block-svirt /etc/xen/scripts/
restorecon /etc/xen/scripts/block-svirt
check "a disk is attached" xl block-attach pv "script=block-svirt,$(phy xvdc $images/d.raw)"
check "it is the guest's" labelled $images/d.raw pv
check "a disk of the other guest is not attached" fails xl block-attach hvm "script=block-svirt,$(phy xvdf $images/d.raw)"
check "it stays the first's" labelled $images/d.raw pv
check "a guest starts with one" guest third type=pv disk="script=block-svirt,$(phy xvda $images/e.raw)" disk="$(qdisk xvdb $images/b.raw)"
check "which is its own" labelled $images/e.raw third
check "no denial" only_too_early none

echo "the end"
for name in pv hvm third; do check "destroy $name" destroy $name; done
check "svirtctl reconcile, as its unit has it" as_unit svirt-interpose-reconcile.service
for path in "${!first[@]}"; do check "${path##*/} has its first label" unlabelled "$path"; done
check "no claim is left" test -z "$(find $state -mindepth 2)"
finish
