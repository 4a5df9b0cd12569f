# shellcheck shell=bash
# labels: a running guest's disks keep their labels through restorecon and udev, and svirtctl audit tells of one that did not
images=/var/lib/xen/images
file=$images/a.raw
node=/dev/ram0
loop=/dev/loop9
rules=/usr/lib/udev/rules.d/99-svirt-interpose.rules
more_rules=/run/udev/rules.d/10-scenario.rules

owned() { find /var/lib/svirt-interpose/objects -name "*.$1" | grep .; }
kept() { local path; for path; do label_is "$path" "$given" || return; done; }
# What validatetrans refuses is in the kernel's log, but no avc.
refusals() { dmesg | grep -c 'security_validate_transition.*:udev_t:'; }
no_refusals() { [ "$(refusals)" = "$before" ]; }

# As init does; a root login may not.
udevd() {
    mkdir -p /run/udev/rules.d
    restorecon -RF /run/udev
    runcon system_u:system_r:initrc_t:s0 /bin/sh -c '/lib/systemd/systemd-udevd --daemon'
    [[ $(ps -C systemd-udevd -o label=) == *:udev_t:* ]]
}
event() { udevadm control --reload && timeout 60 udevadm trigger --settle --action="$1" --sysname-match="${2#/dev/}"; }
with_rule() { # RULE ACTION NODE: that event, with one more rule
    local status
    echo "$1" >$more_rules
    event "$2" "$3"
    status=$?
    rm $more_rules
    return "$status"
}
# The device itself goes, with its node, and another comes under its number.
loop_control() { perl -e 'open(F, "+<", "/dev/loop-control") and ioctl(F, $ARGV[0], $ARGV[1] + 0) or die("$!\n")' "$@"; }
renew() { loop_control $((0x4c81)) 9 && [ ! -e $loop ] && loop_control $((0x4c80)) 9 && timeout 60 udevadm settle; }
audit_says() {
    local said status
    said=$(svirtctl audit)
    status=$?
    echo "$said"
    [ "$status" = 1 ] && grep -Fqx "$1" <<<"$said"
}
sentence() { echo "domain $(domid one): its disk $1 is labelled $(disk_label "$1"), not $given: chcon $given '$1'"; }

disk $file
first=$(disk_label $file)
truncate -s 2M $images/loop.raw
losetup $loop $images/loop.raw
check "a guest" guest one disk="$(qdisk hda $file)" disk="$(qdisk hdb $node)" disk="$(qdisk hdc $loop)" || finish
given=system_u:object_r:svirt_xen_image_t:s0:$(key one)
check "has its label on all of its disks" kept $file $node $loop $images/loop.raw

echo "restorecon"
check "restorecon -R" restorecon -R $images /dev
check "a relabel of the host" setfiles /etc/selinux/default/contexts/files/file_contexts $images /dev
check "the policy loaded again" load_policy
check "every disk keeps its label" kept $file $node $loop $images/loop.raw

echo "udev"
check "runs" udevd
before=$(refusals)
check "a guest's device is added once more" event add $node
check "it keeps its label" kept $node
check "it changes its mode" with_rule 'KERNEL=="ram0", MODE="0640"' change $node
check "udev did that" test "$(stat -c %a $node)" = 640
check "it keeps its label" kept $node
check "which udev did not try to change" no_refusals
chcon -t device_t /dev/ram1
check "another device is added" event add /dev/ram1
check "it has the policy's label" type_is /dev/ram1 fixed_disk_device_t
check "a rule that gives it the guest's" with_rule "KERNEL==\"ram1\", SECLABEL{selinux}=\"$given\"" add /dev/ram1
check "is refused by the kernel" type_is /dev/ram1 fixed_disk_device_t
mv $rules /root
check "without our rule, the guest's is added" event add $node
mv /root/${rules##*/} $rules
check "the kernel keeps its label" kept $node
check "svirtctl audit" svirtctl audit
check "no denial" no_avcs

echo "what does reset a label"
for path in $file $node; do
    check "restorecon -F $path" restorecon -F "$path"
    said=$(sentence "$path")
    check "svirtctl audit says so" audit_says "$said"
    check "and how to mend it" eval "${said##*: }"
    check "which does" kept "$path"
done
chcon -t xen_image_t $file
check "svirtctl audit tells of a type alone, too" audit_says "$(sentence $file)"
check "which is mended" chcon "$given" $file
check "svirtctl audit" svirtctl audit
avcs >/dev/null # the guest may have written meanwhile

echo "a node that dies"
check "the guest is destroyed" destroy one
losetup -d $loop
check "its device is gone, another has the number" renew
check "which a claim still owns" owned block-7:9
check "it has the policy's label" type_is $loop fixed_disk_device_t
check "svirtctl reconcile" svirtctl reconcile
check "no disk has a guest's label" fails grep :svirt_xen_image_t: <(stat -c %C $file $node $loop $images/loop.raw)
check "the first label of the file is back" label_is $file "$first"
check "no denial" no_avcs
finish
