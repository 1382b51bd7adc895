/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * stash.h: what becomes of the children that a local root's end decides on.
 */
#ifndef AGENT_STASH_H
#define AGENT_STASH_H

#include "metric.h"

/* A record as it is rebuilt: the layout of every client span's record. */
struct stash_small {
	struct record_header header;
	u64 body[STASH_BODY];
	char text[SERIES_TEXT_MAX];
};

static __noinline int stash_emit(struct process *process, struct goroutine *g, u32 i,
				 const struct probe *p, u32 keep)
{
	struct stashed *s;
	struct stash_small *r;
	struct series *series;

	if (!process || !g || !p)
		return 0;
	s = &g->stash[i & (MAX_STASHED - 1)];
	r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r) {
		count_in(process, COUNT_LOST_RING_FULL, 1);
		return 0;
	}
	r->header.kind = s->kind;
	r->header.tgid = p->tgid;
	r->header.flags = s->flags | keep | trace_flags(g);
	r->header.binary = p->binary;
	r->header.start_ns = s->start_ns;
	r->header.end_ns = s->end_ns;
	__builtin_memcpy(r->header.trace_id, g->trace_id, 16);
	__builtin_memcpy(r->header.span_id, &s->span_id, 8);
	__builtin_memcpy(r->header.parent_id, &s->parent_id, 8);
	r->header.series = 0;
	__builtin_memcpy(r->body, s->body, sizeof(r->body));
	r->text[0] = 0;
	series = bpf_map_lookup_elem(&all_series, (struct series_key *)s->body);
	if (series) {
		r->header.series = series->id;
		bpf_probe_read_kernel(r->text, sizeof(r->text), series->text);
	}
	record_submit(process, r);
	return 0;
}

/* Gives the stashed children of a local root to the ring, or forgets them. */
static __always_inline void stash_settle(const struct probe *p, struct process *process,
					 struct goroutine *g, u32 keep)
{
	u32 forgotten = 0;

	for (u32 i = 0; i < MAX_STASHED; i++) {
		if (!g->stash_claims[i] || g->stash[i].root_id != g->root_id)
			continue;
		g->stash[i].root_id = 0;
		if (keep)
			stash_emit(process, g, i, p, keep);
		else
			forgotten++;
	}
	if (keep)
		count_in(process, COUNT_LOST_STASH_FULL, g->stash_missed);
	else
		forgotten += g->stash_missed;
	count_unsampled_n(process, g, forgotten);
}

#endif
