/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * goroutine.h: a goroutine's entry in the table of open spans: found, made, given back. One
 * that serves a connection keeps it between requests.
 */
#ifndef AGENT_GOROUTINE_H
#define AGENT_GOROUTINE_H

#include "probe.h"
#include "table.h"

static __always_inline struct goroutine *goroutine_at(const struct table_entry *e)
{
	u32 index = e->value;

	return bpf_map_lookup_elem(&goroutines, &index);
}

/* The next four are global functions of numbers only: the verifier looks at them once, and
 * not again for each program that calls them. Those that claim an entry return its index
 * and TABLE_TAKEN, or 0. */
#define TABLE_TAKEN (1ULL << 32)

__noinline u64 goroutine_claim(u64 goroutine, u32 tgid)
{
	struct table_entry *e;
	struct goroutine *g;
	u32 index = 0;

	e = table_claim(&goroutine_table, goroutine, tgid, &index);
	if (!e)
		return 0;
	e->value = index;
	g = bpf_map_lookup_elem(&goroutines, &index);
	if (g)
		g->depth = 0; /* whatever a process that was killed has left there */
	table_publish(e, goroutine);
	return index | TABLE_TAKEN;
}

__noinline u64 goroutine_remove(u64 goroutine, u32 tgid)
{
	table_remove(&goroutine_table, goroutine, tgid);
	return 0;
}

__noinline u64 context_remove(u64 context, u64 goroutine, u32 tgid)
{
	struct table_entry *e = table_find(&context_table, context, tgid);

	/* Not where its memory is another context by now, registered by another g. */
	if (e && e->value == goroutine)
		table_remove(&context_table, context, tgid);
	return 0;
}

__noinline u64 context_claim(u64 context, u64 goroutine, u32 tgid)
{
	struct table_entry *e = table_find(&context_table, context, tgid), *owner;
	struct goroutine *g;
	u32 index = 0;

	if (e) {
		/* Memory is used again: the connection of whoever is there is gone. */
		owner = e->value == goroutine ? NULL : table_find(&goroutine_table, e->value, tgid);
		g = owner ? goroutine_at(owner) : NULL;
		if (g && g->context == context)
			g->context = 0;
		context_remove(context, e->value, tgid);
	}
	e = table_claim(&context_table, context, tgid, &index);
	if (!e)
		return 0;
	e->value = goroutine;
	table_publish(e, context);
	return index | TABLE_TAKEN;
}

/* Forgets the context that a goroutine has registered. */
static __always_inline void context_forget(const struct probe *p, struct goroutine *g)
{
	context_remove(g->context, p->goroutine, p->tgid);
	g->context = 0;
	g->request_context = 0;
	g->parks = 0;
}

static __always_inline void goroutine_delete(const struct probe *p, struct goroutine *g)
{
	g->depth = 0; /* if user space has withdrawn it, it learns that nothing is open */
	if (g->parks)
		return;
	/* Memory of a context is used again: a registration that outlived its request
	 * would join strangers. */
	if (g->context)
		context_forget(p, g);
	goroutine_remove(p->goroutine, p->tgid);
}

/* The entry of this goroutine, NULL if nothing is open there. Enough for whoever ends a
 * span: it was begun by the same goroutine, which then dropped what a dead one had left. */
static __always_inline struct goroutine *goroutine_here(const struct probe *p)
{
	struct table_entry *e = table_find(&goroutine_table, p->goroutine, p->tgid);
	struct goroutine *g = e ? goroutine_at(e) : NULL;

	return g && g->depth ? g : NULL;
}

/* The open spans of the goroutine whose g is at an address, NULL if it has none. What a
 * dead goroutine left behind when its g struct is used again is dropped here. */
static __always_inline struct goroutine *goroutine_find(const struct probe *p,
							const struct runtime_layout *rt,
							u64 address)
{
	struct table_entry *e = table_find(&goroutine_table, address, p->tgid);
	struct goroutine *g;

	if (!e)
		return NULL;
	g = goroutine_at(e);
	if (!g || !g->depth)
		return NULL;
	if (g->goid == go_word(address + rt->g_goid))
		return g;
	if (address != p->goroutine)
		return NULL; /* not ours to delete */
	count(p, COUNT_LOST_UNFINISHED, g->depth);
	goroutine_delete(p, g);
	return NULL;
}

/* Makes an entry as if nothing had ever been open there, but for its context. */
static __always_inline void goroutine_clear(struct goroutine *g)
{
	g->depth = 0;
	g->sampled = 0;
	g->tracestate = 0;
	g->route_len = 0;
	g->random = 0;
	g->owner = 0;
	g->root_id = 0;
	g->stash_missed = 0;
	g->backed_off = 0;
	g->remote_limited = REMOTE_FREE;
	/* A cache line of their own, which few requests need. */
	if (g->stashes)
		__builtin_memset(g->stash_claims, 0, sizeof(g->stash_claims));
	g->stashes = 0;
}

/* An entry for this goroutine, in which nothing is open; NULL if there is no room. What is
 * still open in the one it has is dropped: a goroutine serves one request after the other.
 * The registered context stays. */
static __always_inline struct goroutine *goroutine_renew(const struct probe *p,
							 const struct runtime_layout *rt)
{
	struct table_entry *e = table_find(&goroutine_table, p->goroutine, p->tgid);
	struct goroutine *g;
	u64 taken;
	u32 index;

	if (e) {
		g = goroutine_at(e);
		if (!g)
			return NULL; /* cannot be: there are as many as ways */
		if (g->depth)
			count(p, COUNT_LOST_UNFINISHED, g->depth);
	} else {
		taken = goroutine_claim(p->goroutine, p->tgid);
		if (!taken)
			return NULL;
		index = taken;
		g = bpf_map_lookup_elem(&goroutines, &index);
		if (!g)
			return NULL;
		g->context = 0;
		g->request_context = 0;
		g->may_park = table_may_park(p->goroutine, p->tgid, index);
		g->parks = 0;
		g->stashes = 1;
	}
	goroutine_clear(g);
	g->goid = go_word(p->goroutine + rt->g_goid);
	return g;
}

/* The same, with no context. */
static __always_inline struct goroutine *goroutine_add(const struct probe *p,
						       const struct runtime_layout *rt)
{
	struct goroutine *g = goroutine_renew(p, rt);

	if (g && g->context)
		context_forget(p, g);
	return g;
}

#endif
