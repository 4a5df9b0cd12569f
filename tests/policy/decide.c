#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sepol/debug.h>
#include <sepol/policydb/conditional.h>
#include "decide.h"

policydb_t db;
static sidtab_t sids;

void *must(void *memory)
{
	if (memory)
		return memory;
	perror("cannot go on");
	exit(2);
}

void read_policy(policydb_t *policy, const char *path)
{
	struct policy_file file;
	FILE *stream = fopen(path, "r");

	if (!stream) {
		perror(path);
		exit(2);
	}
	sepol_debug(0);
	policy_file_init(&file);
	file.type = PF_USE_STDIO;
	file.fp = stream;
	if (policydb_init(policy) || policydb_read(policy, &file, 0)) {
		fprintf(stderr, "cannot load %s: not a policy of this libsepol\n", path);
		exit(2);
	}
	fclose(stream);
}

void load(const char *path)
{
	read_policy(&db, path);
	if (policydb_load_isids(&db, &sids) || sepol_set_policydb(&db) || sepol_set_sidtab(&sids))
		must(NULL);
}

sepol_access_vector_t allowed(sepol_security_id_t source, sepol_security_id_t target, sepol_security_class_t class,
			      sepol_access_vector_t permissions, unsigned *reason)
{
	struct sepol_av_decision decision;

	if (sepol_compute_av_reason(source, target, class, permissions, &decision, reason)) {
		fprintf(stderr, "cannot decide: no such context or class\n");
		exit(2);
	}
	return decision.allowed & permissions;
}

static const context_struct_t *context(sepol_security_id_t sid)
{
	return must(sepol_sidtab_search(&sids, sid));
}

void allowed_commands(sepol_security_id_t source, sepol_security_id_t target, sepol_security_class_t class,
		      commands *granted)
{
	const ebitmap_t *sources = &db.type_attr_map[context(source)->type - 1];
	const ebitmap_t *targets = &db.type_attr_map[context(target)->type - 1];
	ebitmap_node_t *s, *t;
	uint32_t i, j;
	bool listed = false;

	memset(granted, 0, sizeof *granted);
	ebitmap_for_each_positive_bit(sources, s, i)
		ebitmap_for_each_positive_bit(targets, t, j) {
			avtab_key_t key = { .source_type = i + 1, .target_type = j + 1, .target_class = class,
					    .specified = AVTAB_XPERMS };

			for (struct avtab_node *node = avtab_search_node(&db.te_avtab, &key); node;
			     node = avtab_search_node_next(node, key.specified)) {
				const avtab_extended_perms_t *list = node->datum.xperms;

				/* Any list, one for the audit too, leaves but what is listed as allowed. */
				listed = true;
				if (!(node->key.specified & AVTAB_XPERMS_ALLOWED))
					continue;
				/* 256 commands of one driver, or 256 whole drivers */
				for (unsigned n = 0; n < 8; n++)
					if (list->specified == AVTAB_XPERMS_IOCTLFUNCTION)
						granted->word[list->driver * 8 + n] |= list->perms[n];
					else
						for (unsigned bit = 0; bit < 32; bit++)
							if (list->perms[n] & UINT32_C(1) << bit)
								memset(&granted->word[(n * 32 + bit) * 8], 0xff, 32);
			}
		}
	if (!listed)
		memset(granted, 0xff, sizeof *granted);
}

sepol_security_id_t new_label(sepol_security_id_t source, sepol_security_id_t parent, sepol_security_class_t class,
			      char *name)
{
	sepol_security_id_t sid;

	if (sepol_transition_sid(source, parent, class, &sid))
		return SEPOL_SECSID_NULL;
	filename_trans_key_t key = { .ttype = context(parent)->type, .tclass = class, .name = name };

	for (filename_trans_datum_t *rule = name ? hashtab_search(db.filename_trans, (hashtab_key_t)&key) : NULL; rule;
	     rule = rule->next)
		if (ebitmap_get_bit(&rule->stypes, context(source)->type - 1)) {
			context_struct_t named = *context(sid);

			named.type = rule->otype;
			if (!policydb_context_isvalid(&db, &named) || sepol_sidtab_context_to_sid(&sids, &named, &sid))
				return SEPOL_SECSID_NULL;
		}
	return sid;
}

bool set_boolean(cond_bool_datum_t *boolean, bool state)
{
	bool before = boolean->state;

	boolean->state = state;
	if (evaluate_conds(&db))
		must(NULL);
	return before;
}
