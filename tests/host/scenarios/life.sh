# shellcheck shell=bash
# life: one disk, one guest: reboots, a second guest that wants it, the next one that gets it, and the end
images=/var/lib/xen/images
state=/var/lib/svirt-interpose

said() { grep -q "$2" "/var/log/xen/qemu-dm-$1.log" || { tail -n 5 "/var/log/xen/qemu-dm-$1.log"; return 1; }; }
# Asked often, and xl would take a third of the processor.
has_rebooted() { timeout 20 xenstore-exists "/local/domain/$1/selinux-mcs"; }

disk $images/a.raw
first=$(disk_label $images/a.raw)

echo "a guest that reboots ten times"
reboots $images/a.raw 10
check "starts" guest one disk="$(qdisk hda $images/a.raw)" 'on_reboot="restart"' || finish
pair=$(key one) last=$(($(domid one) + 10))
check "is another domain each time" within 600 has_rebooted "$last"
check "the last of them" test "$(domid one)" = "$last"
check "keeps its pair" test "$(key one)" = "$pair"
check "its disk carries it" labelled $images/a.raw one
check "one claim" test "$(ls $state/claims)" = "$pair"

echo "another guest that wants the disk"
check "is refused" fails guest two disk="$(qdisk hda $images/a.raw)" 2>/dev/null
check "and told who has it" said two "cannot label $images/a.raw: it is in use by domain $(domid one) "
check "the first keeps it" labelled $images/a.raw one
check "the first runs" test -d "/proc/$(qemu_pid one)"
check "svirtctl audit" svirtctl audit

echo "the next guest"
check "the first is destroyed" timeout 60 xl destroy one
check "the second gets the disk at once" guest two disk="$(qdisk hda $images/a.raw)"
check "with a pair of its own" test "$(key two)" != "$pair"
check "which the disk carries" labelled $images/a.raw two

echo "the end"
check "destroyed" destroy two
check "svirtctl reconcile" svirtctl reconcile
check "the disk's first label is back" label_is $images/a.raw "$first"
check "no claim is left" test -z "$(find $state -mindepth 2)"
check "svirtctl reconcile, again" svirtctl reconcile
check "no denial" no_avcs
finish
