/*
 * LD_PRELOAD shim: a kernel with SELinux for a program that runs where there is none. It answers what only such a
 * kernel can; labels are the real thing, as root may keep them on any file there too. What it answers is in the
 * directory $SELINUX_SHIM, one file each:
 *
 *   mode         enforcing, permissive, disabled, or hidden (enforcing, but libselinux does not see it)
 *   current      the context of the process that asks
 *   unknown      a part of the contexts that the policy does not know
 *   allowed      what the rules allow, a line each: part of the subject's context, part of the object's, class, permission
 *   entered      the context that a process enters by executing svirt-interpose; without it, its own
 *   customizable_types
 *                the types that restorecon leaves alone
 *   permissive   a part of the contexts whose type is permissive
 *   denied       the path of an object that may not be relabelled
 *   pause        while this exists, a relabelling waits after making the file `paused`: every one, or that of an
 *                object whose path is in it
 *   unreadable   the paths of objects that may not be read
 *   exec.<pid>   written here: the exec context that the process set
 *   pid.<pid>    the context of another process; without it, the exec context that one set
 *
 * Files of the host that would be in the way of a test are looked for there as well: the configuration (conf), the
 * list of filesystems (filesystems), libxl's record of a domain (by its name), syslog's socket (log), the boot id where
 * there is one (boot_id), and below root what is in these directories, if it is there. The kernel's audit is there too, as
 * a socket that gets what it is sent (audit); without it, the kernel has none.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <selinux/selinux.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static const char *in(const char *name)
{
	static char path[4096];

	snprintf(path, sizeof(path), "%s/%s", getenv("SELINUX_SHIM"), name);
	return path;
}

static const char *text(const char *name)
{
	static char buffer[4096];
	ssize_t length = 0;
	int fd = syscall(SYS_open, in(name), O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		length = read(fd, buffer, sizeof(buffer) - 1);
		close(fd);
	}
	buffer[length > 0 ? length : 0] = 0;
	return length > 0 ? buffer : NULL;
}

static int is(const char *mode)
{
	const char *now = text("mode");

	return now && !strcmp(now, mode);
}

static int answer(char **context, const char *from)
{
	*context = from ? strdup(from) : NULL;
	return 0;
}

int is_selinux_enabled(void) { return is("enforcing") || is("permissive"); }
int is_selinux_mls_enabled(void) { return is_selinux_enabled(); }
int security_getenforce(void) { return is("enforcing"); }
int getcon_raw(char **context) { return answer(context, text("current")); }

int security_check_context_raw(const char *context)
{
	const char *unknown = text("unknown");

	if (unknown && strstr(context, unknown)) {
		errno = EINVAL;
		return -1;
	}
	return 0;
}

/* Classes and permissions have the numbers that they are asked for in. */

static char *names[32];

static int number_of(const char *name)
{
	int number = 0;

	while (number < 31 && names[number] && strcmp(names[number], name))
		number++;
	if (!names[number])
		names[number] = strdup(name);
	return number;
}

security_class_t string_to_security_class(const char *name) { return number_of(name) + 1; }
access_vector_t string_to_av_perm(security_class_t class, const char *name) { return class ? 1U << number_of(name) : 0; }

int security_compute_av_flags_raw(const char *subject, const char *object, security_class_t class,
				  access_vector_t requested, struct av_decision *decision)
{
	const char *permissive = text("permissive"), *rules;
	char source[128], target[128], wanted[128], permission[128];
	int length;

	memset(decision, 0, sizeof(*decision));
	if (permissive && strstr(subject, permissive))
		decision->flags = SELINUX_AVD_FLAGS_PERMISSIVE;
	for (rules = text("allowed");
	     rules && sscanf(rules, "%127s %127s %127s %127s%n", source, target, wanted, permission, &length) == 4;
	     rules += length)
		if (strstr(subject, source) && strstr(object, target) && number_of(wanted) + 1 == class)
			decision->allowed |= requested & (1U << number_of(permission));
	return 0;
}

int security_compute_create_name_raw(const char *subject, const char *object, security_class_t class,
				     const char *name, char **created)
{
	const char *entered = text("entered");

	(void)object, (void)class, (void)name;
	return answer(created, entered ? entered : subject);
}

const char *selinux_customizable_types_path(void) { return strdup(in("customizable_types")); }

static char exec_context[4096];

int getexeccon_raw(char **context) { return answer(context, *exec_context ? exec_context : NULL); }

int setexeccon_raw(const char *context)
{
	char name[32];
	int fd;

	snprintf(exec_context, sizeof(exec_context), "%s", context ? context : "");
	snprintf(name, sizeof(name), "exec.%d", getpid());
	if (!context)
		return unlink(in(name)) && errno != ENOENT ? -1 : 0;
	fd = syscall(SYS_open, in(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, context, strlen(context)) < 0)
		return -1;
	return close(fd);
}

int setexeccon(const char *context) { return setexeccon_raw(context); }

int getpidcon_raw(pid_t pid, char **context)
{
	char name[32];
	const char *found;

	snprintf(name, sizeof(name), "pid.%d", pid);
	found = text(name);
	if (!found) {
		snprintf(name, sizeof(name), "exec.%d", pid);
		found = text(name);
	}
	if (!found || kill(pid, 0)) {
		errno = ESRCH;
		return -1;
	}
	return answer(context, found);
}

static int holds(const char *name, const char *object)
{
	const char *paths = text(name);

	return paths && strstr(paths, object);
}

int setfilecon_raw(const char *path, const char *context)
{
	int (*real)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "setfilecon_raw");
	char object[4096] = "";

	if (readlink(path, object, sizeof(object) - 1) < 0)
		return -1;
	while (!access(in("pause"), F_OK) && (!text("pause") || holds("pause", object))) {
		close(syscall(SYS_open, in("paused"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
		usleep(1000);
	}
	if (holds("denied", object)) {
		errno = EACCES;
		return -1;
	}
	return real(path, context);
}

/* The host's own files that a test has its own of. */

static const char *const trees[] = {
	"/etc/selinux/config", "/etc/systemd/", "/etc/udev/", "/etc/xen", "/run/systemd/", "/run/udev/",
	"/usr/lib/systemd/", "/usr/lib/udev/", "/usr/libexec/svirt-interpose",
};

static const char *redirected(const char *path)
{
	static char ours[4096];

	for (size_t tree = 0; tree < sizeof(trees) / sizeof(*trees); tree++)
		if (!strncmp(path, trees[tree], strlen(trees[tree])) && !syscall(SYS_access, in("root"), F_OK)) {
			snprintf(ours, sizeof(ours), "%s/root%s", getenv("SELINUX_SHIM"), path);
			return ours;
		}
	if (!strcmp(path, "/etc/svirt-interpose.conf"))
		return in("conf");
	if (!strcmp(path, "/proc/filesystems"))
		return in("filesystems");
	if (!strncmp(path, "/var/lib/xen/", 13))
		return in(path + 13);
	if (!strcmp(path, "/proc/sys/kernel/random/boot_id") && !syscall(SYS_access, in("boot_id"), F_OK))
		return in("boot_id");
	return path;
}

static int unreadable(const char *path)
{
	static int any = -1; /* looked for once: a host has nothing to look for */
	char object[4096] = "";

	if (any < 0)
		any = !access(in("unreadable"), F_OK);
	if (any && readlink(path, object, sizeof(object) - 1) < 0)
		snprintf(object, sizeof(object), "%s", path);
	return any && holds("unreadable", object);
}

int open64(const char *path, int flags, ...)
{
	va_list arguments;
	mode_t mode;

	va_start(arguments, flags);
	mode = va_arg(arguments, mode_t);
	va_end(arguments);
	if (!(flags & O_PATH) && unreadable(path)) {
		errno = EACCES;
		return -1;
	}
	return syscall(SYS_openat, AT_FDCWD, redirected(path), flags, mode);
}

int statx(int dirfd, const char *path, int flags, unsigned int mask, struct statx *status)
{
	return syscall(SYS_statx, dirfd, redirected(path), flags, mask, status);
}

DIR *opendir(const char *path)
{
	int fd = syscall(SYS_open, redirected(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	return fd < 0 ? NULL : fdopendir(fd);
}

int socket(int domain, int type, int protocol)
{
	if (domain != AF_NETLINK || protocol != NETLINK_AUDIT)
		return syscall(SYS_socket, domain, type, protocol);
	if (access(in("audit"), F_OK)) {
		errno = EPROTONOSUPPORT;
		return -1;
	}
	return syscall(SYS_socket, AF_UNIX, SOCK_DGRAM | (type & (SOCK_CLOEXEC | SOCK_NONBLOCK)), 0);
}

static struct sockaddr_un at(const char *name)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", in(name));
	return address;
}

ssize_t sendto(int fd, const void *data, size_t length, int flags, const struct sockaddr *address, socklen_t size)
{
	struct sockaddr_un ours;

	if (!address || address->sa_family != AF_NETLINK)
		return syscall(SYS_sendto, fd, data, length, flags, address, size);
	ours = at("audit");
	return syscall(SYS_sendto, fd, data, length, flags, &ours, sizeof(ours));
}

int connect(int fd, const struct sockaddr *address, socklen_t length)
{
	const struct sockaddr_un *path = (const struct sockaddr_un *)address;
	struct sockaddr_un ours;

	if (address->sa_family != AF_UNIX || strcmp(path->sun_path, "/dev/log"))
		return syscall(SYS_connect, fd, address, length);
	ours = at("log");
	return syscall(SYS_connect, fd, &ours, sizeof(ours));
}
