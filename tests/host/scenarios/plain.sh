# shellcheck shell=bash
# plain: who may run Xen's QEMU, and as what
# tier: plain
qemu=/usr/libexec/xen-qemu-system-i386
interpose=/usr/libexec/svirt-interpose
state=/var/lib/svirt-interpose

refused() { # STATUS WORDS COMMAND…
    local status=$1 words=$2 output got
    shift 2
    output=$(timeout 20 "$@" 2>&1 </dev/null)
    got=$?
    [ "$got" = "$status" ] && [[ $output == *$words* ]] && return
    echo "exit status $got: $output"
    return 1
}
# shellcheck source=tests/host/scenarios/as-qemu
. ./as-qemu
host_context() { as_probe context | tee /dev/stderr | grep -q ':svirt_xen_host_t:'; }

echo "labels"
check "$interpose" type_is $interpose svirt_interpose_exec_t
check "$qemu" type_is $qemu svirt_xen_exec_t
check "/etc/svirt-interpose.conf" type_is /etc/svirt-interpose.conf svirt_interpose_conf_t

echo "a root login"
check "starts QEMU through svirt-interpose: -version" $interpose -version
check "starts QEMU through svirt-interpose: -help" $interpose -help
check "which is svirt_xen_host_t without a guest" host_context
check "no denial so far" no_avcs
check "cannot run QEMU itself" refused 126 "Permission denied" bash -c "exec $qemu -version"
check "for its type" avc_is '\{ execute \}.*:unconfined_t:.*:svirt_xen_exec_t:'
check "cannot enter a guest's domain" refused 126 "Permission denied" runcon system_u:system_r:svirt_xen_t:s0:c1,c2 /bin/true
check "for its own domain" avc_is '\{ transition \}.*:unconfined_t:.*:svirt_xen_t:s0:c1,c2'

echo "a guest, without a XenStore"
check "is refused" refused 125 "svirt-interpose: " $interpose -xen-domid 1
nothing_claimed() { ! find $state -mindepth 2 2>/dev/null | grep .; }
check "and leaves nothing" nothing_claimed
check "no denial" no_avcs
finish
