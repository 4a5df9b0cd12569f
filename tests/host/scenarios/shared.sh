# shellcheck shell=bash
# shared: guests that write the same disks, a file and a block device
images=/var/lib/xen/images
conf=/etc/svirt-interpose.conf
file=$images/cluster.raw device=/dev/ram0

labels() { disk_label $file && disk_label $device; }
is_shared() { [ "$(labels | sort -u)" = system_u:object_r:svirt_xen_shared_image_t:s0 ] || { labels; return 1; }; }
denied() { avcs | grep -q 'svirt_xen_shared_image_t'; }
opened() { find "/proc/$(qemu_pid "$1")/fd" -lname "$2" | grep -q .; }
has_both() { within 20 opened "$1" $file && within 20 opened "$1" $device; }

disk $file
disk $device
disk $images/three.raw
first=$(labels)
sed -i "s|^#shared_disks = .*|shared_disks = [\"$file\", \"$device\"]|" $conf
avcs >/dev/null

echo "while the boolean is off"
check "a guest does not start" fails guest one disk="$(qdisk hda $file)" disk="$(qdisk hdb $device)" 2>/dev/null
check "as its QEMU may not open the disk" denied
check "svirtctl reconcile" svirtctl reconcile
check "the disks have their first labels" test "$(labels)" = "$first"

echo "guests that share them"
setsebool svirt_xen_use_shared_disks on
for name in one two; do
    check "$name starts, a PV guest" guest $name type=pv disk="$(qdisk xvda $file)" disk="$(qdisk xvdb $device)" || finish
    check "its QEMU has both disks" has_both $name
    check "they carry no categories" is_shared
    check "it writes the file" stamped $file $name
    check "and the device" stamped $device $name
done
check "three starts, an HVM guest with a boot disk of its own" guest three disk="$(qdisk hda $images/three.raw)" \
    disk="$(qdisk xvde $file)" disk="$(qdisk xvdf $device)" || finish
check "its QEMU has both disks" has_both three
check "they carry no categories" is_shared
check "its boot disk carries its own" labelled $images/three.raw three
check "four starts, from a service, with a loop device of the file" as_service guest four type=pv \
    disk="$file,raw,xvda,rw" disk="$(qdisk xvdb $device)"
check "it writes the file" stamped $file four
check "a pair each" test "$(for name in one two three four; do key $name; done | sort -u | wc -l)" = 4
check "svirtctl audit" svirtctl audit

echo "three of them"
for name in one three four; do check "$name is destroyed" destroy $name; done
check "svirtctl reconcile" svirtctl reconcile
check "the disks stay the other's" is_shared
check "whose QEMU has them" has_both two

echo "the end"
check "destroyed" destroy two
check "svirtctl reconcile" svirtctl reconcile
check "the disks have their first labels" test "$(labels)" = "$first"
check "no claim is left" test -z "$(find /var/lib/svirt-interpose -mindepth 2)"
check "no denial" no_avcs
finish
