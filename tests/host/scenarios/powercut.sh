# shellcheck shell=bash
# powercut: the power is cut while guests run: their disks are put back or given to the next when the host is up again
# then: powercut-then
images=/var/lib/xen/images
noted=/var/lib/xen/powercut # the labels and pairs, for then

mkdir $noted
truncate -s 1M $images/one.iso
for name in one two three; do disk $images/$name.raw; done
chcon -t virt_image_t $images/two.raw # not what restorecon would give it
for path in "$images"/*; do disk_label "$path" >"$noted/${path##*/}"; done
for number in 1 2 3; do
    name=$(sed -n "${number}p" <<<$'one\ntwo\nthree')
    check "$name: starts" guest "$name" disk="$(qdisk hda "$images/$name.raw")" "disk=$images/one.iso,raw,hdc,ro,cdrom" \
        "uuid=\"00000000-0000-0000-0000-00000000000$number\"" || finish
    check "$name: its disk carries its pair" labelled "$images/$name.raw" "$name"
    key "$name" >"$noted/$name"
done
check "no denial" no_avcs
sync -f $noted
finish
