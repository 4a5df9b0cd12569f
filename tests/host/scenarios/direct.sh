# shellcheck shell=bash
# direct: the way to QEMU past svirt-interpose, closed by the policy
qemu=/usr/libexec/xen-qemu-system-i386
image=/var/lib/xen/images/direct.raw

refused() { # STATUS WORDS COMMAND…
    local status=$1 words=$2 output got
    shift 2
    output=$("$@" 2>&1 </dev/null)
    got=$?
    [ "$got" = "$status" ] && [[ $output == *$words* ]] && return
    echo "exit status $got: $output"
    return 1
}
direct() { guest direct disk="$(qdisk hda $image)" device_model_override="\"$qemu\""; }
no_domain() { ! domid direct 2>/dev/null; }
# shellcheck disable=SC2016 # bash's
setcon='echo -n system_u:system_r:svirt_xen_t:s0:c1,c2 >/proc/self/attr/current'

disk $image
first=$(disk_label $image)

echo "xl create with QEMU itself as device model"
check "is refused, and says why" refused 1 "device model $qemu is not executable: Permission denied" direct
check "by the kernel" avc_is '\{ execute \}.*comm="xl".*:svirt_xen_exec_t:'
check "leaves no domain" no_domain
check "leaves the disk as it was" label_is $image "$first"

echo "root's shell"
check "cannot execute QEMU in a guest's domain" refused 126 "Permission denied" runcon system_u:system_r:svirt_xen_t:s0:c1,c2 $qemu -version
check "nor another program" refused 126 "Permission denied" runcon system_u:system_r:svirt_xen_t:s0:c1,c2 /bin/true
check "for QEMU's domain" avc_is '\{ transition \}.*:unconfined_t:.*:svirt_xen_t:s0:c1,c2'
check "cannot execute QEMU in the host's domain" refused 126 "Permission denied" runcon -r unconfined_r -t svirt_xen_host_t $qemu -version
check "cannot become QEMU" refused 1 "Permission denied" bash -c "$setcon"
check "for QEMU's domain" avc_is '\{ dyntransition \}.*:unconfined_t:.*:svirt_xen_t:s0:c1,c2'
check "cannot put another program in svirt-interpose's place" refused 126 "Permission denied" runcon -t svirt_interpose_t /bin/sh -c "$qemu -version"
check "for its file" avc_is '\{ entrypoint \}.*:svirt_interpose_t:.*:shell_exec_t:'
finish
