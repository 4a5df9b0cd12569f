/*
 * Stands in QEMU's place: tells in the file $QEMU_REPORT what it was started with, and stays until it is killed; or, with
 * $QEMU_EXIT, ends at once.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static void hex(FILE *to, const char *what, const char *text)
{
	fprintf(to, "%s ", what);
	for (; *text; text++)
		fprintf(to, "%02x", (unsigned char)*text);
	fprintf(to, "\n");
}

static void descriptors(FILE *to)
{
	for (int fd = 0; fd < 256; fd++) {
		char path[64], target[PATH_MAX] = "";

		snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
		if (fd != fileno(to) && readlink(path, target, sizeof(target) - 1) > 0)
			fprintf(to, "fd %d %s flags %o %o\n", fd, target, fcntl(fd, F_GETFL), fcntl(fd, F_GETFD));
	}
}

static void status(FILE *to)
{
	char line[256];
	FILE *from = fopen("/proc/self/status", "re");

	while (from && fgets(line, sizeof(line), from))
		if (!strncmp(line, "SigBlk", 6) || !strncmp(line, "SigIgn", 6) || !strncmp(line, "SigCgt", 6) ||
		    !strncmp(line, "Umask", 5) || !strncmp(line, "Cap", 3) || !strncmp(line, "NoNewPrivs", 10))
			fputs(line, to);
	if (from)
		fclose(from);
}

int main(int argc, char **argv)
{
	const char *report = getenv("QEMU_REPORT");
	char cwd[PATH_MAX], temporary[PATH_MAX];

	if (report) {
		FILE *to;

		snprintf(temporary, sizeof(temporary), "%s.new", report);
		to = fopen(temporary, "we");
		if (!to)
			return 1;
		fprintf(to, "pid %d ppid %d sid %d\n", getpid(), getppid(), getsid(0));
		for (int i = 0; i < argc; i++)
			hex(to, "arg", argv[i]);
		for (char **variable = environ; *variable; variable++)
			hex(to, "env", *variable);
		hex(to, "cwd", getcwd(cwd, sizeof(cwd)) ? cwd : "?");
		for (int limit = 0; limit < RLIMIT_NLIMITS; limit++) {
			struct rlimit now;

			if (!getrlimit(limit, &now))
				fprintf(to, "rlimit %d %lu %lu\n", limit, now.rlim_cur, now.rlim_max);
		}
		descriptors(to);
		status(to);
		if (fclose(to) || rename(temporary, report))
			return 1;
	}
	while (!getenv("QEMU_EXIT"))
		pause();
	return 0;
}
