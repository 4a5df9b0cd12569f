/* The truth table: its language is described at its head. */
#ifndef TABLE_H
#define TABLE_H

/* Reads the table; what is no sentence is told and counts as wrong. */
void read_table(const char *path);

/* How many sentences are wrong; each is told. */
unsigned check_table(void);

#endif
