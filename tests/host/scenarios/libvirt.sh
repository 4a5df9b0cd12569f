# shellcheck shell=bash
# libvirt: what Debian's libvirtd starts by its libxl driver is confined, whatever range libvirtd has
images=/var/lib/xen/images
uri=xen:///system

virsh() { timeout 120 virsh -q -c $uri "$@"; }
given_back() { label_is "$1" "$given"; }
defined() { # NAME DISK DRIVER DEVICE
    virsh define /dev/stdin <<XML
<domain type='xen'>
  <name>$1</name>
  <memory unit='MiB'>32</memory>
  <vcpu>1</vcpu>
  <os>
    <type machine='xenfv'>hvm</type>
    <loader type='rom'>/usr/lib/xen-4.17/boot/hvmloader</loader>
  </os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/libexec/svirt-interpose</emulator>
    <disk type='file' device='disk'>$3<source file='$2'/><target dev='hda'/></disk>
    $4
  </devices>
</domain>
XML
}
# At the range of other policies than Debian's, which makes it harder.
libvirtd() {
    runcon system_u:system_r:initrc_t:s0 runcon system_u:system_r:virtd_t:s0-s0:c0.c1023 /usr/sbin/libvirtd -d \
        </dev/null >/dev/null 2>&1
}

disk $images/one.raw
disk $images/two.raw
given=$(disk_label $images/one.raw)
# The QEMU driver wants a user of its own, which this host has not; and of the processors that libvirt knows, the emulated
# one is none.
rm -f /usr/lib/*/libvirt/connection-driver/libvirt_driver_qemu.so
sed -i "/name='vme'/d; /name='pse'/d" /usr/share/libvirt/cpu_map/x86_486.xml
mkdir -p /var/log/libvirt /var/lib/libvirt /run/libvirt
restorecon -R /var/log/libvirt /var/lib/libvirt /run/libvirt
export LIBVIRT_LOG_OUTPUTS=3:file:/var/log/libvirt/libvirtd.log

echo "libvirtd"
check "starts" libvirtd || finish
check "answers" within 60 virsh version || { tail -n 5 /var/log/libvirt/libvirtd.log && finish; }
unset LIBVIRT_LOG_OUTPUTS
check "in its domain, with all categories" is "$(ps -o label= -p "$(pidof libvirtd)")" system_u:system_r:virtd_t:s0-s0:c0.c1023

echo "a guest, whose disk QEMU serves"
check "virsh define" defined one $images/one.raw "<driver name='qemu' type='raw'/>" "<console type='pty'/>"
check "virsh start" virsh start one || { tail -n 20 /var/log/libvirt/libxl/*.log; finish; }
check "virsh list shows it running" grep -E ' one +running' <(virsh list)
check "is confined" is_confined one
check "its disk has its pair" labelled $images/one.raw one
check "boots from its disk, and writes" stamped $images/one.raw $images/one.raw
check "virsh suspend" virsh suspend one
check "virsh resume" virsh resume one

echo "another, whose disk libxl makes a block device of"
check "virsh define" defined two $images/two.raw "" "<graphics type='vnc' port='5901' listen='127.0.0.1'/>"
check "virsh start" virsh start two
check "is confined" is_confined two
check "its disk has its pair" labelled $images/two.raw two
check "boots from its disk, and writes" stamped $images/two.raw $images/two.raw
check "svirtctl audit" svirtctl audit

echo "a guest that is saved"
check "virsh managedsave" virsh managedsave one
check "its label is put back" svirtctl reconcile
check "now" given_back $images/one.raw
check "virsh start" virsh start one
check "is confined" is_confined one
check "its disk has its pair" labelled $images/one.raw one

echo "the end"
check "virsh destroy" virsh destroy one
check "virsh destroy" virsh destroy two
check "svirtctl reconcile" within 20 svirtctl reconcile --all
check "the labels are back" given_back $images/one.raw
check "both" given_back $images/two.raw
check "no denial" no_avcs
cp -r /var/log/libvirt "$RESULTS/"
dmesg | grep -a 'avc: *denied' >"$RESULTS/avcs"
finish
