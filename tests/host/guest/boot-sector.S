# The boot sector of an HVM guest: writes a copy of itself to the second sector of every BIOS disk, then idles; or reboots,
# as often as a byte of it says.
# What arrives on a disk is therefore the boot sector of the guest that wrote it, name and all.
        .code16
        .text
        .globl  _start
_start: xor     %ax, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $0x7c00, %sp
        mov     $0x80, %dl              # first disk
disk:   push    %dx
        xor     %dh, %dh                # head 0
        mov     $0x0002, %cx            # cylinder 0, sector 2
        mov     $0x7c00, %bx            # from here
        mov     $0x0301, %ax            # write one sector
        int     $0x13
        pop     %dx
        inc     %dl
        cmp     $0x84, %dl
        jb      disk
        cmpb    $0, 0x7c00+reboots
        je      idle
        decb    0x7c00+reboots
        mov     $0x0080, %dx            # the boot disk
        mov     $0x0001, %cx            # where this came from
        mov     $0x7c00, %bx
        mov     $0x0301, %ax
        int     $0x13
        mov     $0xfe, %al              # the keyboard controller's reset line
        out     %al, $0x64
idle:   sti                             # halted with interrupts off, Xen takes it for a shutdown
        hlt
        jmp     idle
        .set    reboots, 0x17f          # written by `reboots`
        .org    0x180                   # the guest's name, up to 64 bytes: written by `disk`
        .org    510
        .word   0xaa55
