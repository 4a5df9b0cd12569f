/*
 * Preloaded into Debian's own xenstored or oxenstored (Xen 4.17), so that it runs without a hypervisor:
 *
 *     cc -shared -fPIC -o shim.so shim.c
 *     XENSTORED_RUNDIR=dir LD_PRELOAD=./shim.so xenstored -N
 *
 * It stands in for the calls the daemons make into libxenctrl, libxenevtchn and libxengnttab, and for the two files
 * the kernel would provide. Every domid below the reserved ones exists. A guest's ring is dir/ring.<domid>, and its
 * notification four bytes, the port it was introduced with, written to the fifo dir/evtchn.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

enum { PAGE = 4096, FIRST_RESERVED_DOMID = 0x7ff0, VIRQ_PORT = 2 };

static char handle; /* what every open function returns: the daemons only check for NULL */
static int evtchn = -1;

/* A name in the daemon's directory. */
static const char *in_rundir(const char *name, char path[PATH_MAX])
{
    const char *rundir = getenv("XENSTORED_RUNDIR");

    snprintf(path, PATH_MAX, "%s/%s", rundir ? rundir : ".", name);
    return path;
}

/* oxenstored has its directory compiled in, and does not look at XENSTORED_RUNDIR. */
static const char *redirected(const char *path, char buffer[PATH_MAX])
{
    static const char compiled_in[] = "/var/run/xenstored/";

    if (strncmp(path, compiled_in, sizeof compiled_in - 1))
        return path;
    return in_rundir(path + sizeof compiled_in - 1, buffer);
}

/* libxenctrl */

void *xc_interface_open(void *logger, void *dombuild_logger, unsigned flags) { return &handle; }
int xc_interface_close(void *xch) { return 0; }

/* xc_dominfo_t begins with the domid, the ssidref and the bits that say dying, crashed and so on. */
int xc_domain_getinfo(void *xch, uint32_t first, unsigned max, void *info)
{
    if (first >= FIRST_RESERVED_DOMID)
        return 0;
    memset(info, 0, 3 * sizeof(uint32_t));
    memcpy(info, &first, sizeof first);
    return 1;
}

/* xen_domctl_getdomaininfo_t begins with the domid, two bytes of padding and the same bits. */
int xc_domain_getinfolist(void *xch, uint32_t first, unsigned max, void *info)
{
    return xc_domain_getinfo(xch, first, max, info);
}

static void *ring(uint32_t domid)
{
    char name[32], path[PATH_MAX];
    void *page = MAP_FAILED;
    int fd;

    snprintf(name, sizeof name, "ring.%u", domid);
    fd = openat(AT_FDCWD, in_rundir(name, path), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0 && !ftruncate(fd, PAGE))
        page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

void *xc_map_foreign_range(void *xch, uint32_t domid, int size, int prot, unsigned long mfn) { return ring(domid); }

/* libxengnttab */

void *xengnttab_open(void *logger, unsigned flags) { return &handle; }
int xengnttab_close(void *xgt) { return 0; }
int xengnttab_set_max_grants(void *xgt, uint32_t count) { return 0; }
void *xengnttab_map_grant_ref(void *xgt, uint32_t domid, uint32_t ref, int prot) { return ring(domid); }
int xengnttab_unmap(void *xgt, void *start, uint32_t count) { return munmap(start, (size_t)PAGE * count); }

/* libxenevtchn */

void *xenevtchn_open(void *logger, unsigned flags)
{
    char path[PATH_MAX];

    mkfifo(in_rundir("evtchn", path), 0600);
    evtchn = openat(AT_FDCWD, path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    return evtchn < 0 ? NULL : &handle;
}

int xenevtchn_close(void *xce) { return close(evtchn); }
int xenevtchn_fd(void *xce) { return evtchn; }
int xenevtchn_notify(void *xce, uint32_t port) { return 0; }
int xenevtchn_bind_interdomain(void *xce, uint32_t domid, uint32_t remote_port) { return remote_port; }
int xenevtchn_bind_virq(void *xce, unsigned virq) { return VIRQ_PORT; }
int xenevtchn_unbind(void *xce, uint32_t port) { return 0; }
int xenevtchn_unmask(void *xce, uint32_t port) { return 0; }

int xenevtchn_pending(void *xce)
{
    uint32_t port;

    return read(evtchn, &port, sizeof port) == sizeof port ? (int)port : -1;
}

/* The kernel's files, and oxenstored's directory */

static int open_any(const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX];
    int fd;

    if (!strcmp(path, "/proc/xen/xsd_port")) {
        fd = memfd_create("xsd_port", MFD_CLOEXEC);
        /* No newline: oxenstored reads a bare number. */
        if (fd >= 0 && pwrite(fd, "1", 1, 0) == 1)
            return fd;
    } else if (!strcmp(path, "/proc/xen/xsd_kva")) {
        fd = memfd_create("xsd_kva", MFD_CLOEXEC);
        if (fd >= 0 && !ftruncate(fd, PAGE))
            return fd;
    } else {
        return openat(AT_FDCWD, redirected(path, buffer), flags, mode);
    }
    return -1;
}

int open(const char *path, int flags, ...)
{
    va_list arguments;
    mode_t mode;

    /* Without O_CREAT there is no third argument, and openat ignores what is read here. */
    va_start(arguments, flags);
    mode = va_arg(arguments, mode_t);
    va_end(arguments);
    return open_any(path, flags, mode);
}

int open64(const char *path, int flags, ...) __attribute__((alias("open")));

int bind(int fd, const struct sockaddr *address, socklen_t length)
{
    struct sockaddr_un redirect = { .sun_family = AF_UNIX };
    char buffer[PATH_MAX];
    const char *path;

    if (address->sa_family == AF_UNIX) {
        path = redirected(((const struct sockaddr_un *)address)->sun_path, buffer);
        if (strlen(path) >= sizeof redirect.sun_path) {
            errno = ENAMETOOLONG;
            return -1;
        }
        strcpy(redirect.sun_path, path);
        address = (const struct sockaddr *)&redirect;
        length = sizeof redirect;
    }
    return syscall(SYS_bind, fd, address, length);
}

int unlink(const char *path)
{
    char buffer[PATH_MAX];

    return unlinkat(AT_FDCWD, redirected(path, buffer), 0);
}

int chmod(const char *path, mode_t mode)
{
    char buffer[PATH_MAX];

    return fchmodat(AT_FDCWD, redirected(path, buffer), mode, 0);
}

/* oxenstored insists on as many descriptors as the kernel could give, which a container may not raise to. */
int setrlimit(__rlimit_resource_t resource, const struct rlimit *limit)
{
    return resource == RLIMIT_NOFILE ? 0 : prlimit(0, resource, limit, NULL);
}
