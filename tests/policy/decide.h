/*
 * What a compiled policy decides. No kernel is involved: libsepol decides as
 * the kernel does (allow rules, constraints, roles). It leaves out ioctl
 * lists and named type transitions; those are read here.
 */
#ifndef DECIDE_H
#define DECIDE_H
#include <stdbool.h>
#include <stdint.h>
#include <sepol/policydb/policydb.h>
#include <sepol/policydb/services.h>
#include <sepol/policydb/util.h>

/* ioctl commands: a policy knows their low 16 bits. */
#define COMMANDS 65536
typedef struct {
	uint32_t word[COMMANDS / 32];
} commands;

extern policydb_t db;

/* Ends the program where memory is short. */
void *must(void *memory);

void read_policy(policydb_t *policy, const char *path);

/* Reads the one policy that is asked. */
void load(const char *path);

/* Which of the permissions are allowed; and if not all, why. */
sepol_access_vector_t allowed(sepol_security_id_t source, sepol_security_id_t target, sepol_security_class_t class,
			      sepol_access_vector_t permissions, unsigned *reason);

/* Which ioctl commands are, where the permission itself is. */
void allowed_commands(sepol_security_id_t source, sepol_security_id_t target, sepol_security_class_t class,
		      commands *granted);

/* The label of a new object; name may be NULL. SEPOL_SECSID_NULL: it would be invalid. */
sepol_security_id_t new_label(sepol_security_id_t source, sepol_security_id_t parent, sepol_security_class_t class,
			      char *name);

/* The state of a boolean before. */
bool set_boolean(cond_bool_datum_t *boolean, bool state);

#endif
