#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "decide.h"
#include "table.h"

typedef struct {
	unsigned line, cost;
	char *source, *target, *classes, *verb, *sign;
} sentence;

typedef struct {
	char *words;
	sepol_security_id_t *sid;
	char **name;
	size_t count;
} contexts;

/* The permissions a sentence asks of one class. */
typedef struct {
	sepol_access_vector_t bits;
	bool asks_commands;
	commands ioctl;
} request;

/* A boolean of the policy, by its declaration in the table. */
typedef struct {
	unsigned line;
	const char *name;
	cond_bool_datum_t *datum;
	bool shown;
} boolean;

static const char *table;
static sentence *sentences;
static boolean *booleans;
/* What sources and targets stand for: it takes longer to find than to decide. */
static contexts *known;
static size_t sentence_count, boolean_count, known_count;
static unsigned line_number, failures, decisions;
static const char *state = "";
static bool quiet;

static void say(const char *format, ...)
{
	va_list args;

	failures++;
	if (quiet)
		return;
	va_start(args, format);
	fprintf(stderr, "%s:%u: %s", table, line_number, state);
	vfprintf(stderr, format, args);
	fputc('\n', stderr);
	va_end(args);
}

static char *copy(const char *word)
{
	return must(strdup(word));
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
	list->name[list->count++] = copy(context);
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

/* Adds a type, or each type of an attribute, to the set; or takes it out. */
static void choose(ebitmap_t *types, const char *name, bool in)
{
	const type_datum_t *type = hashtab_search(db.p_types.table, name);
	ebitmap_node_t *node;
	uint32_t bit;

	if (!type) {
		say("no type or attribute `%s`", name);
	} else if (type->flavor == TYPE_ATTRIB) {
		ebitmap_for_each_positive_bit(&db.attr_type_map[type->s.value - 1], node, bit)
			if (ebitmap_set_bit(types, bit, in))
				must(NULL);
	} else if (ebitmap_set_bit(types, type->s.value - 1, in)) {
		must(NULL);
	}
}

static void find(contexts *list, char *words)
{
	char *rest = words, *named = strsep(&rest, ":");

	if (strlen(named) > 2 && !strcmp(named + strlen(named) - 2, "_u")) {
		char *role = strsep(&rest, ":"), *type = strsep(&rest, ":");

		if (rest)
			add(list, named, role, type, rest);
		return;
	}

	const char *level = rest ? rest : "s0";
	ebitmap_t types;
	ebitmap_node_t *node;
	uint32_t bit;

	ebitmap_init(&types);
	char *included = strsep(&named, "!");
	for (char *name; (name = strsep(&included, ","));)
		choose(&types, name, true);
	for (char *name; (name = strsep(&named, "!"));)
		choose(&types, name, false);
	ebitmap_for_each_positive_bit(&types, node, bit)
		add_type(list, db.type_val_to_struct[bit], level);
	ebitmap_destroy(&types);
}

static contexts expand(const char *words)
{
	for (size_t i = 0; i < known_count; i++)
		if (!strcmp(known[i].words, words))
			return known[i];
	contexts list = { .words = copy(words) };
	char *word = copy(words);

	find(&list, word);
	free(word);
	if (!list.count)
		say("no valid context: %s", words);
	known = must(realloc(known, (known_count + 1) * sizeof *known));
	return known[known_count++] = list;
}

void forget_contexts(const char *name)
{
	for (size_t i = known_count; i--;) {
		contexts *list = &known[i];

		if (!strstr(list->words, name))
			continue;
		while (list->count)
			free(list->name[--list->count]);
		free(list->name);
		free(list->sid);
		free(list->words);
		*list = known[--known_count];
	}
}

static bool is_allowed(sepol_security_id_t source, sepol_security_id_t target, sepol_security_class_t class,
		       sepol_access_vector_t permission)
{
	unsigned why;

	decisions++;
	return allowed(source, target, class, permission, &why) == permission;
}

static bool permission(sepol_security_class_t class, const char *name, sepol_access_vector_t *bit)
{
	if (!sepol_string_to_av_perm(class, name, bit))
		return true;
	say("no permission `%s` in class %s", name, db.p_class_val_to_name[class - 1]);
	return false;
}

/* "0x5401" or "0x4500-0x4506" */
static void ioctl_range(request *asked, const char *range)
{
	char *end;
	unsigned long first, last;

	errno = 0;
	first = last = strtoul(range, &end, 16);
	if (*end == '-')
		last = strtoul(end + 1, &end, 16);
	if (errno || *end || !*range || last < first || last >= COMMANDS) {
		say("not an ioctl command or a range of them: `%s`", range);
		return;
	}
	asked->asks_commands = true;
	for (unsigned long n = first; n <= last; n++)
		asked->ioctl.word[n / 32] |= UINT32_C(1) << n % 32;
}

static request requested(sepol_security_class_t class, const char *words)
{
	uint32_t count = db.class_val_to_struct[class - 1]->permissions.nprim;
	sepol_access_vector_t all = count == 32 ? UINT32_MAX : (UINT32_C(1) << count) - 1, bit;
	request asked = { 0 };
	bool except = *words == '~';
	char *word = copy(words + except), *rest = word;

	for (char *name; (name = strsep(&rest, ","));)
		if (!strcmp(name, "*"))
			asked.bits |= all;
		else if (!strncmp(name, "ioctl:", 6))
			ioctl_range(&asked, name + 6);
		else if (permission(class, name, &bit))
			asked.bits |= bit;
	free(word);
	if (except) {
		asked.bits = all & ~asked.bits;
		if (asked.asks_commands && permission(class, "ioctl", &bit)) {
			asked.bits &= ~bit;
			for (unsigned n = 0; n < COMMANDS / 32; n++)
				asked.ioctl.word[n] = ~asked.ioctl.word[n];
		}
	}
	return asked;
}

static void decide_commands(sepol_security_id_t source, const char *source_name, sepol_security_id_t target,
			    const char *target_name, sepol_security_class_t class, const commands *asked, bool expected)
{
	sepol_access_vector_t ioctl;
	commands granted = { 0 };

	if (!permission(class, "ioctl", &ioctl))
		return;
	if (is_allowed(source, target, class, ioctl))
		allowed_commands(source, target, class, &granted);
	for (unsigned long n = 0; n < COMMANDS; n++) {
		bool is_asked = asked->word[n / 32] >> n % 32 & 1, is_granted = granted.word[n / 32] >> n % 32 & 1;

		if (is_asked && is_granted != expected) {
			say("%s: %s -> %s %s { ioctl:0x%04lx }", expected ? "denied" : "allowed", source_name,
			    target_name, db.p_class_val_to_name[class - 1], n);
			return;
		}
	}
}

static void decide(const sentence *said, sepol_security_class_t class, bool expected)
{
	contexts source = expand(said->source), target = expand(said->target);
	request asked = requested(class, said->verb);

	for (size_t s = 0; s < source.count; s++)
		for (size_t t = 0; t < target.count; t++) {
			unsigned why = 0;
			sepol_access_vector_t granted = allowed(source.sid[s], target.sid[t], class, asked.bits, &why);
			sepol_access_vector_t wrong = expected ? asked.bits & ~granted : granted;

			decisions++;
			if (wrong)
				say("%s: %s -> %s %s {%s }%s%s%s", expected ? "denied" : "allowed", source.name[s],
				    target.name[t], db.p_class_val_to_name[class - 1], sepol_av_to_string(&db, class, wrong),
				    expected && why & SEPOL_COMPUTEAV_TE ? ", no allow rule" : "",
				    expected && why & SEPOL_COMPUTEAV_CONS ? ", a constraint" : "",
				    expected && why & SEPOL_COMPUTEAV_RBAC ? ", no role allow" : "");
			if (asked.asks_commands)
				decide_commands(source.sid[s], source.name[s], target.sid[t], target.name[t], class,
						&asked.ioctl, expected);
		}
}

/* relabelfrom, relabelto, and validatetrans */
static bool relabels(sepol_security_id_t source, sepol_security_id_t from, sepol_security_id_t to,
		     sepol_security_class_t class)
{
	sepol_access_vector_t relabelfrom, relabelto;
	char *reasons = NULL;

	if (!permission(class, "relabelfrom", &relabelfrom) || !permission(class, "relabelto", &relabelto))
		return false;
	bool can = is_allowed(source, from, class, relabelfrom) && is_allowed(source, to, class, relabelto) &&
		   !sepol_validate_transition_reason_buffer(from, to, source, class, &reasons, 0);
	free(reasons);
	return can;
}

/* What execve asks: with an exec context set, or where it leads without one. */
static bool enters(sepol_security_id_t source, sepol_security_id_t program, sepol_security_id_t domain, bool automatic)
{
	sepol_security_class_t process, file;
	sepol_access_vector_t transition, setexec, execute, entrypoint;

	if (sepol_string_to_security_class("process", &process) || sepol_string_to_security_class("file", &file))
		must(NULL);
	return permission(process, "transition", &transition) && permission(process, "setexec", &setexec) &&
	       permission(file, "execute", &execute) && permission(file, "entrypoint", &entrypoint) &&
	       (automatic ? new_label(source, program, process, NULL) == domain :
			    is_allowed(source, source, process, setexec)) &&
	       is_allowed(source, program, file, execute) && is_allowed(source, domain, process, transition) &&
	       is_allowed(domain, program, file, entrypoint);
}

/* old=>new relabel, program=>domain enter or auto, parent=>label new or new:name */
static void change(const sentence *said, sepol_security_class_t class, bool expected)
{
	char *from_word = copy(said->target), *to_word = strstr(from_word, "=>");

	*to_word = '\0';
	contexts source = expand(said->source), from = expand(from_word), to = expand(to_word + 2);

	for (size_t s = 0; s < source.count; s++)
		for (size_t f = 0; f < from.count; f++)
			for (size_t t = 0; t < to.count; t++) {
				bool is;

				if (!strcmp(said->verb, "relabel")) {
					is = relabels(source.sid[s], from.sid[f], to.sid[t], class);
				} else if (!strcmp(said->verb, "enter") || !strcmp(said->verb, "auto")) {
					is = enters(source.sid[s], from.sid[f], to.sid[t], *said->verb == 'a');
				} else if (!strncmp(said->verb, "new", 3) && (!said->verb[3] || said->verb[3] == ':')) {
					is = new_label(source.sid[s], from.sid[f], class,
						       said->verb[3] ? said->verb + 4 : NULL) == to.sid[t];
				} else {
					say("`%s` takes no =>", said->verb);
					free(from_word);
					return;
				}
				if (is != expected)
					say("%s: %s: %s %s => %s", is ? "allowed" : "denied", source.name[s],
					    said->verb, from.name[f], to.name[t]);
			}
	free(from_word);
}

static void each_class(const sentence *said, bool expected)
{
	char *word = copy(said->classes), *rest = word;
	sepol_security_class_t class;

	for (char *name; (name = strsep(&rest, ","));)
		if (sepol_string_to_security_class(name, &class))
			say("no class `%s`", name);
		else if (strstr(said->target, "=>"))
			change(said, class, expected);
		else
			decide(said, class, expected);
	free(word);
}

static void invert_booleans(void)
{
	for (size_t i = 0; i < boolean_count; i++)
		set_boolean(booleans[i].datum, !booleans[i].datum->state);
}

static void check(const sentence *said)
{
	line_number = said->line;
	if (!strcmp(said->sign, "+") || !strcmp(said->sign, "-")) {
		bool expected = *said->sign == '+';
		unsigned before = failures;

		each_class(said, expected);
		if (!boolean_count || failures != before)
			return;
		state = "with every boolean the other way: ";
		invert_booleans();
		each_class(said, expected);
		invert_booleans();
		state = "";
		return;
	}
	for (size_t i = 0; i < boolean_count; i++)
		if (!strcmp(said->sign, booleans[i].name)) {
			bool before = set_boolean(booleans[i].datum, true);

			state = "on: ";
			each_class(said, true);
			set_boolean(booleans[i].datum, false);
			state = "off: ";
			each_class(said, false);
			set_boolean(booleans[i].datum, before);
			state = "";
			booleans[i].shown = true;
			return;
		}
	say("neither + nor - nor a boolean declared above: `%s`", said->sign);
}

/* boolean NAME on|off why */
static void declare(const char *name, const char *value)
{
	cond_bool_datum_t *datum = hashtab_search(db.p_bools.table, (hashtab_key_t)name);

	if (!datum) {
		say("no boolean `%s`", name);
		return;
	}
	if (strcmp(value, datum->state ? "on" : "off"))
		say("`%s` is %s by default", name, datum->state ? "on" : "off");
	booleans = must(realloc(booleans, (boolean_count + 1) * sizeof *booleans));
	booleans[boolean_count++] = (boolean){ line_number, name, datum, false };
}

void read_table(const char *path)
{
	char *line = NULL;
	size_t size = 0;
	FILE *stream = fopen(path, "r");

	if (!stream) {
		perror(path);
		exit(2);
	}
	for (table = path; getline(&line, &size, stream) > 0;) {
		char *rest, *word[5] = { strtok_r(line, " \t\n", &rest) };

		line_number++;
		if (!word[0] || *word[0] == '#')
			continue;
		line = NULL;
		size = 0;
		bool declares = !strcmp(word[0], "boolean");
		int words = declares ? 3 : 5, n = 1;

		while (n < words && (word[n] = strtok_r(NULL, " \t\n", &rest)))
			n++;
		if (n < words || !strtok_r(NULL, "\n", &rest)) {
			say(declares ? "not a declaration: boolean name on|off why" :
				       "not a sentence: source target class permissions +|-|boolean why");
		} else if (declares) {
			declare(word[1], word[2]);
		} else {
			sentences = must(realloc(sentences, (sentence_count + 1) * sizeof *sentences));
			sentences[sentence_count++] =
				(sentence){ line_number, 0, word[0], word[1], word[2], word[3], word[4] };
		}
	}
	free(line);
	fclose(stream);
}

static int by_cost(const void *one, const void *other)
{
	const sentence *a = one, *b = other;

	return (a->cost > b->cost) - (a->cost < b->cost);
}

bool table_fails(bool denials)
{
	quiet = true;
	failures = 0;
	for (size_t i = 0; i < sentence_count && !failures; i++) {
		unsigned before = decisions;

		if (!denials && *sentences[i].sign == '-')
			continue;
		check(&sentences[i]);
		sentences[i].cost = decisions - before;
	}
	/* Next time, what takes many decisions is asked last. */
	qsort(sentences, sentence_count, sizeof *sentences, by_cost);
	return failures;
}

unsigned check_table(void)
{
	for (size_t i = 0; i < sentence_count; i++)
		check(&sentences[i]);
	for (size_t i = 0; i < boolean_count; i++)
		if (!booleans[i].shown) {
			line_number = booleans[i].line;
			say("no sentence says what `%s` allows", booleans[i].name);
		}
	printf("%s: %zu sentences, %u decisions, %u wrong\n", table, sentence_count, decisions, failures);
	return failures;
}
