# shellcheck shell=bash
# atonce: two guests started at once on one disk, and one that keeps writing to its own all the while
#
# xl would start one after the other: each gets a lock of its own.
images=/var/lib/xen/images
state=/var/lib/svirt-interpose

said() { grep -q "$2" "/var/log/xen/qemu-dm-$1.log" || { tail -n 5 "/var/log/xen/qemu-dm-$1.log"; return 1; }; }

# The boot sector of a guest that counts in its disk's second sector with each tick of its clock (18 a second), and stops
# where a write fails:
#       xor %ax, %ax; mov %ax, %ds; mov %ax, %es; mov %ax, %ss; mov $0x7c00, %sp
# next: incl 0x7d70; mov $0x80, %dx; mov $2, %cx; mov $0x7c00, %bx; mov $0x0301, %ax; int $0x13; jc .
#       sti; hlt; jmp next
writer() { # PATH
    truncate -s 2M "$1"
    printf '\x31\xc0\x8e\xd8\x8e\xc0\x8e\xd0\xbc\x00\x7c' | dd of="$1" conv=notrunc status=none
    printf '\x66\xff\x06\x70\x7d\xba\x80\x00\xb9\x02\x00\xbb\x00\x7c\xb8\x01\x03\xcd\x13\x72\xfe\xfb\xf4\xeb\xe7' |
        dd of="$1" bs=1 seek=11 conv=notrunc status=none
    printf '\x55\xaa' | dd of="$1" bs=1 seek=510 conv=notrunc status=none
}
written() { od -An -tu4 -j880 -N4 "$1" | tr -d ' '; }
writes() { [ "$(written "$1")" -gt "$2" ]; }
# Notes how much was written, twice a second, until the file `over` exists.
watch_writes() { # PATH
    until [ -e /run/over ]; do
        written "$1"
        sleep 0.5
    done >/run/counts
}
went_on() {
    awk 'NR > 1 && $1 == last { stood++ } $1 != last { stood = 0 } stood > most { most = stood } { last = $1 }
        END { printf "%d looks, %d writes, at most %d looks in a row without one\n", NR, last - first, most; exit most > 6 }
        NR == 1 { first = $1 }' /run/counts
}

# start NAME DISK: in the background, not waiting for another.
start() {
    sed -i '/^lockfile/d' /etc/xen/xl.conf
    echo "lockfile=\"/run/lock/xl-$1\"" >>/etc/xen/xl.conf
    guest "$1" disk="$(qdisk hda "$2")" >"/run/$1.said" 2>&1 &
    # It has read its configuration when it takes its lock.
    for _ in {1..100}; do [ -e "/run/lock/xl-$1" ] || sleep 0.1; done
}
both() { # ROUND: starts two on one disk; the names of who runs and who was refused go to $winner and $loser
    local name xl xls=() started=()
    for name in "left$1" "right$1"; do
        start "$name" $images/one.raw
        xls+=("$!") # not of `jobs -p`, which forgets who has ended
    done
    for xl in "${xls[@]}"; do wait "$xl" && started+=(yes) || started+=(no); done
    case ${started[*]} in
    'yes no') winner=left$1 loser=right$1 ;;
    'no yes') winner=right$1 loser=left$1 ;;
    *) echo "started: ${started[*]}"; tail -n 3 "/run/left$1.said" "/run/right$1.said"; return 1 ;;
    esac
}

writer $images/one.raw
touch /etc/xen/xl.conf
first=$(disk_label $images/one.raw)
for round in 1 2; do
    echo "two at once, round $round"
    # not in `check`, whose subshell would keep the names
    both "$round" >/run/both.said 2>&1
    check "one starts, the other does not" test "$winner" || { cat /run/both.said; finish; }
    check "which is told who has the disk" said "$loser" "cannot label $images/one.raw: it is in use by domain "
    check "the disk is $winner's" labelled $images/one.raw "$winner"
    check "$winner writes to it" within 60 writes $images/one.raw "$(written $images/one.raw)"
    if [ "$round" = 1 ]; then
        check "destroyed" destroy "$winner"
        check "svirtctl reconcile" svirtctl reconcile
        winner=''
    fi
done

echo "another that comes later"
rm -f /run/over
watch_writes $images/one.raw &
watching=$!
for rival in third fourth; do
    start "$rival" $images/one.raw
    wait "$!" && rival="$rival, not refused"
    check "is refused" test "${rival#*,}" = "$rival"
    check "and told by whom" said "${rival%,*}" "cannot label $images/one.raw: it is in use by domain $(domid "$winner") "
done
check "svirtctl reconcile changes nothing" test -z "$(svirtctl reconcile)"
loop=$(losetup --find --partscan --show $images/one.raw)
addpart "$loop" 1 2048 1024
chcon -t fixed_disk_device_t "${loop}p1"
rival=fifth
start "$rival" "${loop}p1"
wait "$!" && rival="$rival, not refused"
check "which has but a partition of a loop device over it: is refused, too" test "$rival" = fifth
check "and told why" said fifth "cannot label ${loop}p1: it shares sectors with $images/one.raw, which is in use by domain "
losetup --detach "$loop"
touch /run/over
wait "$watching"
check "$winner wrote all the while: $(went_on)" went_on
check "and goes on" within 10 writes $images/one.raw "$(written $images/one.raw)"
check "svirtctl audit" svirtctl audit

echo "the end"
check "destroyed" destroy "$winner"
check "svirtctl reconcile" svirtctl reconcile
check "the disk's first label is back" label_is $images/one.raw "$first"
check "no claim is left" test -z "$(find $state -mindepth 2)"
check "no denial" no_avcs
finish
