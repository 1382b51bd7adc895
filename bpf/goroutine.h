/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * goroutine.h: a goroutine's entry in the table of open spans: found, made, given back.
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

/* These are global functions of numbers only: the verifier looks at them once, and not again
 * for each program that calls them. Those that claim an entry return its index and
 * TABLE_TAKEN, or 0. */
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

__noinline u64 context_claim(u64 context, u64 goroutine, u32 tgid)
{
	struct table_entry *e;
	u32 index = 0;

	e = table_claim(&context_table, context, tgid, &index);
	if (!e)
		return 0;
	e->value = goroutine;
	table_publish(e, context);
	return index | TABLE_TAKEN;
}

__noinline u64 context_remove(u64 context, u32 tgid)
{
	table_remove(&context_table, context, tgid);
	return 0;
}

static __always_inline void goroutine_delete(const struct probe *p, struct goroutine *g)
{
	/* Memory of a context is used again: a registration that outlived its request
	 * would join strangers. */
	if (g->context)
		context_remove(g->context, p->tgid);
	g->depth = 0; /* if user space has withdrawn it, it learns that nothing is open */
	goroutine_remove(p->goroutine, p->tgid);
}

/* The entry of this goroutine, NULL if it has none. Enough for whoever ends a span: it
 * was begun by the same goroutine, which then dropped what a dead one had left. */
static __always_inline struct goroutine *goroutine_here(const struct probe *p)
{
	struct table_entry *e = table_find(&goroutine_table, p->goroutine, p->tgid);

	return e ? goroutine_at(e) : NULL;
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
	if (!g || g->goid == go_word(address + rt->g_goid))
		return g;
	if (address != p->goroutine)
		return NULL; /* not ours to delete */
	count(p, COUNT_LOST_UNFINISHED, g->depth);
	goroutine_delete(p, g);
	return NULL;
}

/* An entry for this goroutine, which has none; NULL if there is no room. */
static __always_inline struct goroutine *goroutine_add(const struct probe *p,
						       const struct runtime_layout *rt)
{
	u64 taken = goroutine_claim(p->goroutine, p->tgid);
	u32 index = taken;
	struct goroutine *g;

	if (!taken)
		return NULL;
	g = bpf_map_lookup_elem(&goroutines, &index);
	if (!g)
		return NULL; /* cannot be: there are as many as ways */
	g->goid = go_word(p->goroutine + rt->g_goid);
	g->context = 0;
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
	__builtin_memset(g->stash_claims, 0, sizeof(g->stash_claims));
	return g;
}

#endif
