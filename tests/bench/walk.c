/*
 * The classic claim, as OpenXT's interposer made it, with Xen's own client library: list the domains, read each one's
 * key, one at a time, then write one's own. `walk DOMID` does it for each line of its input, and answers with the
 * nanoseconds it took and the keys it found.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xenstore.h>

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	char line[16], path[64];

	while (argc == 2 && fgets(line, sizeof(line), stdin)) {
		unsigned int domains = 0, keys = 0, length;
		long long start = now();
		struct xs_handle *store = xs_open(0);
		char **names = store ? xs_directory(store, XBT_NULL, "/local/domain", &domains) : NULL;

		if (!names) {
			perror("walk: cannot list /local/domain");
			return 1;
		}
		for (unsigned int i = 0; i < domains; i++) {
			char *value;

			snprintf(path, sizeof(path), "/local/domain/%s/selinux-mcs", names[i]);
			value = xs_read(store, XBT_NULL, path, &length);
			keys += value != NULL;
			free(value);
		}
		snprintf(path, sizeof(path), "/local/domain/%s/selinux-mcs", argv[1]);
		if (!xs_write(store, XBT_NULL, path, "5", 1)) {
			perror("walk: cannot write the key");
			return 1;
		}
		free(names);
		xs_close(store);
		printf("%lld %u\n", now() - start, keys);
		fflush(stdout);
	}
	return 0;
}
