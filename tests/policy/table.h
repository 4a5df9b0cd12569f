/* The truth table: its language is described at its head. */
#ifndef TABLE_H
#define TABLE_H
#include <stdbool.h>

/* Reads the table; what is no sentence is told and counts as wrong. */
void read_table(const char *path);

/* How many sentences are wrong; each is told. */
unsigned check_table(void);

/* Is any sentence wrong, of those with - too? None is told. */
bool table_fails(bool denials);

/* The types of this attribute, or with "" the roles of any type, are not what they were. */
void forget_contexts(const char *name);

#endif
