/* oracle POLICY TABLE: does the compiled policy hold every sentence of a truth table? */
#include <stdio.h>
#include "decide.h"
#include "table.h"

int main(int argc, char **argv)
{
	if (argc != 3) {
		fputs("usage: oracle POLICY TABLE\n", stderr);
		return 2;
	}
	load(argv[1]);
	read_table(argv[2]);
	return check_table() ? 1 : 0;
}
