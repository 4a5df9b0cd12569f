# shellcheck shell=bash
# moves: a guest is saved and restored and migrates to this host, and all comes back in the end
images=/var/lib/xen/images
state=/var/lib/svirt-interpose
saved=/var/lib/xen/save

no_avcs() { local found; found=$(avcs); [ -z "$found" ] || { echo "$found"; return 1; }; }
on_qdisk() { echo "disk=format=raw,vdev=$2,access=rw,backendtype=qdisk,target=$1"; }
labelled() { [[ $(disk_label "$1") == *":svirt_xen_image_t:s0:$(key "$2")" ]] || { disk_label "$1"; key "$2"; return 1; }; }
claims() { find $state/claims -type f -printf '%f\n'; }
as_at_first() {
    local path
    for path in "${!first[@]}"; do
        [ "$(disk_label "$path")" = "${first[$path]}" ] || { echo "$path: $(disk_label "$path")"; return 1; }
    done
    [ -z "$(find $state -mindepth 2)" ]
}
reconciled() { svirtctl reconcile && as_at_first; }

mkdir -p $saved
restorecon -F $saved
disk $images/one.raw
disk /dev/ram0
truncate -s 1M $images/one.iso
declare -A first=()
for path in $images/one.raw $images/one.iso /dev/ram0; do first[$path]=$(disk_label "$path"); done
disks=("$(on_qdisk $images/one.raw hda)" disk="/dev/ram0,raw,hdb,rw" disk="$images/one.iso,raw,hdc,ro,cdrom")

echo "saved and restored"
check "starts" guest one "${disks[@]}" || finish
check "xl save" timeout 120 xl save one $saved/one
check "svirtctl reconcile, while it is saved: all labels are back, and no claim is left" within 20 reconciled
check "xl restore" timeout 120 xl restore $saved/one || finish
check "the disk carries its pair" labelled $images/one.raw one
check "the block device too" labelled /dev/ram0 one
check "xl save, again" timeout 120 xl save one $saved/one
pair=$(claims | grep '^c[0-9]')
check "xl restore, before svirtctl reconcile" timeout 120 xl restore $saved/one || finish
check "the disk carries its pair" labelled $images/one.raw one
check "which is the one it had" test "$(key one)" = "$pair"

echo "migrates to this host"
pair=$(key one) was=$(domid one)
check "xl migrate" timeout 240 xl migrate -s '' one "xl migrate-receive" || finish
check "is another domain" test "$(domid one)" -gt "$was"
check "with the same pair" test "$(key one)" = "$pair"
check "which the disk carries" labelled $images/one.raw one
check "and the block device" labelled /dev/ram0 one
check "svirtctl reconcile changes nothing" test -z "$(svirtctl reconcile)"
check "svirtctl audit" svirtctl audit

echo "the end"
check "destroyed" destroy one
check "svirtctl reconcile: all labels are back, and no claim is left" reconciled
check "no denial" no_avcs
finish
