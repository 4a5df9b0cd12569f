# shellcheck shell=bash
# chain: two HVM guests and a PV guest started and confined
#
# The whole chain: xl create starts each guest's QEMU through svirt-interpose, with its disks labelled; QEMU without a
# guest; and nothing left behind. What one guest's QEMU may not do to another's: see attack.sh.
images=/var/lib/xen/images
interpose=/usr/libexec/svirt-interpose

is_pair() { grep -Exq 'c[0-9]+,c[0-9]+' <<<"$(key "$1")"; }
all_differ() { [ -z "$(for name; do key "$name"; echo; done | sort | uniq -d)" ]; }
opened() { find "/proc/$(qemu_pid "$1")/fd" -lname "$2" | grep -q .; }

disk $images/one-phy.raw
disk $images/one-qdisk.raw
disk $images/one.qcow2 4M qcow2
disk /dev/ram0
disk $images/one-fifth.raw
disk $images/two.raw
disk /dev/ram1
disk $images/three.raw

echo "guests"
check "one: HVM, five disks" guest one \
    disk="$images/one-phy.raw,raw,hda,rw" \
    disk="$(qdisk hdb $images/one-qdisk.raw)" \
    disk="$images/one.qcow2,qcow2,hdc,rw" \
    disk="/dev/ram0,raw,hdd,rw" \
    disk="$(qdisk xvde $images/one-fifth.raw)" || finish
check "two: HVM, a file and a block device" guest two disk="$(qdisk hda $images/two.raw)" disk="/dev/ram1,raw,hdb,rw" || finish
check "three: PV, a qdisk" guest three type=pv \
    disk="$(qdisk xvda $images/three.raw)" || finish

echo "labels"
for name in one two three; do
    check "$name: a pair of categories" is_pair "$name"
    check "$name: QEMU runs with it, as svirt_xen_t" is_confined "$name"
done
check "the pairs differ" all_differ one two three
check "raw file, phy" labelled $images/one-phy.raw one
check "raw file, qdisk" labelled $images/one-qdisk.raw one
check "qcow2 file, qdisk" labelled $images/one.qcow2 one
check "block device, phy" labelled /dev/ram0 one
check "fifth disk, qdisk" labelled $images/one-fifth.raw one
check "two's file" labelled $images/two.raw two
check "two's block device" labelled /dev/ram1 two
check "three's file" labelled $images/three.raw three

echo "guests' writes reach their disks"
for path in $images/one-phy.raw $images/one-qdisk.raw $images/one.qcow2 /dev/ram0; do
    check "$path" stamped "$path" $images/one-phy.raw
done
check "fifth disk: opened by QEMU" opened one $images/one-fifth.raw
for path in $images/two.raw /dev/ram1; do check "$path" stamped "$path" $images/two.raw; done
check "$images/three.raw" stamped $images/three.raw three
check "no denial so far" no_avcs

# shellcheck source=tests/host/scenarios/as-qemu
. ./as-qemu
in_context() { [ "$(as_qemu "$1" context)" = "$(qemu_label "$1")" ]; }

echo "what one's QEMU may do"
check "runs in its context" in_context one
check "reads its file" as_qemu one read $images/one-phy.raw
check "writes its file" as_qemu one write $images/one-phy.raw
check "reads its block device" as_qemu one read /dev/ram0
check "writes its block device" as_qemu one write /dev/ram0
check "no denial so far" no_avcs

echo "QEMU without a guest"
everything() { xenstore-ls -fp; find /var/lib/svirt-interpose -printf '%p %l %s\n' | sort; }
before=$(everything)
check "libxl's probe" runcon -l s0 python3 ./libxl-probe $interpose
check "-help" $interpose -help
check "-version" $interpose -version
leaves_nothing() { diff <(echo "$before") <(everything); }
check "nothing left in XenStore or the state directory" leaves_nothing
check "no denial so far" no_avcs

echo "the administrator's view"
check "svirtctl audit" svirtctl audit
over_xenbus() {
    local status=0
    mv /run/xenstored/socket /run/xenstored/away
    as_qemu one context || status=$?
    mv /run/xenstored/away /run/xenstored/socket
    return "$status"
}
check "a launch through /dev/xen/xenbus" over_xenbus
elsewhere() {
    local id
    id=$(domid one) && XENSTORED_PATH=/nonexistent as_probe -xen-domid "$id" context
}
check "a launch whose environment leads elsewhere" elsewhere

echo "the end"
for name in one two three; do check "destroy $name" destroy "$name"; done
no_keys() { ! xenstore-ls -f | grep selinux-mcs; }
check "no key left" no_keys
check "no denial" no_avcs
finish
