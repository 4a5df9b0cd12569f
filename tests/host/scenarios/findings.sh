# shellcheck shell=bash
# findings: doctor and audit find nothing where all is well, and then each fault that is made by hand, and nothing else
# with: packaging
images=/var/lib/xen/images
interpose=/usr/libexec/svirt-interpose
qemu=/usr/libexec/xen-qemu-system-i386
conf=/etc/svirt-interpose.conf
state=/var/lib/svirt-interpose
claims=$state/claims
types=/etc/selinux/default/contexts/customizable_types
policy=/etc/selinux/default/policy/policy.33
rule=/usr/lib/udev/rules.d/99-svirt-interpose.rules
said=/run/host/said # by doctor or audit, the last time
reports=/run/host/reports

# What doctor says: that one line is wrong, with what is to be done after its last colon.
doctor_tells() {
    local status
    svirtctl doctor >"$said"
    status=$?
    [[ $status:$(grep -v '^ok ' "$said") == 1:WRONG*"$1"*$'\nnot ready' && $(grep -c ^WRONG "$said") = 1 ]] ||
        { cat "$said" && return 1; }
}
doctor_mends() { sed -n 's/^WRONG.*: //p' "$said"; }
doctor_is_well() { svirtctl doctor >"$said" && ! grep -v '^ok ' "$said" | grep -vx ready; }

# What audit finds: one code of its JSON, and the exit status that goes with it. Each report is kept, to be validated.
audit_json() {
    local status
    svirtctl audit --json >"$said"
    status=$?
    cp "$said" "$reports/$(date +%s.%N).json"
    return $status
}
audit_tells() {
    local status found
    audit_json
    status=$?
    found=$(sed -n 's/^ *"code": "\(.*\)",$/\1/p' "$said")
    [ "$status:$found" = "1:$1" ] || { echo "exit status $status, found: $found" && svirtctl audit; return 1; }
}
audit_mends() { sed -n 's/^ *"mend": "\(.*\)"$/\1/p' "$said"; }
audit_is_well() { audit_json || { svirtctl audit && return 1; }; }
validated() {
    local report all=()
    for report in "$reports"/*; do all+=(-i "$report"); done
    [ "${#all[@]}" -gt 60 ] && python3 -m jsonschema "${all[@]}" packaging/svirtctl-audit.schema.json
}

# A fault, what doctor or audit tells of it, and how it is undone; without that, by the command that is told. That it was is
# seen by the next fault, which is then the only one.
fault() { # doctor|audit TOLD BREAK [UNDO]
    local by=$1 what=$2 undo=${4-}
    check "$3" eval "$3"
    check "is told: $what" "${by}_tells" "$what"
    [ "$undo" ] || undo=$("${by}_mends")
    check "and mended: $undo" eval "$undo"
}

syslog() {
    busybox syslogd -n >/dev/null 2>&1 &
    echo $! >/run/host/syslogd
    within 10 test -S /dev/log && restorecon /dev/log
}
no_syslog() { kill "$(</run/host/syslogd)" && rm -f /dev/log; }

echo "doctor"
check "syslog" syslog
cp $conf /root/conf
cp $types /root/types
check "the host is ready" doctor_is_well || finish
cp $said "$RESULTS/doctor"
check "and nothing was made" test ! -e $state
fault doctor "SELinux is permissive" "setenforce 0"
fault doctor "after the next boot" "sed -i s/^SELINUX=.*/SELINUX=permissive/ /etc/selinux/config" \
    "sed -i s/^SELINUX=.*/SELINUX=enforcing/ /etc/selinux/config"
fault doctor "is bin_t, not svirt_interpose_exec_t" "chcon -t bin_t $interpose"
fault doctor "is bin_t, not svirt_xen_exec_t" "chcon -t bin_t $qemu"
fault doctor "there is no $interpose" "mv $interpose $interpose.away" "mv $interpose.away $interpose"
fault doctor "is no program" "chmod -x $qemu" "chmod +x $qemu"
fault doctor "may write $interpose" "chmod g+w $interpose"
fault doctor "refusing $conf" "chmod 666 $conf" "chmod 644 $conf"
fault doctor "unknown field" "echo nonsense=1 >>$conf" "cat /root/conf >$conf"
fault doctor "does not know the context" "sed -i s/svirt_xen_image_t/no_such_t/ $conf" "cat /root/conf >$conf"
fault doctor "does not let svirt_interpose_t start" "sed -i s/svirt_xen_t/xm_t/ $conf" "cat /root/conf >$conf"
fault doctor "refusing $state" "mkdir -m 777 $state" "chmod 700 $state && restorecon $state"
fault doctor "not svirt_interpose_var_lib_t" "chcon -t var_lib_t $state"
fault doctor "restorecon would take" "sed -i /svirt_xen_image_t/d $types" "cat /root/types >$types"
fault doctor "there is no ${rule##*/}" "mv $rule /root" "mv /root/${rule##*/} $rule"
fault doctor "/etc/xen/b.cfg starts its guest" "echo 'name=\"b\"' >/etc/xen/b.cfg" "rm /etc/xen/b.cfg"
fault doctor "syslog will not tell" no_syslog syslog
check "and all is well" doctor_is_well

for name in one two install; do disk $images/$name.raw; done
disk /dev/ram0
echo "guests"
check "one: HVM, a qdisk, a block device, a read-only file" guest one disk="$(qdisk hda $images/one.raw)" \
    disk="/dev/ram0,raw,hdb,rw" disk="format=raw,vdev=hdc,access=ro,devtype=cdrom,target=$images/install.raw" || finish
check "two: HVM" guest two disk="$(qdisk hda $images/two.raw)" || finish
check "three: PV, with a screen and no disk" guest three type=pv vfb='["vnc=1,vncunused=1"]' || finish
check "a domain without a QEMU" guest none type=pv || finish
xl pause three && xl pause none # their kernels would be busy with nothing

echo "audit"
mkdir $reports
check "nothing is found" audit_is_well || finish
svirtctl audit >"$RESULTS/audit"
one=/local/domain/$(domid one) two=/local/domain/$(domid two) three=/local/domain/$(domid three) none=/local/domain/$(domid none)
pair=$(key one) third=$(key three)
[[ $pair && $third ]] || finish # commands below are made of them
fault audit selinux-permissive "setenforce 0"
fault audit context-unknown "sed -i s/svirt_xen_image_t/no_such_t/ $conf" "cat /root/conf >$conf"

echo "keys"
fault audit claim-without-key "xenstore-rm $one/selinux-mcs"
fault audit key-malformed "xenstore-write $one/selinux-mcs c1,,c2"
fault audit key-writable "xenstore-chmod $one/selinux-mcs n0 b$(domid one)"
fault audit key-differs "xenstore-write $one/selinux-mcs c1022,c1023"
fault audit comparable-sets "xenstore-write $two/selinux-mcs $pair"
fault audit key-without-claim "xenstore-write $none/selinux-mcs c1022,c1023" "xenstore-rm $none/selinux-mcs"
fault audit comparable-sets "xenstore-write $none/selinux-mcs ${pair%,*}" "xenstore-rm $none/selinux-mcs"

echo "device models"
process_at() { # LEVEL
    runcon -l "$1" sleep 1000 >/dev/null 2>&1 &
    echo $! >/run/host/process
    within 10 grep -q sleep "/proc/$!/comm"
}
gone() {
    local pid
    pid=$(</run/host/process)
    kill "$pid" && within 10 test ! -e "/proc/$pid"
}
# A claim of the domain "none", held by a process of root's own.
forge() {
    process_at s0:c1020,c1021 || return
    cat >$claims/c1020,c1021 <<END
svirt-interpose claim 1
holder domid=$(domid none) vm=$(_node none vm | sed 's,.*/,,') pid=$(</run/host/process) start=$(awk '{ print $22 }' "/proc/$(</run/host/process)/stat") boot=$(</proc/sys/kernel/random/boot_id)
END
    xenstore-write "$none/selinux-mcs" c1020,c1021 "$none/image/device-model-pid" "$(</run/host/process)"
}
unforge() {
    rm $claims/c1020,c1021
    xenstore-rm "$none/selinux-mcs" && xenstore-rm "$none/image/device-model-pid" && gone
}
fault audit device-model-unknown "xenstore-rm $one/image/device-model-pid"
fault audit device-model-unknown "xenstore-write $one/image/device-model-pid 1"
fault audit device-model-unconfined "xenstore-write $none/image/device-model-pid 1" \
    "xenstore-rm $none/image/device-model-pid"
fault audit device-model-unconfined forge unforge
fault audit device-model-label \
    "mv $claims/$third $claims/c1020,c1021 && xenstore-write $three/selinux-mcs c1020,c1021" \
    "mv $claims/c1020,c1021 $claims/$third && xenstore-write $three/selinux-mcs $third"

echo "disks"
fault audit disk-label "restorecon -F $images/one.raw"
fault audit disk-label "restorecon -F /dev/ram0"
fault audit disk-label "chcon $(disk_label $images/two.raw) $images/one.raw"
fault audit disk-label "chcon -t xen_image_t $images/install.raw"
fault audit domain-unreadable "mv $images/two.raw /root" "mv /root/two.raw $images"

echo "other processes"
fault audit foreign-set "process_at s0:$pair" gone
fault audit foreign-set "process_at s0:${pair#*,}" gone
check "one with another pair" process_at s0:c1022,c1023
check "is none of our business" audit_is_well
gone

echo "claims"
fault audit claim-unreadable "echo garbage >$claims/c1022,c1023" "rm $claims/c1022,c1023"
fault audit key-without-claim "mv $claims/$third /root/claim" "mv /root/claim $claims/$third"
check "a guest is destroyed" destroy two
check "claim-stale" audit_tells claim-stale
check "is mended by: $(audit_mends)" eval "$(audit_mends)"
check "and all is well" audit_is_well
killed=$(qemu_pid three)
check "a QEMU dies" kill -9 "$killed"
check "and is gone" within 20 test ! -e "/proc/$killed"
check "device-model-gone" audit_tells device-model-gone
for name in one three none; do destroy $name; done
check "svirtctl reconcile" svirtctl reconcile --all
check "and all is well" audit_is_well

echo "the policy"
cp $policy /root/policy
fault audit policy-version "sed s/svirt_interpose_0_1_0_t/svirt_interpose_0_0_9_t/ /root/policy >$policy && load_policy" \
    "cp /root/policy $policy && load_policy"
fault audit policy-missing "sed s/svirt_interpose_t/svirt_interposE_t/ /root/policy >$policy && load_policy" \
    "cp /root/policy $policy && load_policy"
check "a type becomes permissive" eval "cp /usr/share/svirt-host/permissive $policy && load_policy"
check "is told: type-permissive" audit_tells type-permissive
check "by doctor, too" doctor_tells "nothing is refused what runs as svirt_xen_t"
check "every report was of the schema" validated
finish
