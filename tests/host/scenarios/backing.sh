# shellcheck shell=bash
# backing: two guests whose disks stand on one template, and one whose disk names what is none
images=/var/lib/xen/images
templates=$images/templates
conf=/etc/svirt-interpose.conf

labels() { local path; for path; do disk_label "$path"; done | sort -u; }
said() { grep -qF "$2" "/var/log/xen/qemu-dm-$1.log" || { tail -n 5 "/var/log/xen/qemu-dm-$1.log"; return 1; }; }
size() { stat -c %s "$1"; }
grown() { [ "$(size "$1")" -gt "$empty" ]; }
booted_from() { [ "$(stamp "$1")" = "$2" ] || { stamp "$1"; return 1; }; }
overlay() { qemu-img create -q -f qcow2 -b "$2" -F "$3" "$1"; }

mkdir $templates
disk $templates/base.raw
overlay $templates/golden.qcow2 base.raw raw
for name in one two; do overlay $images/$name.qcow2 templates/golden.qcow2 qcow2; done
first=$(labels $templates/*)
empty=$(size $images/one.qcow2)

echo "without a word of the administrator's"
check "a guest on a template does not start" fails guest one disk="$(qdisk hda $images/one.qcow2 qcow2)" 2>/dev/null
check "the template keeps its label" test "$(labels $templates/*)" = "$first"
sed -i "s|^#backing_dirs = .*|backing_dirs = [\"$templates\"]|" $conf
check "nor does it while the boolean is off" fails guest one disk="$(qdisk hda $images/one.qcow2 qcow2)" 2>/dev/null
check "and is told so" said one "cannot read its header: setsebool -P svirt_interpose_read_image_headers on"
check "the template keeps its label" test "$(labels $templates/*)" = "$first"
avcs >/dev/null

echo "two guests on one template"
setsebool svirt_interpose_read_image_headers on
for name in one two; do
    check "$name starts" guest $name disk="$(qdisk hda $images/$name.qcow2 qcow2)" || finish
    # QEMU keeps the map of what was written to itself until it ends, but not what was written
    check "$name writes its own disk" within 120 grown $images/$name.qcow2
done
check "the template is content" test "$(labels $templates/*)" = system_u:object_r:virt_content_t:s0
check "svirtctl reconcile: those that did not start are forgotten" svirtctl reconcile
check "svirtctl audit" svirtctl audit

echo "a disk that names what is no template"
disk $images/secret.raw
check "one is destroyed" destroy one
check "it booted from the template" booted_from $images/one.qcow2 $templates/base.raw
qemu-img rebase -u -f qcow2 -b secret.raw -F raw $images/one.qcow2
check "it does not start" fails guest one disk="$(qdisk hda $images/one.qcow2 qcow2)" 2>/dev/null
check "and is told why" said one "$images/secret.raw is in none of the directories that backing_dirs names in $conf"
check "the file keeps its label" test "$(labels $images/secret.raw)" = "$first"

echo "the end"
check "two is destroyed" destroy two
check "it booted from the template too" booted_from $images/two.qcow2 $templates/base.raw
check "svirtctl reconcile" svirtctl reconcile
check "the template has its first label" test "$(labels $templates/*)" = "$first"
check "no denial" no_avcs
finish
