# shellcheck shell=bash
# attack: what a QEMU that was broken into may try, each refused by the kernel
#
# A program in the place of one's QEMU, in its exact context, tries everything below. Refused means: the errno is the
# kernel's for no permission, and the kernel logged the denial that is expected, of that very attempt.
images=/var/lib/xen/images
state=/var/lib/svirt-interpose
qemu=/usr/libexec/xen-qemu-system-i386
interpose=/usr/libexec/svirt-interpose
# shellcheck source=tests/host/scenarios/as-qemu
. ./as-qemu

whats=() wants=() tries=()
try() { # PERMISSION CLASS WHAT ATTEMPT [TARGET]
    wants+=("$1 $2") whats+=("$3") tries+=("$4" "${5-}")
}
may() { # WHAT ATTEMPT [TARGET]
    wants+=("") whats+=("$1") tries+=("$2" "${3-}")
}
verdict() { # NUMBER
    local number=$1 verdict=${verdicts[$1]-} want=${wants[$1]}
    if [ -z "$want" ]; then
        [ "$verdict" = allowed ] && return
    elif [[ $verdict == "Permission denied" || $verdict == "Operation not permitted" ]]; then
        [[ $denied == *" try$((number + 1)) $want;"* ]] && return
    fi
    printf '%s\n' "$verdict" "$(grep "comm=\"try$((number + 1))\"" <<<"$denials")"
    return 1
}
# Runs what was collected since the last time, in one launch.
as_one() {
    local verdicts denials denied='' number
    avcs >/dev/null
    mapfile -t verdicts < <(as_qemu one "${tries[@]}")
    denials=$(avcs)
    # " tryN PERMISSION CLASS;" for each
    denied=$(sed -nE "s/.*\{ (.*) \}.* comm=\"(try[0-9]+)\".* scontext=$(qemu_label one) .*tclass=([a-z0-9_]+).*/ \2 \1 \3;/p" <<<"$denials")
    for number in "${!wants[@]}"; do check "${whats[number]}" verdict "$number"; done
    whats=() wants=() tries=()
}

modprobe -a tun xen-netback
restorecon -R /dev/net
disk $images/one.raw
disk /dev/ram0
disk $images/two.raw
disk /dev/ram1
check "one: a file and a block device" guest one disk="$images/one.raw,raw,hda,rw" disk="/dev/ram0,raw,hdb,rw" || finish
check "two: the same, a serial port, VNC and a NIC" guest two disk="$images/two.raw,raw,hda,rw" disk="/dev/ram1,raw,hdb,rw" \
    serial='"pty"' vnc=1 'vif=["model=e1000,script=/bin/true"]' || finish
one=$(key one) two=$(key two)
id=$(domid two) pid=$(qemu_pid two)
loop=$(losetup -nO NAME -j $images/two.raw)
tty=$(_node two serial/0/tty) console=$(_node two console/tty) vnc=$(_node two console/vnc-port)

# What an administrator's host has.
mkdir -p /var/lib/xen/save
echo state >/var/lib/xen/save/two
cp $images/two.raw $images/new.raw
ln -s $images/two.raw /tmp/two
cp $images/two.raw /run/xen/disk
chcon --reference=$images/two.raw /run/xen/disk
mount -t cgroup2 none /sys/fs/cgroup
perl -MSocket -e '
    sub served { my ($family, $address) = @_; socket(my $socket, $family, SOCK_STREAM, 0); bind($socket, $address); listen($socket, 5); $socket }
    my @open = (map({ served(AF_UNIX, pack_sockaddr_un($_)) } "/run/daemon", "\0daemon"), served(AF_INET, pack_sockaddr_in(7777, INADDR_ANY)));
    sleep(600)' &
daemon=$!
module=$(find /lib/modules -name 'ext4.ko*')
reboot=4276215469,672274793,0

echo "what one's QEMU may do"
may "read its file" read $images/one.raw
may "write its file" write $images/one.raw
may "read its block device" read /dev/ram0
may "write its block device" write /dev/ram0
may "connect to XenStore" connect /run/xenstored/socket
may "listen at a name in /run/xen" listen /run/xen/qmp-attack
may "remove that name" unlink /run/xen/qmp-attack
may "make a tap" tap vif0.0-emu
may "listen at a VNC port" bind 5901
as_one

echo "other disks and files"
try read file "read two's file" read $images/two.raw
try write file "write two's file" write $images/two.raw
try append file "append to two's file" append $images/two.raw
try read file "read it through a symlink" read /tmp/two
try create lnk_file "make a symlink to it" symlink "$images/two.raw>/run/xen/two"
try write dir "give it another name beside it" link "$images/two.raw>$images/mine"
try link file "give it another name where QEMU may make names" link '/run/xen/disk>/run/xen/mine'
try write dir "put its own in its place" rename "$images/one.raw>$images/two.raw"
try read blk_file "read two's block device" read /dev/ram1
try write blk_file "write two's block device" write /dev/ram1
try read blk_file "read the loop device of two's file" read "$loop"
try read blk_file "read dom0's own disk" read /dev/vda
try write blk_file "write dom0's own disk" write /dev/vda
try read blk_file "read a block device that is no guest's yet" read /dev/ram3
try open file "read an image that is no guest's yet" read $images/new.raw
try write file "write an image that is no guest's yet" write $images/new.raw
try open file "read two's saved state" read /var/lib/xen/save/two
try open file "append to two's log" append /var/log/xen/qemu-dm-two.log
try read file "read two's log" read /var/log/xen/qemu-dm-two.log
try read file "read /etc/shadow" read /etc/shadow
try write file "write /etc/passwd" write /etc/passwd
try create file "make a setuid program in /run/xen" create /run/xen/program
try write dir "make a setuid program in /tmp" create /tmp/program
try write dir "make a setuid program in /usr/bin" create /usr/bin/program
try setattr file "make its own disk a setuid program" chmod $images/one.raw
try setattr file "make the shell a setuid program" chmod /bin/sh
try mknod capability "make a device node" call 133,/run/xen/node,24960,259
as_one

echo "two's QEMU, and others"
try ptrace process "attach to it" attach "$pid"
try ptrace process "read its memory" memory "$pid"
try search dir "open its memory in /proc" write "/proc/$pid/mem"
try search dir "list its descriptors" list "/proc/$pid/fd"
try ptrace process "take one of its descriptors" getfd "$pid"
try signal process "signal it" signal "$pid"
try signull process "ask whether it is there" exists "$pid"
try setrlimit process "limit it" call "302,$pid,7,z16,0"
try setsched process "slow it down" call "141,0,$pid,5"
try write sock_file "connect to its QMP socket" connect "/run/xen/qmp-libxl-$id"
try unlink sock_file "remove that socket" unlink "/run/xen/qmp-libxl-$id"
try rename sock_file "put its own socket in that place" rename "/run/xen/qmp-libxl-$(domid one)>/run/xen/qmp-libxl-$id"
try connect tcp_socket "connect to its VNC port" dial "$vnc"
try read chr_file "read its serial port" read "$tty"
try write chr_file "write its serial port" write "$tty"
try read chr_file "read its console" read "$console"
try relabelfrom tun_socket "attach to its tap" tap "vif$id.0-emu"
try ptrace process "attach to xenstored" attach "$(pgrep -o xenstored)"
try ptrace process "attach to root's shell" attach $$
try signal process "signal root's shell" signal $$
try signal process "signal init" signal 1
as_one

echo "labels, programs, claims"
try relabelfrom file "give its own disk away" relabel "$images/one.raw>system_u:object_r:xen_image_t:s0"
try relabelfrom blk_file "give its own block device away" relabel "/dev/ram0>system_u:object_r:fixed_disk_device_t:s0"
try relabelfrom file "give itself two's disk" relabel "$images/two.raw>system_u:object_r:svirt_xen_image_t:s0:$one"
try relabelfrom file "make /etc/shadow a disk" relabel '/etc/shadow>system_u:object_r:xen_image_t:s0'
try write file "become two's QEMU" attr "current>system_u:system_r:svirt_xen_t:s0:$two"
try write file "become one without a pair" attr "current>system_u:system_r:svirt_xen_t:s0"
try write file "execute as two's QEMU" attr "exec>system_u:system_r:svirt_xen_t:s0:$two"
try write file "execute as no guest's" attr "exec>system_u:system_r:svirt_xen_host_t:s0"
try write file "make files with another label" attr "fscreate>system_u:object_r:bin_t:s0"
try write file "make sockets with two's pair" attr "sockcreate>system_u:system_r:svirt_xen_t:s0:$two"
try execute file "execute the shell" exec /bin/sh
try execute file "execute svirt-interpose" exec $interpose
try execute_no_trans file "execute QEMU again" exec $qemu
try execute file "execute xl" exec /usr/sbin/xl
try write file "write svirt-interpose" write $interpose
try write file "write QEMU" write $qemu
try write file "write the configuration" write /etc/svirt-interpose.conf
try read dir "list the claims" list $state/claims
try read file "read two's claim" read "$state/claims/$two"
try append file "append to its own claim" append "$state/claims/$one"
try write dir "make a claim" create $state/claims/c1,c2
try write dir "remove two's claim" unlink "$state/claims/$two"
try write dir "own an object" symlink "../claims/$one>$state/objects/block-1:3"
as_one

echo "the kernel"
try read chr_file "open /dev/mem" read /dev/mem
try read chr_file "open /dev/port" read /dev/port
try read chr_file "open /dev/kmsg" read /dev/kmsg
try read file "open /proc/kcore" read /proc/kcore
try read file "load a module" module "$module"
try sys_module capability "unload a module" call 176,tun,0
try search dir "set core_pattern" put '/proc/sys/kernel/core_pattern>|/bin/sh'
try write file "use SysRq" put '/proc/sysrq-trigger>h'
try write file "write sysfs" put '/sys/class/net/lo/mtu>1000'
try write dir "make a cgroup" mkdir /sys/fs/cgroup/attack
try write file "switch enforcing off" put '/sys/fs/selinux/enforce>0'
try write file "load a policy" put '/sys/fs/selinux/load>none'
try mounton dir "mount" call 165,none,/mnt,tmpfs,0,0
try sys_admin capability "unmount" call 166,/proc,0
try sys_admin capability "change the root of all" call 155,/,/
try sys_admin capability "set the host's name" call 170,attack,6
try sys_admin capability "swap" call 167,/tmp/two,0
try sys_boot capability "reboot" call "169,$reboot"
try sys_boot capability "load another kernel" call 246,0,0,0,0
try sys_time capability "set the clock" call 227,0,z16
try sys_rawio capability "use I/O ports" call 172,3
try syslog capability2 "read the kernel's log" call 103,3,z16,16
try bpf capability2 "bpf()" call 321,0,z72,72
try sys_admin capability "perf_event_open()" call 298,z112,0,4294967295,4294967295,0
try create anon_inode "userfaultfd()" call 323,1
try create anon_inode "io_uring_setup()" call 425,8,z120
try sys_admin capability "fanotify_init()" call 300,0,0
try write key "add a key" call 248,user,attack,key,3,4294967294
try create shm "make shared memory" call 29,0,4096,896
try write dir "make a message queue" call 240,attack,66,384,0
try execmem process "execute memory that it wrote" executable 34
try execmem process "execute shared memory that it wrote" executable 33
try execstack process "execute its stack" stack
try map file "execute its disk" map $images/one.raw
try write file "write its own program" patch libc
# In a user namespace of its own: the last, as it does not come back.
may "make a user namespace" call 272,268435456
try sys_admin cap_userns "and a network in it" call 272,1073741824
try sys_admin cap_userns "and mounts in it" call 272,131072
as_one

echo "the network and other daemons"
try connect tcp_socket "connect by TCP" dial 7777
try name_bind tcp_socket "listen at port 80" bind 80
try name_bind tcp_socket "listen at port 8080" bind 8080
try create udp_socket "send datagrams" socket 2,2,0
try create rawip_socket "open a raw socket" socket 2,3,1
try create packet_socket "open a packet socket" socket 17,3,768
try create netlink_route_socket "change routes" socket 16,3,0
try create netlink_netfilter_socket "change the firewall" socket 16,3,12
try create netlink_audit_socket "change audit rules" socket 16,3,9
try create vsock_socket "open a vsock" socket 40,1,0
try create unix_dgram_socket "write to syslog" socket 1,2,0
try ioctl unix_stream_socket "take an interface down" interface lo
try write sock_file "connect to a daemon's socket" connect /run/daemon
try connectto unix_stream_socket "connect to an abstract one" connect @daemon
try write dir "listen in /tmp" listen /tmp/socket
as_one

# The kernel closes on the way what QEMU may not have: svirt-interpose may not either.
echo "a descriptor of two's disk, handed down by root's shell"
closed() { # CLASS
    local denials
    denials=$(avcs)
    grep -Eq "\{ read( write)? \}.*comm=\"svirt-interpose\".*tcontext=.*:svirt_xen_image_t:s0:$two tclass=$1" <<<"$denials" ||
        { echo "$denials" && return 1; }
}
gone() { [ "$(as_qemu one fd "$1")" = "No data available" ]; }
exec 8<$images/two.raw
check "there is nothing behind it: the file" gone 8
check "for its label" closed file
exec 8<>/dev/ram1
check "there is nothing behind it: the block device" gone 8
check "for its label" closed blk_file
exec 8<&-

# QEMU's connection to XenStore is dom0's. What it says there gives nobody two's pair or two's disk.
echo "forging in XenStore"
says() { # STATUS WORDS COMMAND…
    local status=$1 words=$2 output got
    shift 2
    output=$("$@" 2>&1 </dev/null)
    got=$?
    [ "$got" = "$status" ] && [[ $output == *$words* ]] && return
    echo "exit status $got: $output"
    return 1
}
# A domain to come, and its launch with these categories to choose from.
home=/local/domain/99 backend=/local/domain/0/backend/vbd/99/768
xenstore-write $home/vm /vm/to-come $home/name to-come
spare=$(for category in c0 c1 c2; do [[ ,$two, == *",$category,"* ]] || echo "$category"; done | head -n 1)
launch() { timeout 20 runcon "unconfined_u:unconfined_r:svirt_interpose_t:s0-s0:$1" $interpose -xen-domid 99 -version; }
check "one's QEMU makes two's key its own" as_qemu one xswrite "/local/domain/$id/selinux-mcs>$one"
check "svirtctl audit tells" says 1 "domain $id: $one is published for it, which does not keep it apart from domain " svirtctl audit
check "two's pair is not to be had" says 125 "cannot find a free pair of categories" launch "$two"
check "one's QEMU removes it" as_qemu one xsremove "/local/domain/$id/selinux-mcs"
check "svirtctl audit tells" says 1 "domain $id: $two is claimed for it, but not published" svirtctl audit
check "one's QEMU removes the pid of two's, too" as_qemu one xsremove "/local/domain/$id/image/device-model-pid"
check "svirtctl audit tells" says 1 "domain $id: process $pid holds its claim, but XenStore names none as its device model" svirtctl audit
xenstore-write "/local/domain/$id/image/device-model-pid" "$pid"
check "two's pair is not to be had" says 125 "cannot find a free pair of categories" launch "$two"
check "with one category more, another is" launch "$two,$spare"
other_pair() { key=$(xenstore-read $home/selinux-mcs) && [ "$key" != "$two" ]; }
check "which is not two's" other_pair
forged_disk() {
    as_qemu one xswrite "$backend/mode>w" xswrite "$backend/type>phy" xswrite "$backend/params>$images/two.raw" \
        xswrite "$backend/physical-device-path>$images/two.raw"
}
check "one's QEMU makes two's disk that of a domain to come" forged_disk
check "whose launch is refused" says 125 "cannot label $images/two.raw: it is in use by domain $id " launch c0.c1023
check "two's disk keeps its label" label_is $images/two.raw "system_u:object_r:svirt_xen_image_t:s0:$two"

# The answer to what else it may say there.
echo "a guest with dm_restrict"
echo 'xen-qemuuser-range-base:x:131072:131072::/:/usr/sbin/nologin' >>/etc/passwd
disk $images/three.raw
check "three" guest three disk="$(qdisk hda $images/three.raw)" dm_restrict=1 || finish
pid=$(qemu_pid three)
connected() { ss -xpH state established | grep -q "pid=$1,"; }
check "its QEMU is not connected to XenStore" fails connected "$pid"
check "as one's is" connected "$(qemu_pid one)"
check "it is not root" test "$(stat -c %u "/proc/$pid")" = $((131072 + $(domid three)))
check "and sees an empty directory" test "$(readlink "/proc/$pid/root")" = "/run/xen/qemu-root-$(domid three)"
check "it serves its disk" stamped $images/three.raw $images/three.raw

kill "$daemon"
for name in one two three; do destroy "$name"; done
finish
