/*
 * oracle POLICY TABLE: asks libsepol whether the compiled policy holds every
 * sentence of a truth table. No kernel is involved: the decision is the
 * kernel's own (allow rules, constraints, roles), by the same code.
 * The language of the table is described at its head.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sepol/debug.h>
#include <sepol/policydb/policydb.h>
#include <sepol/policydb/services.h>
#include <sepol/policydb/util.h>

typedef struct {
	sepol_security_id_t *sid;
	char **name;
	size_t count;
} contexts;

static policydb_t db;
static sidtab_t sids;
static const char *table;
static unsigned line_number, failures, sentences, decisions;

static void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	fprintf(stderr, "%s:%u: ", table, line_number);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
	failures++;
}

static void *must(void *memory)
{
	if (memory)
		return memory;
	perror("oracle: cannot go on");
	exit(2);
}

static bool is_domain(const type_datum_t *type)
{
	const type_datum_t *domain = hashtab_search(db.p_types.table, "domain");

	return ebitmap_get_bit(&db.attr_type_map[domain->s.value - 1], type->s.value - 1);
}

static bool add(contexts *list, const char *user, const char *role, const char *type, const char *level)
{
	char context[4096];
	sepol_security_id_t sid;

	snprintf(context, sizeof context, "%s:%s:%s:%s", user, role, type, level);
	if (sepol_context_to_sid(context, strlen(context) + 1, &sid))
		return false;
	list->sid = must(realloc(list->sid, (list->count + 1) * sizeof *list->sid));
	list->name = must(realloc(list->name, (list->count + 1) * sizeof *list->name));
	list->sid[list->count] = sid;
	list->name[list->count++] = must(strdup(context));
	return true;
}

/* A type runs as system_r where it may, else as whichever role has it. */
static bool add_type(contexts *list, const type_datum_t *type, const char *level)
{
	const char *name = db.p_type_val_to_name[type->s.value - 1];

	if (!is_domain(type))
		return add(list, "system_u", "object_r", name, level);
	if (add(list, "system_u", "system_r", name, level))
		return true;
	for (uint32_t u = 0; u < db.p_users.nprim; u++)
		for (uint32_t r = 0; r < db.p_roles.nprim; r++)
			if (add(list, db.p_user_val_to_name[u], db.p_role_val_to_name[r], name, level))
				return true;
	return false;
}

/* "type", "attribute!type!type", either with ":level", or a whole context. */
static contexts expand(char *word)
{
	contexts list = { 0 };
	char *level = strchr(word, ':');
	size_t name_length = level ? (size_t)(level - word) : strlen(word);

	if (name_length > 2 && !memcmp(word + name_length - 2, "_u", 2)) {
		char *user = strtok(word, ":"), *role = strtok(NULL, ":"), *type = strtok(NULL, ":");

		if (!type || !add(&list, user, role, type, strtok(NULL, "")))
			say("no such context");
		return list;
	}

	if (level)
		*level++ = '\0';
	else
		level = "s0";
	const type_datum_t *named = hashtab_search(db.p_types.table, must(strtok(word, "!")));
	ebitmap_t types;
	ebitmap_node_t *node;
	uint32_t bit;

	ebitmap_init(&types);
	if (!named) {
		say("no type or attribute `%s`", word);
	} else if (named->flavor == TYPE_ATTRIB) {
		if (ebitmap_cpy(&types, &db.attr_type_map[named->s.value - 1]))
			must(NULL);
	} else if (ebitmap_set_bit(&types, named->s.value - 1, 1)) {
		must(NULL);
	}
	for (char *except; (except = strtok(NULL, "!"));) {
		const type_datum_t *type = hashtab_search(db.p_types.table, except);

		if (!type)
			say("no type `%s`", except);
		else if (type->flavor == TYPE_ATTRIB) {
			ebitmap_for_each_positive_bit(&db.attr_type_map[type->s.value - 1], node, bit)
				if (ebitmap_set_bit(&types, bit, 0))
					must(NULL);
		} else if (ebitmap_set_bit(&types, type->s.value - 1, 0))
			must(NULL);
	}
	ebitmap_for_each_positive_bit(&types, node, bit)
		add_type(&list, db.type_val_to_struct[bit], level);
	if (named && !list.count)
		say("`%s` has no valid context at %s", word, level);
	ebitmap_destroy(&types);
	return list;
}

static void discard(contexts *list)
{
	for (size_t i = 0; i < list->count; i++)
		free(list->name[i]);
	free(list->name);
	free(list->sid);
}

/* Which of the permissions are allowed; and if not all, why. */
static sepol_access_vector_t allowed(sepol_security_id_t source, sepol_security_id_t target,
				     sepol_security_class_t class, sepol_access_vector_t permissions,
				     unsigned *reason)
{
	struct sepol_av_decision decision;

	decisions++;
	if (sepol_compute_av_reason(source, target, class, permissions, &decision, reason)) {
		say("libsepol cannot decide");
		return 0;
	}
	return decision.allowed & permissions;
}

static bool permission(sepol_security_class_t class, const char *name, sepol_access_vector_t *bit)
{
	if (!sepol_string_to_av_perm(class, name, bit))
		return true;
	say("class has no permission `%s`", name);
	return false;
}

/* "read,write", "*" (all of the class) or "~getattr,..." (all but these). */
static sepol_access_vector_t permissions(sepol_security_class_t class, char *word)
{
	uint32_t count = db.class_val_to_struct[class - 1]->permissions.nprim;
	sepol_access_vector_t all = count == 32 ? UINT32_MAX : (1U << count) - 1;
	sepol_access_vector_t named = 0, bit;
	bool except = *word == '~';

	if (!strcmp(word, "*"))
		return all;
	for (char *name = strtok(word + except, ","); name; name = strtok(NULL, ","))
		if (permission(class, name, &bit))
			named |= bit;
	return except ? all & ~named : named;
}

static void decide(char *source_word, char *target_word, sepol_security_class_t class, char *words, bool expected)
{
	contexts source = expand(source_word), target = expand(target_word);
	sepol_access_vector_t asked = permissions(class, words);

	for (size_t s = 0; s < source.count; s++)
		for (size_t t = 0; t < target.count; t++) {
			unsigned why = 0;
			sepol_access_vector_t granted = allowed(source.sid[s], target.sid[t], class, asked, &why);
			sepol_access_vector_t wrong = expected ? asked & ~granted : granted;

			if (wrong)
				say("%s: %s -> %s {%s }%s%s%s", expected ? "denied" : "allowed", source.name[s],
				    target.name[t], sepol_av_to_string(&db, class, wrong),
				    expected && why & SEPOL_COMPUTEAV_TE ? ", no allow rule" : "",
				    expected && why & SEPOL_COMPUTEAV_CONS ? ", a constraint" : "",
				    expected && why & SEPOL_COMPUTEAV_RBAC ? ", no role allow" : "");
		}
	discard(&source);
	discard(&target);
}

/* relabel OLD=>NEW: relabelfrom, relabelto, and validatetrans. */
static void relabel(char *source_word, char *from_word, char *to_word, sepol_security_class_t class, bool expected)
{
	contexts source = expand(source_word), from = expand(from_word), to = expand(to_word);
	sepol_access_vector_t relabelfrom, relabelto;
	unsigned why;

	if (permission(class, "relabelfrom", &relabelfrom) && permission(class, "relabelto", &relabelto))
		for (size_t s = 0; s < source.count; s++)
			for (size_t f = 0; f < from.count; f++)
				for (size_t t = 0; t < to.count; t++) {
					char *reasons = NULL;
					bool can = allowed(source.sid[s], from.sid[f], class, relabelfrom, &why) &&
						   allowed(source.sid[s], to.sid[t], class, relabelto, &why) &&
						   !sepol_validate_transition_reason_buffer(from.sid[f], to.sid[t],
											    source.sid[s], class, &reasons, 0);

					free(reasons);
					if (can != expected)
						say("%s: %s relabels %s to %s", can ? "allowed" : "denied",
						    source.name[s], from.name[f], to.name[t]);
				}
	discard(&source);
	discard(&from);
	discard(&to);
}

/*
 * enter PROGRAM=>DOMAIN: what execve asks when an exec context is set;
 * auto PROGRAM=>DOMAIN: that DOMAIN is where it leads when none is.
 */
static void enter(char *source_word, char *program_word, char *domain_word, bool automatic, bool expected)
{
	contexts source = expand(source_word), program = expand(program_word), domain = expand(domain_word);
	sepol_security_class_t process, file;
	sepol_access_vector_t transition, setexec, execute, entrypoint;
	unsigned why;

	if (sepol_string_to_security_class("process", &process) || sepol_string_to_security_class("file", &file))
		must(NULL);
	if (permission(process, "transition", &transition) && permission(process, "setexec", &setexec) &&
	    permission(file, "execute", &execute) && permission(file, "entrypoint", &entrypoint))
		for (size_t s = 0; s < source.count; s++)
			for (size_t p = 0; p < program.count; p++)
				for (size_t d = 0; d < domain.count; d++) {
					sepol_security_id_t next = domain.sid[d];
					bool can = (!automatic || (!sepol_transition_sid(source.sid[s], program.sid[p], process, &next) &&
								   next == domain.sid[d])) &&
						   (automatic || allowed(source.sid[s], source.sid[s], process, setexec, &why)) &&
						   allowed(source.sid[s], program.sid[p], file, execute, &why) &&
						   allowed(source.sid[s], next, process, transition, &why) &&
						   allowed(next, program.sid[p], file, entrypoint, &why);

					if (can != expected)
						say("%s: %s enters %s by %s", can ? "allowed" : "denied", source.name[s],
						    domain.name[d], program.name[p]);
				}
	discard(&source);
	discard(&program);
	discard(&domain);
}

static void sentence(char *line)
{
	char *rest, *source = strtok_r(line, " \t\n", &rest);

	if (!source || *source == '#')
		return;
	char *target = strtok_r(NULL, " \t\n", &rest), *class_name = strtok_r(NULL, " \t\n", &rest);
	char *verb = strtok_r(NULL, " \t\n", &rest), *sign = strtok_r(NULL, " \t\n", &rest);
	char *why = strtok_r(NULL, "\n", &rest);
	sepol_security_class_t class;

	sentences++;
	if (!why || (strcmp(sign, "+") && strcmp(sign, "-"))) {
		say("not a sentence: source target class permissions +|- why");
		return;
	}
	if (sepol_string_to_security_class(class_name, &class)) {
		say("no class `%s`", class_name);
		return;
	}
	bool expected = *sign == '+';
	char *arrow = strstr(target, "=>");

	if (arrow)
		*arrow = '\0';
	if (!arrow)
		decide(source, target, class, verb, expected);
	else if (!strcmp(verb, "relabel"))
		relabel(source, target, arrow + 2, class, expected);
	else if (!strcmp(verb, "enter") || !strcmp(verb, "auto"))
		enter(source, target, arrow + 2, !strcmp(verb, "auto"), expected);
	else
		say("`%s` takes no =>", verb);
}

static void load(const char *path)
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
	if (policydb_init(&db) || policydb_read(&db, &file, 0) || policydb_load_isids(&db, &sids) ||
	    sepol_set_policydb(&db) || sepol_set_sidtab(&sids)) {
		fprintf(stderr, "oracle: cannot load %s: not a policy of this libsepol\n", path);
		exit(2);
	}
	fclose(stream);
}

int main(int argc, char **argv)
{
	char *line = NULL;
	size_t size = 0;

	if (argc != 3) {
		fputs("usage: oracle POLICY TABLE\n", stderr);
		return 2;
	}
	load(argv[1]);
	table = argv[2];
	FILE *stream = fopen(table, "r");
	if (!stream) {
		perror(table);
		return 2;
	}
	while (getline(&line, &size, stream) > 0) {
		line_number++;
		sentence(line);
	}
	free(line);
	fclose(stream);
	printf("%s: %u sentences, %u decisions, %u wrong\n", table, sentences, decisions, failures);
	return failures ? 1 : 0;
}
