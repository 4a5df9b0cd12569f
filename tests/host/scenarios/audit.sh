# shellcheck shell=bash
# audit: what auvirt and ausearch tell of guests
images=/var/lib/xen/images
log=/var/log/audit/audit.log

uuid() { basename "$(_node "$1" vm)"; }
# records TYPE NAME…: those of that type that have all these texts
records() {
    local found text
    found=$(ausearch -if $log --raw -m "$1" 2>&1) || { echo "$found" && return 1; }
    shift
    for text; do found=$(grep -F -- "$text" <<<"$found") || { ausearch -if $log --raw -m ALL | tail -n 5 && return 1; }; done
    echo "$found"
}
no_denial() { ! ausearch -if $log --raw -m AVC 2>/dev/null | grep -E ':svirt_(interpose|xen)'; }
shows() { auvirt --file $log "${@:2}" | grep -E "$1" || { auvirt --file $log --all-events && return 1; }; }

disk $images/a.raw

echo "the kernel's audit is off"
check "a guest starts" guest one disk="$(qdisk hda $images/a.raw)" || finish
check "svirt-interpose said nothing" fails grep svirt-interpose /var/log/xen/qemu-dm-one.log
destroy one

echo "auditd takes them"
mkdir -p /var/log/audit
check "auditd starts" auditd -s enable || finish
check "a guest starts" guest two disk="$(qdisk hda $images/a.raw)" || finish
check "a third is refused" fails guest three disk="$(qdisk hda $images/a.raw)" 2>/dev/null
pair=$(key two)
check "MACHINE_ID: both contexts" records VIRT_MACHINE_ID 'virt=xen vm="two"' "uuid=$(uuid two)" \
    "vm-ctx=system_u:system_r:svirt_xen_t:s0:$pair" "img-ctx=system_u:object_r:svirt_xen_image_t:s0:$pair" "res=success"
check "RESOURCE: the disk" records VIRT_RESOURCE 'vm="two"' "resrc=disk reason=start" "new-disk=\"$images/a.raw\""
check "CONTROL: the start" records VIRT_CONTROL 'vm="two"' "op=start" "vm-pid=$(qemu_pid two)" "res=success"
check "CONTROL: the refusal" records VIRT_CONTROL 'vm="three"' "op=start" "res=failed"
check "by svirt-interpose" records VIRT_CONTROL 'vm="two"' 'exe="/usr/libexec/svirt-interpose"' \
    "subj=unconfined_u:unconfined_r:svirt_interpose_t:s0-s0:c0.c1023"
check "no MACHINE_ID of the refused" fails records VIRT_MACHINE_ID 'vm="three"'
check "auvirt shows the guest" shows '^two'
check "auvirt shows its disk" shows "disk +$images/a.raw|res.*two.*$images/a.raw" --all-events
check "auvirt counts them" auvirt --file $log --summary
cp $log "$RESULTS/" 2>/dev/null
auvirt --all-events --file $log >"$RESULTS/auvirt" 2>&1
ausearch -m VIRT_MACHINE_ID -i --input-logs >"$RESULTS/ausearch" 2>&1

echo "the end"
destroy two
check "no denial" no_denial
finish
