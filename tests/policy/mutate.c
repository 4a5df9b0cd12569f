/*
 * mutate BASE BARE POLICY TABLE: does the truth table notice the loss of each rule
 * that the modules add to the base? A rule is taken out of the policy in memory,
 * the table is asked, the rule is put back. What the compiler merged, of one
 * source, target and class, is one rule. An attribute's loss of a type leaves the
 * sets that the base's own modules made of that attribute: it changes less than
 * in truth.
 */
#include <fnmatch.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sepol/policydb/conditional.h>
#include "decide.h"
#include "table.h"

/* The base; and with it the modules' types and attributes, to which its rules apply, and no rules. */
static policydb_t base, bare;
/* What a type or a role of the policy is there; 0: it is not. */
static uint32_t *base_types, *base_roles, *bare_types;
static unsigned rules, idle, survivors;

static const char *type(uint32_t value)
{
	return db.p_type_val_to_name[value - 1];
}

static const char *class(uint32_t value)
{
	return db.p_class_val_to_name[value - 1];
}

/* What the loss of a rule changes. */
typedef enum { NOTHING, ALLOWS_LESS, CHANGES } effect;

/* A rule is gone: ask the table. If it changes nothing, that cannot be noticed. */
static void judge(effect effect, const char *format, ...)
{
	char text[4096];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof text, format, args);
	va_end(args);
	rules++;
	if (effect != NOTHING && table_fails(effect == CHANGES))
		return;
	printf("%s: %s\n", effect == NOTHING ? "changes nothing" : "survives", text);
	*(effect == NOTHING ? &idle : &survivors) += 1;
}

/* The types of an attribute, or the type itself. */
static ebitmap_t types_of(uint32_t value)
{
	ebitmap_t types;

	ebitmap_init(&types);
	if (db.type_val_to_struct[value - 1]->flavor == TYPE_ATTRIB ?
		    ebitmap_cpy(&types, &db.attr_type_map[value - 1]) :
		    ebitmap_set_bit(&types, value - 1, 1))
		must(NULL);
	return types;
}

/* Do rules without a condition allow all this, from any of the sources to any of the targets? */
static bool is_granted(const ebitmap_t *sources, const ebitmap_t *targets, uint32_t class, uint32_t bits)
{
	ebitmap_node_t *s, *t, *sa, *ta;
	uint32_t i, j, k, l;

	ebitmap_for_each_positive_bit(sources, s, i)
		ebitmap_for_each_positive_bit(targets, t, j) {
			uint32_t missing = bits;

			ebitmap_for_each_positive_bit(&db.type_attr_map[i], sa, k)
				ebitmap_for_each_positive_bit(&db.type_attr_map[j], ta, l) {
					avtab_key_t key = { k + 1, l + 1, class, AVTAB_ALLOWED };
					avtab_datum_t *rule = avtab_search(&db.te_avtab, &key);

					if (rule)
						missing &= ~rule->data;
				}
			if (missing)
				return false;
		}
	return true;
}

/* The key of a rule in the bare policy; false: it does not have its types. */
static bool bare_key(const avtab_key_t *key, avtab_key_t *in_bare)
{
	*in_bare = (avtab_key_t){ bare_types[key->source_type], bare_types[key->target_type], key->target_class,
				  key->specified & ~AVTAB_ENABLED };
	return in_bare->source_type && in_bare->target_type;
}

static void allow_rule(struct avtab_node *node, const avtab_t *in_bare, bool conditional)
{
	avtab_key_t key;
	uint32_t added = node->datum.data;

	if (bare_key(&node->key, &key))
		for (struct avtab_node *old = avtab_search_node((avtab_t *)in_bare, &key); old;
		     old = avtab_search_node_next(old, AVTAB_ALLOWED))
			added &= ~old->datum.data;
	if (!added)
		return;
	node->datum.data &= ~added;
	ebitmap_t sources = types_of(node->key.source_type), targets = types_of(node->key.target_type);
	judge(is_granted(&sources, &targets, node->key.target_class, added) ? NOTHING : ALLOWS_LESS, "(%sallow %s %s (%s (%s)))",
	      conditional ? "booleanif " : "", type(node->key.source_type), type(node->key.target_type),
	      class(node->key.target_class), sepol_av_to_string(&db, node->key.target_class, added) + 1);
	ebitmap_destroy(&sources);
	ebitmap_destroy(&targets);
	node->datum.data |= added;
}

/* The new type by a transition, change or member rule. */
static void type_rule(struct avtab_node *node, const avtab_t *in_bare)
{
	static const char *const kinds[] = { "transition", "member", "change" };
	uint16_t specified = node->key.specified;
	avtab_key_t key;

	if (bare_key(&node->key, &key) && avtab_search_node((avtab_t *)in_bare, &key))
		return;
	node->key.specified = 0;
	judge(CHANGES, "(type%s %s %s %s %s)", kinds[specified & AVTAB_TRANSITION ? 0 : specified & AVTAB_MEMBER ? 1 : 2],
	      type(node->key.source_type), type(node->key.target_type), class(node->key.target_class),
	      type(node->datum.data));
	node->key.specified = specified;
}

/* Emptied, a list of ioctl commands allows none of them; without any list, all are allowed. */
static void ioctl_list(struct avtab_node *node)
{
	avtab_extended_perms_t *list = node->datum.xperms, saved = *list;
	avtab_key_t key;

	if (bare_key(&node->key, &key) && avtab_search_node(&bare.te_avtab, &key))
		return;
	char *words = strdup(sepol_extended_perms_to_string(list));
	memset(list->perms, 0, sizeof list->perms);
	judge(ALLOWS_LESS, "(allowx %s %s (%s))", type(node->key.source_type), type(node->key.target_type), must(words));
	free(words);
	key = node->key;
	if (node == avtab_search_node(&db.te_avtab, &key)) {
		list->specified = AVTAB_XPERMS_IOCTLDRIVER;
		memset(list->perms, 0xff, sizeof list->perms);
		judge(CHANGES, "every (allowx %s %s (ioctl %s ...))", type(key.source_type), type(key.target_type),
		      class(key.target_class));
	}
	*list = saved;
}

static void access_rules(void)
{
	for (uint32_t slot = 0; slot < db.te_avtab.nslot; slot++)
		for (struct avtab_node *node = db.te_avtab.htable[slot]; node; node = node->next)
			if (node->key.specified & AVTAB_ALLOWED)
				allow_rule(node, &bare.te_avtab, false);
			else if (node->key.specified & AVTAB_TYPE)
				type_rule(node, &bare.te_avtab);
			else if (node->key.specified & AVTAB_XPERMS_ALLOWED)
				ioctl_list(node);
	for (uint32_t slot = 0; slot < db.te_cond_avtab.nslot; slot++)
		for (struct avtab_node *node = db.te_cond_avtab.htable[slot]; node; node = node->next)
			if (node->key.specified & AVTAB_ALLOWED)
				allow_rule(node, &bare.te_cond_avtab, true);
			else if (node->key.specified & AVTAB_TYPE)
				type_rule(node, &bare.te_cond_avtab);
}

static int named_transition(hashtab_key_t k, hashtab_datum_t d, void *unused)
{
	const filename_trans_key_t *key = (const filename_trans_key_t *)k;
	filename_trans_key_t in_bare = { bare_types[key->ttype], key->tclass, key->name };
	ebitmap_node_t *node;
	uint32_t bit;

	(void)unused;
	for (filename_trans_datum_t *rule = d; rule; rule = rule->next) {
		ebitmap_t sources;

		if (ebitmap_cpy(&sources, &rule->stypes))
			must(NULL);
		ebitmap_for_each_positive_bit(&sources, node, bit) {
			filename_trans_datum_t *old = hashtab_search(bare.filename_trans, (hashtab_key_t)&in_bare);

			while (old && !(bare_types[bit + 1] && ebitmap_get_bit(&old->stypes, bare_types[bit + 1] - 1)))
				old = old->next;
			if (old)
				continue;
			if (ebitmap_set_bit(&rule->stypes, bit, 0))
				must(NULL);
			judge(CHANGES, "(typetransition %s %s %s \"%s\" %s)", type(bit + 1), type(key->ttype),
			      class(key->tclass), key->name, type(rule->otype));
			if (ebitmap_set_bit(&rule->stypes, bit, 1))
				must(NULL);
		}
		ebitmap_destroy(&sources);
	}
	return 0;
}

static int range_transition(hashtab_key_t k, hashtab_datum_t d, void *unused)
{
	range_trans_t *key = (range_trans_t *)k;
	range_trans_t in_bare = { bare_types[key->source_type], bare_types[key->target_type], key->target_class };

	(void)d;
	(void)unused;
	if (hashtab_search(bare.range_tr, (hashtab_key_t)&in_bare))
		return 0;
	key->target_class = 0;
	judge(CHANGES, "(rangetransition %s %s %s ...)", type(key->source_type), type(key->target_type),
	      class(in_bare.target_class));
	key->target_class = in_bare.target_class;
	return 0;
}

static void roles(void)
{
	for (uint32_t r = 0; r < db.p_roles.nprim; r++) {
		role_datum_t *role = db.role_val_to_struct[r];
		const role_datum_t *old = base_roles[r + 1] ? base.role_val_to_struct[base_roles[r + 1] - 1] : NULL;
		const char *name = db.p_role_val_to_name[r];

		/* No policy says what object_r may have. */
		for (uint32_t t = 0; strcmp(name, "object_r") && t < db.p_types.nprim; t++) {
			if (!ebitmap_get_bit(&role->types.types, t) ||
			    (old && base_types[t + 1] && ebitmap_get_bit(&old->types.types, base_types[t + 1] - 1)))
				continue;
			if (ebitmap_set_bit(&role->types.types, t, 0) || ebitmap_set_bit(&role->cache, t, 0))
				must(NULL);
			forget_contexts("");
			judge(CHANGES, "(roletype %s %s)", name, type(t + 1));
			forget_contexts("");
			if (ebitmap_set_bit(&role->types.types, t, 1) || ebitmap_set_bit(&role->cache, t, 1))
				must(NULL);
		}
	}
	for (role_allow_t *rule = db.role_allow; rule; rule = rule->next) {
		const role_allow_t *old = base.role_allow;
		role_allow_t saved = *rule;

		while (old && !(old->role == base_roles[rule->role] && old->new_role == base_roles[rule->new_role]))
			old = old->next;
		if (old)
			continue;
		rule->role = 0;
		judge(CHANGES, "(roleallow %s %s)", db.p_role_val_to_name[saved.role - 1],
		      db.p_role_val_to_name[saved.new_role - 1]);
		rule->role = saved.role;
	}
}

/* Of two policies' constraints of a class, all but the types they name. */
static bool is_same(const constraint_node_t *one, const constraint_node_t *other)
{
	const constraint_expr_t *a = one->expr, *b = other->expr;

	while (a && b && a->expr_type == b->expr_type && a->attr == b->attr && a->op == b->op) {
		a = a->next;
		b = b->next;
	}
	return !a && !b && one->permissions == other->permissions;
}

static void constraints(constraint_node_t **list, const constraint_node_t *old, const char *kind, uint32_t value)
{
	for (constraint_node_t **link = list, *node; (node = *link); link = &node->next) {
		const constraint_node_t *same = old;

		while (same && !is_same(node, same))
			same = same->next;
		if (same)
			continue;
		*link = node->next;
		judge(CHANGES, "(%s (%s (%s)) ...)", kind, class(value),
		      node->permissions ? sepol_av_to_string(&db, value, node->permissions) + 1 : "");
		*link = node;
	}
}

static void all_constraints(void)
{
	for (uint32_t c = 0; c < db.p_classes.nprim; c++) {
		constraints(&db.class_val_to_struct[c]->constraints, base.class_val_to_struct[c]->constraints,
			    "constrain", c + 1);
		constraints(&db.class_val_to_struct[c]->validatetrans, base.class_val_to_struct[c]->validatetrans,
			    "validatetrans", c + 1);
	}
}

/* Takes a type out of the constraints that name an attribute of it, or puts it back. Were there any? */
static bool constrain_type(uint32_t attribute, uint32_t type, bool in)
{
	bool named = false;

	for (uint32_t c = 0; c < db.p_classes.nprim; c++)
		for (int kind = 0; kind < 2; kind++)
			for (constraint_node_t *node = kind ? db.class_val_to_struct[c]->constraints :
							      db.class_val_to_struct[c]->validatetrans;
			     node; node = node->next)
				for (constraint_expr_t *e = node->expr; e; e = e->next)
					if (e->expr_type == CEXPR_NAMES && e->attr & CEXPR_TYPE &&
					    ebitmap_get_bit(&e->type_names->types, attribute - 1) &&
					    !ebitmap_get_bit(&e->type_names->types, type - 1)) {
						if (ebitmap_set_bit(&e->names, type - 1, in))
							must(NULL);
						named = true;
					}
	return named;
}

/* Does a type lose any access that the rules for this attribute gave? */
static bool loses_access(uint32_t attribute, uint32_t type)
{
	ebitmap_t self;
	bool loses = false;

	ebitmap_init(&self);
	if (ebitmap_set_bit(&self, type - 1, 1))
		must(NULL);
	for (uint32_t slot = 0; slot < db.te_avtab.nslot && !loses; slot++)
		for (struct avtab_node *node = db.te_avtab.htable[slot]; node && !loses; node = node->next) {
			const avtab_key_t *key = &node->key;

			if (!(key->specified & AVTAB_ALLOWED) ||
			    (key->source_type != attribute && key->target_type != attribute))
				continue;
			ebitmap_t sources = key->source_type == attribute ? self : types_of(key->source_type);
			ebitmap_t targets = key->target_type == attribute ? self : types_of(key->target_type);

			loses = !is_granted(&sources, &targets, key->target_class, node->datum.data);
			if (key->source_type != attribute)
				ebitmap_destroy(&sources);
			if (key->target_type != attribute)
				ebitmap_destroy(&targets);
		}
	ebitmap_destroy(&self);
	return loses;
}

static void attributes(void)
{
	for (uint32_t t = 0; t < db.p_types.nprim; t++) {
		ebitmap_t members;
		ebitmap_node_t *node;
		uint32_t a;

		if (ebitmap_cpy(&members, &db.type_attr_map[t]))
			must(NULL);
		ebitmap_for_each_positive_bit(&members, node, a) {
			/* Sets that only the compiler names follow from the others. */
			if (a == t || !fnmatch("*_typeattr_[0-9]*", type(a + 1), 0) ||
			    (base_types[t + 1] && base_types[a + 1] &&
			     ebitmap_get_bit(&base.type_attr_map[base_types[t + 1] - 1], base_types[a + 1] - 1)))
				continue;
			if (ebitmap_set_bit(&db.type_attr_map[t], a, 0) || ebitmap_set_bit(&db.attr_type_map[a], t, 0))
				must(NULL);
			bool constrains = constrain_type(a + 1, t + 1, false);

			forget_contexts(type(a + 1));
			judge(constrains || loses_access(a + 1, t + 1) ? CHANGES : NOTHING,
			      "(typeattributeset %s (%s))", type(a + 1), type(t + 1));
			forget_contexts(type(a + 1));
			if (ebitmap_set_bit(&db.type_attr_map[t], a, 1) || ebitmap_set_bit(&db.attr_type_map[a], t, 1))
				must(NULL);
			constrain_type(a + 1, t + 1, true);
		}
		ebitmap_destroy(&members);
	}
}

/* Of each value of a symbol table here, the value of that name in the base. */
static uint32_t *values_in(const symtab_t *there, char *const *names, uint32_t count)
{
	uint32_t *values = must(calloc(count + 1, sizeof *values));

	for (uint32_t i = 0; i < count; i++) {
		const symtab_datum_t *datum = hashtab_search(there->table, names[i]);

		values[i + 1] = datum ? datum->value : 0;
	}
	return values;
}

int main(int argc, char **argv)
{
	if (argc != 5) {
		fputs("usage: mutate BASE BARE POLICY TABLE\n", stderr);
		return 2;
	}
	read_policy(&base, argv[1]);
	read_policy(&bare, argv[2]);
	load(argv[3]);
	read_table(argv[4]);
	if (table_fails(true)) {
		fputs("mutate: the table does not hold as it is\n", stderr);
		return 2;
	}
	base_types = values_in(&base.p_types, db.p_type_val_to_name, db.p_types.nprim);
	bare_types = values_in(&bare.p_types, db.p_type_val_to_name, db.p_types.nprim);
	base_roles = values_in(&base.p_roles, db.p_role_val_to_name, db.p_roles.nprim);
	access_rules();
	hashtab_map(db.filename_trans, named_transition, NULL);
	hashtab_map(db.range_tr, range_transition, NULL);
	roles();
	all_constraints();
	attributes();
	printf("%u rules: the loss of %u is noticed, of %u not; %u change nothing\n", rules, rules - survivors - idle,
	       survivors, idle);
	return 0;
}
