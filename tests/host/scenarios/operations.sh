# shellcheck shell=bash
# operations: what an administrator does with a guest, from a login, at s0, and from a service
#
# Every operation of xl that has to do with a device model, on an HVM guest with an emulated NIC, on dom0, and on PVH
# and PV guests, one of them started by pygrub. The hypervisor of Debian is built without shadow paging, so it cannot
# migrate a PV guest.
#
# Arguments: PLACE:GUEST,… of login, service, s0 and hvm, dom0, pvh, pygrub. All of them take long: without an argument
# each guest comes once, and none from a login, from where the other scenarios start theirs.
images=/var/lib/xen/images
state=/var/lib/svirt-interpose
saved=/var/lib/xen/save

xl() { timeout 400 xl "$@"; }
lists() { xl list "$1" | awk -v flag="$2" 'NR == 2 && $5 ~ flag { found = 1 } END { exit !found }'; }
is_gone() { ! xl domid "$1"; }
# Whether it has become another domain.
changes() { [ "$(domid "$1")" -gt "$2" ]; }
medium() { xl qemu-monitor-command "$1" "info block" | grep -q "^ide-.*$2"; }

answers() { # GUEST TEXT ANSWER: TEXT again and again, for a guest that boots hears nothing
    local log patience
    log=$(mktemp)
    for ((patience = 60; patience > 0; patience--)); do
        sleep 1
        grep -q "$3" "$log" && break
        echo "$2"
    done | { cat; printf '\035'; } | timeout 90 script -qfc "xl console $1" "$log" >/dev/null
    grep -q "$3" "$log"
}

labels() { stat -L -c '%n %C' "$@"; }
have_labels() { # LABELS DISK…
    [ "$(labels "${@:2}")" = "$1" ] || { labels "${@:2}"; return 1; }
}
have_pair() { # GUEST DISK…
    local disk
    for disk in "${@:2}"; do labelled "$disk" "$1" || return; done
}
put_back() { # LABELS DISK…
    svirtctl reconcile && have_labels "$@" && [ -z "$(find $state -mindepth 2)" ]
}

save() { # GUEST
    check "xl save" xl save "$1" "$saved/$1" || return
    check "the guest is gone" is_gone "$1"
}
restore() { # GUEST DISK…
    check "xl restore" xl restore "$saved/$1" || return
    rm "$saved/$1"
    check "QEMU is confined" is_confined "$1"
    check "its disks have its pair" have_pair "$@"
}

migrate() { # GUEST DISK…
    local was pair
    was=$(domid "$1") pair=$(key "$1")
    check "xl migrate, to this host" xl migrate -s '' "$1" "xl migrate-receive" || return
    check "is another domain" changes "$1" "$was"
    check "with the same pair" test "$(key "$1")" = "$pair"
    check "QEMU is confined" is_confined "$1"
    check "its disks have its pair" have_pair "$@"
    check "svirtctl reconcile changes nothing" test -z "$(svirtctl reconcile)"
}

pause() { # GUEST
    check "xl pause" xl pause "$1"
    check "is paused" lists "$1" p
    check "xl unpause" xl unpause "$1"
}

ends() { # GUEST
    check "svirtctl reconcile" svirtctl reconcile
    check "svirtctl audit" svirtctl audit
    check "xl shutdown" xl shutdown -F -w "$1"
    check "is gone" within 30 is_gone "$1"
    check "no denial" no_avcs
}

hvm() {
    local was first disks=("$images"/hvm.{raw,qcow2} "$images"/{one,two}.iso /dev/ram0)
    echo "HVM"
    disk $images/hvm.raw
    disk $images/hvm.qcow2 4M qcow2
    truncate -s 1M $images/one.iso $images/two.iso $images/more.raw
    reboots $images/hvm.raw 1
    first=$(labels "${disks[@]}")
    check "xl create" guest hvm disk="$images/hvm.raw,raw,hda,rw" disk="$images/hvm.qcow2,qcow2,hdb,rw" \
        disk="$images/one.iso,raw,hdc,ro,cdrom" disk="/dev/ram0,raw,hdd,rw" 'vif=["type=ioemu,bridge=xenbr0"]' 'boot="c"' \
        vnc=1 'vnclisten="127.0.0.1"' nographic=0 'vga="stdvga"' 'serial="pty"' 'on_reboot="restart"' || return
    was=$(domid hvm)
    check "xl list" lists hvm .
    check "reboots from inside" within 180 changes hvm "$was"
    check "QEMU is confined" within 120 is_confined hvm
    check "writes to its disks" stamped $images/hvm.raw $images/hvm.raw
    check "xl console" within 180 answers hvm hello HELLO
    check "its emulated NIC is in the bridge" test -e "/sys/class/net/xenbr0/brif/vif$(domid hvm).0-emu"
    check "xl vncviewer" xl vncviewer hvm
    check "xl qemu-monitor-command" xl qemu-monitor-command hvm "info status"
    pause hvm
    check "xl cd-insert" xl cd-insert hvm hdc $images/two.iso
    check "the drive has a medium" medium hvm fdset
    check "xl cd-eject" xl cd-eject hvm hdc
    check "the drive has none" medium hvm "not inserted"
    check "xl block-attach" xl block-attach hvm $images/more.raw,raw,xvde,w
    # This guest has no PV driver that could let go of it.
    check "xl block-detach --force" xl block-detach --force hvm xvde
    check "no denial" no_avcs
    save hvm
    check "svirtctl reconcile, while it is saved: all labels are back, and no claim is left" \
        within 20 put_back "$first" "${disks[@]}"
    restore hvm $images/hvm.raw $images/hvm.qcow2 /dev/ram0
    check "it goes on" within 180 answers hvm hello HELLO
    migrate hvm $images/hvm.raw $images/hvm.qcow2 /dev/ram0
    check "it goes on" within 180 answers hvm hello HELLO
    ends hvm
    check "xl create, again" guest hvm disk="$(qdisk hda $images/hvm.raw)"
    check "xl destroy" destroy hvm
    check "no denial" no_avcs
    check "svirtctl reconcile" svirtctl reconcile
}

# The backend of dom0's own disks, as Debian's init script starts it, but for the program.
pid_file=/run/qemu-dom0.pid
backend() {
    /usr/libexec/svirt-interpose -xen-domid 0 -xen-attach -name dom0 -nographic -M xenpv -daemonize \
        -monitor none -serial none -parallel none -pidfile $pid_file </dev/null
}
dom0() {
    echo "dom0"
    disk $images/dom0.qcow2 4M qcow2
    check "QEMU starts" backend
    check "as svirt_xen_host_t" grep -q ':svirt_xen_host_t:s0$' <(ps -o label= -p "$(<$pid_file)")
    check "xl block-attach 0 of a qcow2" xl block-attach 0 "$images/dom0.qcow2,qcow2,xvdf,w"
    check "is a disk of dom0's" within 20 cmp -n 383 /usr/share/svirt-host/hvm-boot-sector /dev/xvdf
    check "xl block-detach 0" xl block-detach 0 xvdf
    check "no denial" no_avcs
    kill "$(<$pid_file)"
}

paravirtual() { # KIND FORMAT
    local kind=$1 format=$2 image=$images/$1.$2 raw was more pair
    echo "$kind"
    raw=$(mktemp)
    if [ "$kind" = pygrub ]; then
        cp --sparse=always /usr/share/svirt-host/pv-disk "$raw"
    else
        truncate -s 2M "$raw"
    fi
    reboots "$raw" 1
    qemu-img convert -f raw -O "$format" "$raw" "$image"
    rm "$raw"
    truncate -s 2M "$images/$kind-two.raw" "$images/$kind-more.raw"
    check "xl create" guest "$kind" type="$kind" 'on_reboot="restart"' disk="$image,$format,xvda,rw" \
        disk="$(qdisk xvdb "$images/$kind-two.raw")" || return
    was=$(domid "$kind")
    check "reboots from inside" within 180 changes "$kind" "$was"
    # not before: pygrub would take what it hears for commands
    check "QEMU is confined" within 120 is_confined "$kind"
    check "xl console" within 180 answers "$kind" hello "$kind heard hello"
    check "writes to its disks" stamped "$images/$kind-two.raw" "$kind"
    check "writes to the first" stamped "$image" "$kind"
    check "xl qemu-monitor-command" xl qemu-monitor-command "$kind" "info status"
    pause "$kind"
    for more in "$images/$kind-more.raw xvde" "/dev/ram0 xvdf"; do
        check "xl block-attach ${more% *}" xl block-attach "$kind" "${more% *},raw,${more#* },w"
        check "writes to it" stamped "${more% *}" "$kind"
        check "xl block-detach" xl block-detach "$kind" "${more#* }"
    done
    pair=$(key "$kind")
    save "$kind"
    restore "$kind" "$images/$kind-two.raw"
    check "with the same pair, before svirtctl reconcile" test "$(key "$kind")" = "$pair"
    check "it goes on" within 180 answers "$kind" hello "$kind heard hello"
    if [ "$kind" = pvh ]; then
        migrate "$kind" "$images/$kind-two.raw"
        check "it goes on" within 180 answers "$kind" hello "$kind heard hello"
    fi
    ends "$kind"
    check "svirtctl reconcile" svirtctl reconcile
}

pvh() { paravirtual pvh raw; }
pygrub() { # which reads the qcow2 through dom0's backend
    check "QEMU for dom0 starts" backend
    paravirtual pygrub qcow2
    kill "$(<$pid_file)"
}
if [ "${GUESTS-}" ]; then
    exec </dev/null # no descriptor of the login's
    for guest in $GUESTS; do "$guest"; done
    finish
fi

check "every denial is told" tell_all
ip link add xenbr0 type bridge
ip link set xenbr0 up
mkdir -p $saved
restorecon -F $saved
cat >/usr/bin/vncviewer <<'END'
#!/bin/bash
# Is there a VNC server at ADDRESS:DISPLAY?
exec 3<>"/dev/tcp/${1%:*}/$((5900 + ${1#*:}))" && read -r -t 20 -n 3 banner <&3 && [ "$banner" = RFB ]
END
chmod 755 /usr/bin/vncviewer

[ $# -gt 0 ] || set -- service:hvm,dom0,pygrub s0:pvh
declare -A context=(
    [login]=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023
    [s0]=unconfined_u:unconfined_r:unconfined_t:s0
    [service]=system_u:system_r:initrc_t:s0
)
for argument; do
    place=${argument%:*} guests=${argument#*:}
    echo "from $place: ${context[$place]}"
    # A service may write to a pipe, but not to what is the login's.
    GUESTS=${guests//,/ } BASH_ENV=/run/host/dom0/env runcon "${context[$place]}" /bin/bash ./operations.sh 2>&1 | cat
    _failed=$((_failed + PIPESTATUS[0]))
done
finish
