# The boot sector of an HVM guest: writes a copy of itself to the second sector of every BIOS disk; reboots, as often as a
# byte of it says; then answers in the other case what it hears on its serial port, until its power button is pressed.
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
idle:   cli
        movw    $0x7c00+tick-_start, 0x20 # the BIOS would ask QEMU six things at each tick
        movw    $0, 0x22
wait:   sti                             # halted with interrupts off, Xen takes it for a shutdown
        hlt                             # until the timer ticks, 18 times a second
        inc     %cl
        test    $0x03, %cl
        jnz     wait
look:   mov     $0xb000, %dx            # ACPI: PM1a status
        in      %dx, %ax
        test    $0x01, %ah              # the power button
        jnz     off
        mov     $0x3fd, %dx             # COM1: line status
        in      %dx, %al
        cmp     $0xff, %al              # there is no port
        je      wait
        test    $0x01, %al              # a character has come
        jz      wait
        mov     $0x3f8, %dx
        in      %dx, %al
        test    $0x40, %al              # a letter
        jz      say
        xor     $0x20, %al
say:    out     %al, %dx
        jmp     look
off:    mov     $0xb004, %dx            # PM1a control
        mov     $0x2000, %ax            # sleep, in state S5
        out     %ax, %dx
        jmp     wait
tick:   push    %ax
        mov     $0x20, %al              # end of interrupt
        out     %al, $0x20
        pop     %ax
        iret
        .set    reboots, 0x17f          # written by `reboots`
        .org    0x180                   # the guest's name, up to 64 bytes: written by `disk`
        .org    510
        .word   0xaa55
