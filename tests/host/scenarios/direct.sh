# shellcheck shell=bash
# direct: the way to QEMU past svirt-interpose, closed by the policy and open again without it
# with: policy
qemu=/usr/libexec/xen-qemu-system-i386
interpose=/usr/libexec/svirt-interpose
image=/var/lib/xen/images/direct.raw
# semodule may read root's home, not where a scenario is unpacked.
cp -r --preserve=timestamps policy /root
cd /root || exit

refused() { # STATUS WORDS COMMAND…
    local status=$1 words=$2 output got
    shift 2
    output=$("$@" 2>&1 </dev/null)
    got=$?
    [ "$got" = "$status" ] && [[ $output == *$words* ]] && return
    echo "exit status $got: $output"
    return 1
}
avc_is() { local denials; denials=$(avcs); grep -Eq "$1" <<<"$denials" || { echo "$denials" && return 1; }; }
direct() { guest direct disk="$image,raw,hda,rw" device_model_override="\"$qemu\""; }
no_domain() { ! domid direct 2>/dev/null; }
# shellcheck disable=SC2016 # bash's
setcon='echo -n system_u:system_r:svirt_xen_t:s0:c1,c2 >/proc/self/attr/current'

disk $image
first=$(disk_label $image)

echo "with the policy: xl create with QEMU itself as device model"
check "is refused, and says why" refused 1 "device model $qemu is not executable: Permission denied" direct
check "by the kernel" avc_is '\{ execute \}.*comm="xl".*:svirt_xen_exec_t:'
check "leaves no domain" no_domain
check "leaves the disk as it was" test "$(disk_label $image)" = "$first"

echo "with the policy: root's shell"
check "cannot execute QEMU in a guest's domain" refused 126 "Permission denied" runcon system_u:system_r:svirt_xen_t:s0:c1,c2 $qemu -version
check "nor another program" refused 126 "Permission denied" runcon system_u:system_r:svirt_xen_t:s0:c1,c2 /bin/true
check "for QEMU's domain" avc_is '\{ transition \}.*:unconfined_t:.*:svirt_xen_t:s0:c1,c2'
check "cannot execute QEMU in the host's domain" refused 126 "Permission denied" runcon -r unconfined_r -t svirt_xen_host_t $qemu -version
check "cannot become QEMU" refused 1 "Permission denied" bash -c "$setcon"
check "for QEMU's domain" avc_is '\{ dyntransition \}.*:unconfined_t:.*:svirt_xen_t:s0:c1,c2'
check "cannot put another program in svirt-interpose's place" refused 126 "Permission denied" runcon -t svirt_interpose_t /bin/sh -c "$qemu -version"
check "for its file" avc_is '\{ entrypoint \}.*:svirt_interpose_t:.*:shell_exec_t:'

echo "without the policy"
check "make remove" make -s -C policy remove
as_base() { local said; said=$(restorecon -nv $qemu $interpose /etc/svirt-interpose.conf $image); [ -z "$said" ] || { echo "$said" && return 1; }; }
check "every label is one of the base policy's" as_base
check "QEMU's domain is none" refused 1 "Invalid argument" runcon system_u:system_r:svirt_xen_t:s0:c1,c2 /bin/true
check "xl create with QEMU itself as device model" direct || finish
as_xl() { [[ $(qemu_label direct) == *:unconfined_t:s0* ]] || { qemu_label direct && return 1; }; }
check "it runs as what xl runs as" as_xl
check "it serves its disk" stamped $image $image
check "whose label nobody changed" test "$(disk_label $image)" = "$first"
check "destroyed" destroy direct
finish
