/*
 * Starts a device model the way a toolstack does, in a state that is easy to spoil: `toolstack PROGRAM ARGV0 ARG…`.
 * As libxl: SIGCHLD blocked, SIGQUIT ignored, a session of its own, / as working directory. Beyond libxl: SIGUSR1
 * ignored, SIGUSR2 blocked, a strange umask, two inherited descriptors, and a soft limit on open files.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
	struct rlimit limit = { 500, 1000 };
	sigset_t blocked;

	if (argc < 3)
		return 2;
	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigaddset(&blocked, SIGUSR2);
	sigprocmask(SIG_SETMASK, &blocked, NULL);
	signal(SIGQUIT, SIG_IGN);
	signal(SIGUSR1, SIG_IGN);
	signal(SIGPIPE, SIG_DFL);
	setsid();
	umask(0137);
	setrlimit(RLIMIT_NOFILE, &limit);
	if (chdir("/") || dup2(open("/dev/zero", O_RDONLY), 9) != 9 || dup2(open("/dev/null", O_RDWR | O_APPEND), 77) != 77)
		return 2;
	close(3);
	close(4);
	execv(argv[1], argv + 2);
	perror(argv[1]);
	return 2;
}
