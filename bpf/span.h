/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * span.h: the life of a span in the kernel. A library's program calls
 *
 *   probe_begin, probe_enter  who fired: process, binary, goroutine (probe.h); the former
 *                             where a span begins
 *   span_push                 a server span on a new goroutine entry, or
 *   span_here                 the goroutine's entry, as it is for a client span
 *   span_begin_child          a client span below what that or the context has open
 *   span_innermost            find it again when its end is seen
 *   record_fill, record_submit  the record, if the trace is sampled (sampling.h), or
 *   stash_add                 remembered in case that the local root fails (stash.h)
 *   span_pop                  and it is gone
 *
 * Whatever cannot go on is counted by reason.
 */
#ifndef AGENT_SPAN_H
#define AGENT_SPAN_H

#include "sampling.h"

/* Pushes a span; the caller fills in object. NULL if there is no room (counted). */
static __always_inline struct frame *span_push(const struct probe *p, struct goroutine *g,
					       u32 kind, u64 parent_id)
{
	struct frame *f;
	u32 depth = g->depth;

	if (depth >= MAX_FRAMES) {
		count(p, COUNT_LOST_STACK_FULL, 1);
		return NULL;
	}
	f = &g->frames[depth & (MAX_FRAMES - 1)];
	f->kind = kind;
	f->flags = 0;
	f->parent_id = parent_id;
	f->start_ns = bpf_ktime_get_ns();
	/* No goroutine begins two at a time; where the clock is coarse, what the frame had
	 * before is another one's. */
	f->span_id = derived_id(g->trace_id[1], f->start_ns ^ f->span_id ^ (u64)p->tgid << 32 ^
							p->goroutine * 0x9fb21c651e98df25ULL);
	if (!g->root_id)
		g->root_id = f->span_id;
	g->depth = depth + 1;
	return f;
}

static __always_inline struct frame *span_innermost(struct goroutine *g)
{
	if (!g->depth || g->depth > MAX_FRAMES)
		return NULL;
	return &g->frames[(g->depth - 1) & (MAX_FRAMES - 1)];
}

/* Pops the innermost span, and with the last one deletes the goroutine's entry: the
 * memory of g and of its frames is another goroutine's from here on. */
static __always_inline void span_pop(const struct probe *p, struct goroutine *g)
{
	if (g->depth > 1)
		g->depth--;
	else
		goroutine_delete(p, g);
}

/* The goroutine whose open span this one belongs below, by what it was handed or by who
 * started it; NULL if there is none. */
static __always_inline struct goroutine *span_owner(const struct probe *p,
						    const struct runtime_layout *rt,
						    u64 context_itab, u64 context_data,
						    struct sdk_span *sdk, u64 *owner)
{
	struct goroutine_key key = { .address = p->goroutine, .tgid = p->tgid };
	u64 address = context_parent(p, context_itab, context_data, sdk);
	struct lineage *l;
	struct goroutine *g;

	*owner = address;
	if (address)
		return goroutine_find(p, rt, address);
	if (!rt->g_m || sdk->span_id || sdk->made)
		return NULL;
	l = bpf_map_lookup_elem(&lineages, &key);
	if (!l || l->goid != go_word(p->goroutine + rt->g_goid))
		return NULL;
	*owner = l->owner;
	g = goroutine_find(p, rt, l->owner);
	return g && g->frames[0].span_id == l->span_id ? g : NULL;
}

/* Begins a span of another trace than the goroutine's. */
static __always_inline struct frame *span_push_foreign(const struct probe *p, struct goroutine *g,
						       u32 kind, const u64 trace_id[2],
						       u64 parent_id, bool sampled)
{
	struct frame *f = span_push(p, g, kind, parent_id);

	if (!f)
		return NULL;
	f->trace_id[0] = trace_id[0];
	f->trace_id[1] = trace_id[1];
	f->flags |= SPAN_FOREIGN | (sampled ? SPAN_FOREIGN_SAMPLED : 0);
	return f;
}

/* Begins a client span below a span of the SDK, which has decided about the trace. Below one
 * of a client it would be the same operation once more. */
static __always_inline struct frame *span_begin_sdk(const struct probe *p,
						    const struct runtime_layout *rt,
						    struct goroutine *g, u32 kind,
						    const struct sdk_span *sdk)
{
	if (sdk->kind == SDK_KIND_CLIENT) {
		count(p, COUNT_STOOD_DOWN, 1);
		return NULL;
	}
	if (!g)
		g = goroutine_add(p, rt);
	if (!g) {
		count(p, COUNT_LOST_GOROUTINES_FULL, 1);
		return NULL;
	}
	return span_push_foreign(p, g, kind, sdk->trace_id, sdk->span_id,
				 (sdk->flags & TRACE_FLAG_SAMPLED) && !rt->no_spans);
}

/* Whether an open span of the goroutine is of a trace. */
static __always_inline bool span_is_of(const struct goroutine *g, const struct frame *f,
				       const u64 trace_id[2])
{
	if (f->flags & SPAN_FOREIGN)
		return f->trace_id[0] == trace_id[0] && f->trace_id[1] == trace_id[1];
	return g->trace_id[0] == trace_id[0] && g->trace_id[1] == trace_id[1];
}

/* Begins a client span below one that the program has made by hand, or below what this
 * goroutine has begun within that. */
static __always_inline struct frame *span_begin_made(const struct probe *p,
						     const struct runtime_layout *rt,
						     struct goroutine *g, u32 kind,
						     const struct auto_span *made)
{
	u64 parent_id = made->frame.span_id;
	struct frame *f;

	if (g && g->depth) {
		f = span_innermost(g);
		if (f && span_is_of(g, f, made->trace_id)) {
			if (f->start_ns > made->frame.start_ns)
				parent_id = f->span_id;
			if (!(f->flags & SPAN_FOREIGN))
				return span_push(p, g, kind, parent_id);
		}
	} else {
		if (!g)
			g = goroutine_add(p, rt);
		if (!g) {
			count(p, COUNT_LOST_GOROUTINES_FULL, 1);
			return NULL;
		}
		if (made->owner) {
			g->trace_id[0] = made->trace_id[0];
			g->trace_id[1] = made->trace_id[1];
			g->sampled = made->sampled;
			g->backed_off = made->backed_off;
			g->remote_limited = made->remote_limited;
			g->random = made->random;
			g->root_id = made->root_id;
			g->owner = made->owner;
			return span_push(p, g, kind, parent_id);
		}
	}
	return span_push_foreign(p, g, kind, made->trace_id, parent_id, made->sampled);
}

/* Where requests have spans of the SDK, ours will stand down: what it hands no context
 * must not be its child. */
static __always_inline bool span_is_sdk_request(const struct probe *p,
						const struct runtime_layout *rt,
						const struct goroutine *g)
{
	struct process *process;

	if (!rt->sdk_spans || g->depth != 1 || !g->context)
		return false;
	process = process_of(p);
	return process && process->sdk_server;
}

/* The entry of this goroutine, for a span that begins at a stack pointer; NULL if there is
 * none. An open span of the same kind is the parent if it is deeper in the stack, as one of
 * a driver built on database/sql is. Else a panic left it behind, and it is dropped. (A stack
 * that moved in between can mislead this; it costs a span, no more.) */
static __always_inline struct goroutine *span_here(const struct probe *p,
						   const struct runtime_layout *rt, u32 kind, u64 sp)
{
	struct goroutine *g = goroutine_find(p, rt, p->goroutine);
	struct frame *f = g ? span_innermost(g) : NULL;

	barrier_var(f);
	if (!f || f->kind != kind || sp < f->sp)
		return g;
	count(p, COUNT_LOST_UNFINISHED, 1);
	span_pop(p, g);
	return goroutine_here(p);
}

/* Begins a client span: below the innermost open span of the goroutine, whose entry is g,
 * else below the span that its context or its starter has open, else as a root. */
static __always_inline struct frame *span_begin_child(const struct probe *p,
						      const struct runtime_layout *rt,
						      struct goroutine *g, u32 kind,
						      u64 context_itab, u64 context_data)
{
	struct goroutine *owner = NULL;
	struct frame *below;
	u64 parent_id = 0, owner_address = 0, trace_id[2];
	struct sdk_span sdk = {};

	if (!g || rt->sdk_spans)
		owner = span_owner(p, rt, context_itab, context_data, &sdk, &owner_address);
	if (sdk.made)
		return span_begin_made(p, rt, g, kind, sdk.made);
	if (sdk.span_id)
		return span_begin_sdk(p, rt, g, kind, &sdk);
	if (!g) {
		g = goroutine_add(p, rt);
		if (!g) {
			count(p, COUNT_LOST_GOROUTINES_FULL, 1);
			return NULL;
		}
		if (owner && owner->depth) {
			g->trace_id[0] = owner->trace_id[0];
			g->trace_id[1] = owner->trace_id[1];
			g->sampled = owner->sampled;
			g->backed_off = owner->backed_off;
			g->remote_limited = owner->remote_limited;
			g->random = owner->random;
			g->root_id = owner->root_id;
			g->owner = owner_address;
			parent_id = owner->frames[0].span_id;
		} else {
			trace_new(g, rt);
		}
	} else if (!owner && span_is_sdk_request(p, rt, g)) {
		trace_id[0] = random_u64();
		trace_id[1] = random_id();
		return span_push_foreign(p, g, kind, trace_id, 0,
					 !rt->no_spans && sample(trace_id[1], false, 0));
	} else if (g->depth) {
		below = &g->frames[(g->depth - 1) & (MAX_FRAMES - 1)];
		parent_id = below->span_id;
		if (below->flags & SPAN_FOREIGN)
			return span_push_foreign(p, g, kind, below->trace_id, parent_id,
						 below->flags & SPAN_FOREIGN_SAMPLED);
	}
	return span_push(p, g, kind, parent_id);
}

/* Drops what is open above depth: begun, and left by a panic. */
static __always_inline void span_unwind(const struct probe *p, struct goroutine *g, u32 depth)
{
	if (g->depth <= depth)
		return;
	count(p, COUNT_LOST_UNFINISHED, g->depth - depth);
	g->depth = depth;
}

static __always_inline void record_fill(struct record_header *r, const struct probe *p,
					const struct goroutine *g, const struct frame *f,
					u64 end_ns, u64 series)
{
	r->kind = f->kind;
	r->tgid = p->tgid;
	r->flags = f->flags | trace_flags(g);
	r->binary = p->binary;
	r->start_ns = f->start_ns;
	r->end_ns = end_ns;
	__builtin_memcpy(r->trace_id, f->flags & SPAN_FOREIGN ? f->trace_id : g->trace_id, 16);
	__builtin_memcpy(r->span_id, &f->span_id, 8);
	__builtin_memcpy(r->parent_id, &f->parent_id, 8);
	r->series = series;
}

/* What is remembered of a span that a recovered panic ends: taken before it ends. */
static __always_inline struct panicked panicked_of(const struct goroutine *g)
{
	struct panicked panicked = {
		.goid = g->goid,
		.trace_id = { g->trace_id[0], g->trace_id[1] },
		.span_id = g->frames[0].span_id,
		.trace_flags = g->sampled | (g->random ? TRACE_FLAG_RANDOM : 0),
	};

	return panicked;
}

static __always_inline void panicked_add(const struct probe *p, const struct panicked *panicked)
{
	struct goroutine_key key = { .address = p->goroutine, .tgid = p->tgid };
	struct process *process = process_of(p);

	if (!process)
		return;
	bpf_map_update_elem(&panics, &key, panicked, BPF_ANY);
	__sync_fetch_and_add(&process->panicked, 1);
}

static __always_inline struct panicked *panicked_find(const struct probe *p,
						      const struct process *process,
						      const struct runtime_layout *rt,
						      u64 address)
{
	struct goroutine_key key = { .address = address, .tgid = p->tgid };
	struct panicked *panicked;

	if (!process || !process->panicked)
		return NULL;
	panicked = bpf_map_lookup_elem(&panics, &key);
	if (!panicked || panicked->goid != go_word(address + rt->g_goid))
		return NULL;
	return panicked;
}

static __always_inline void record_submit(struct process *process, void *record)
{
	bpf_ringbuf_submit(record, ring_wakeup(&ring));
	count_in(process, COUNT_EMITTED, 1);
}

/* Is this the span that decides for its trace, as far as it is here? */
static __always_inline bool span_is_local_root(const struct goroutine *g, const struct frame *f)
{
	return g->root_id == f->span_id;
}

/* Whether a span is sampled: as its trace is. */
static __always_inline bool span_sampled(const struct goroutine *g, const struct frame *f)
{
	return f->flags & SPAN_FOREIGN ? f->flags & SPAN_FOREIGN_SAMPLED : g->sampled;
}

/* Counts spans of a trace that is not sampled, by the reason for that. */
static __always_inline void count_unsampled_n(struct process *process, const struct goroutine *g,
					      u64 n)
{
	enum counter c = COUNT_SAMPLED_OUT;

	if (g->backed_off == DROPPED_BY_RULE)
		c = COUNT_DROPPED_BY_RULE;
	else if (g->backed_off)
		c = COUNT_LOST_BACKED_OFF;
	else if (g->remote_limited == REMOTE_REFUSED)
		c = COUNT_REMOTE_LIMITED;
	count_in(process, c, n);
}

static __always_inline void count_unsampled(struct process *process, const struct goroutine *g)
{
	count_unsampled_n(process, g, 1);
}

/* Remembers an ended child until its local root, which the goroutine owner has open, ends;
 * body is STASH_BODY words. False: nothing waits for it. */
static __always_inline bool stash_add_to(struct goroutine *owner, u64 root_id,
					 const struct frame *f, u64 end_ns, const void *body)
{
	if (!owner || owner->root_id != root_id || owner->backed_off || !keep_possible())
		return false;
	for (u32 i = 0; i < MAX_STASHED; i++) {
		struct stashed *s = &owner->stash[i];

		if (*(volatile u32 *)&owner->stash_claims[i])
			continue;
		__sync_fetch_and_add(&owner->stash_claims[i], 1);
		if (*(volatile u32 *)&owner->stash_claims[i] != 1)
			continue;
		s->start_ns = f->start_ns;
		s->end_ns = end_ns;
		s->span_id = f->span_id;
		s->parent_id = f->parent_id;
		s->kind = f->kind;
		s->flags = f->flags;
		__builtin_memcpy(s->body, body, sizeof(s->body));
		s->root_id = root_id;
		return true;
	}
	__sync_fetch_and_add(&owner->stash_missed, 1);
	return true;
}

static __always_inline bool stash_add(const struct probe *p, const struct runtime_layout *rt,
				      struct goroutine *g, const struct frame *f, u64 end_ns,
				      const void *body)
{
	struct goroutine *owner = g->owner ? goroutine_find(p, rt, g->owner) : g;

	return stash_add_to(owner, g->root_id, f, end_ns, body);
}

#endif
