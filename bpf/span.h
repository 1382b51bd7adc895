/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * span.h: the life of a span in the kernel. A library's program calls
 *
 *   probe_enter     who fired: process, binary, goroutine
 *   span_begin      push an open span on the goroutine, find its parent, decide on sampling
 *   span_innermost  find it again when its end is seen
 *   span_end        pop it, and say whether a record is wanted
 *
 * and gives the record to the ring. Whatever cannot go on is counted by reason.
 */
#ifndef AGENT_SPAN_H
#define AGENT_SPAN_H

#include "table.h"

/* An attach cookie says which site of which binary fired:
 * binary (16 bits), flags (8 bits), address of the site as linked (40 bits). */
#define COOKIE_STACK_CHECK (1ULL << 40) /* the site is the branch of the stack check */
#define COOKIE_ADDRESS ((1ULL << 40) - 1)
#define COOKIE_VARIANT(cookie) (((cookie) >> 44) & 0xf)

#define MAX_CONTEXT_DEPTH 24

struct probe {
	u64 bias;
	u64 goroutine;
	u32 tgid;
	u32 binary;
	u32 variant; /* tells sites of one program apart */
	u32 pad;
};

static const struct process no_process;

/* False when the function has not begun: its stack grows, and it starts again. */
static __always_inline bool probe_enter(struct pt_regs *ctx, struct probe *p)
{
	u64 cookie = bpf_get_attach_cookie(ctx);

	if ((cookie & COOKIE_STACK_CHECK) && GO_STACK_CHECK_TAKEN(ctx))
		return false;
	p->tgid = bpf_get_current_pid_tgid() >> 32;
	p->binary = cookie >> 48;
	p->variant = COOKIE_VARIANT(cookie);
	p->bias = GO_IP(ctx) - (cookie & COOKIE_ADDRESS);
	p->goroutine = GO_G(ctx);
	p->pad = 0;
	return true;
}

static __always_inline struct process *process_of(const struct probe *p)
{
	struct process *process = bpf_map_lookup_elem(&processes, &p->tgid);

	if (process)
		return process;
	/* A process of a probed binary that user space has not found yet. */
	bpf_map_update_elem(&processes, &p->tgid, &no_process, BPF_NOEXIST);
	process = bpf_map_lookup_elem(&processes, &p->tgid);
	if (process) {
		process->binary = p->binary;
		process->bias = p->bias;
	}
	return process;
}

static __always_inline void count_in(struct process *process, enum counter c, u64 n)
{
	if (process && n)
		__sync_fetch_and_add(&process->counters[c], n);
}

/* For what happens rarely: looks the process up. */
static __always_inline void count(const struct probe *p, enum counter c, u64 n)
{
	if (n)
		count_in(process_of(p), c, n);
}

static __always_inline struct runtime_layout *runtime_layout(const struct probe *p)
{
	return bpf_map_lookup_elem(&runtime_layouts, &p->binary);
}

static __always_inline struct goroutine *goroutine_at(const struct table_entry *e)
{
	u32 index = e->value;

	return bpf_map_lookup_elem(&goroutines, &index);
}

static __always_inline void goroutine_delete(const struct probe *p, struct goroutine *g)
{
	/* Memory of a context is used again: a registration that outlived its request
	 * would join strangers. */
	if (g->context)
		table_remove(&context_table, g->context, p->tgid);
	table_remove(&goroutine_table, p->goroutine, p->tgid);
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

static __always_inline struct goroutine *goroutine_add(const struct probe *p,
						       const struct runtime_layout *rt)
{
	struct table_entry *e;
	struct goroutine *g;
	u32 index = 0;

	e = table_claim(&goroutine_table, p->goroutine, p->tgid, &index);
	if (!e)
		return NULL;
	e->value = index;
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
	__builtin_memset(g->stash_claims, 0, sizeof(g->stash_claims));
	table_publish(e, p->goroutine);
	return g;
}

/* Lets goroutines that are handed this context find the spans of this one. */
static __always_inline void context_register(const struct probe *p, struct goroutine *g,
					     u64 context)
{
	struct table_entry *e;
	u32 index = 0;

	if (!context)
		return;
	e = table_claim(&context_table, context, p->tgid, &index);
	if (!e) {
		count(p, COUNT_CONTEXTS_FULL, 1);
		return;
	}
	e->value = p->goroutine;
	g->context = context;
	table_publish(e, context);
}

static __always_inline u64 random_u64(void)
{
	u64 high = bpf_get_prandom_u32();

	return (high << 32) | bpf_get_prandom_u32();
}

static __always_inline u64 random_id(void)
{
	u64 id = random_u64();

	return id ? id : 1; /* all zero is not a valid id */
}

static __always_inline struct settings *settings_get(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&agent_settings, &zero);
}

#define TRACE_FLAG_SAMPLED 1
#define TRACE_FLAG_RANDOM 2

/* Decides where a trace starts here. SAMPLER_RATIO is OpenTelemetry's TraceIdRatioBased
 * as the Python SDK has it: keep what is below the threshold. SAMPLER_PROBABILITY keeps
 * what is at or above it, of the low 56 bits: the other end of the range. */
static __always_inline bool sample(u64 trace_id_low_be, bool remote, u32 trace_flags)
{
	struct settings *s = settings_get();
	u64 number = __builtin_bswap64(trace_id_low_be);

	if (!s)
		return false;
	if (s->sampler == SAMPLER_PARENT_RATIO && remote)
		return trace_flags & TRACE_FLAG_SAMPLED;
	if (s->sample_all)
		return true;
	if (s->sampler == SAMPLER_PROBABILITY)
		return (number & ((1ULL << 56) - 1)) >= s->sample_threshold;
	return number < s->sample_threshold;
}

/* Takes the decision for a trace whose id is known. While spans are given up none is
 * sampled, so what is exported before and after consists of whole traces. */
static __always_inline void trace_decide(struct goroutine *g, const struct runtime_layout *rt,
					 bool remote, u32 trace_flags)
{
	g->backed_off = rt->no_spans != 0;
	g->sampled = !g->backed_off && sample(g->trace_id[1], remote, trace_flags);
}

static __always_inline void trace_new(struct goroutine *g, const struct runtime_layout *rt)
{
	g->trace_id[0] = random_u64();
	g->trace_id[1] = random_id();
	g->random = 1;
	trace_decide(g, rt, false, 0);
}

/* Where the open spans are that a context.Context stems from; 0 if nowhere. Walks
 * from child to parent by the types found in the binary, and stops at an unknown. */
static __always_inline u64 context_owner(const struct probe *p, u64 itab, u64 data)
{
	struct type_key type = { .type = go_type_of(itab, p->bias), .binary = p->binary };

	for (int i = 0; i < MAX_CONTEXT_DEPTH; i++) {
		struct table_entry *owner;
		struct type_info *info;
		struct go_iface parent;

		if (!data || !type.type)
			return 0;
		owner = table_find(&context_table, data, p->tgid);
		if (owner)
			return owner->value;
		info = bpf_map_lookup_elem(&types, &type);
		if (!info)
			return 0;
		if (info->role == TYPE_CONTEXT_VALUE) {
			data += info->offset;
			type.type = info->next;
			continue;
		}
		if (info->role == TYPE_CONTEXT_POINTER) {
			data = go_word(data + info->offset);
			type.type = info->next;
			continue;
		}
		if (info->role == TYPE_CONTEXT_INTERFACE) {
			parent = go_iface(data + info->offset);
		} else if (info->role == TYPE_CONTEXT_INDIRECT) {
			data = go_word(data + info->offset);
			if (!data)
				return 0;
			parent = go_iface(data + info->next);
		} else {
			return 0;
		}
		data = parent.data;
		type.type = go_type_of(parent.tab, p->bias);
	}
	return 0;
}

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
	f->span_id = random_id();
	f->parent_id = parent_id;
	f->start_ns = bpf_ktime_get_ns();
	if (!g->root_id)
		g->root_id = f->span_id;
	g->depth = depth + 1;
	return f;
}

/* The goroutine whose open span this one belongs below, by what it was handed or by who
 * started it; NULL if there is none. */
static __always_inline struct goroutine *span_owner(const struct probe *p,
						    const struct runtime_layout *rt,
						    u64 context_itab, u64 context_data,
						    u64 *owner)
{
	struct goroutine_key key = { .address = p->goroutine, .tgid = p->tgid };
	u64 address = context_owner(p, context_itab, context_data);
	struct lineage *l;
	struct goroutine *g;

	*owner = address;
	if (address)
		return goroutine_find(p, rt, address);
	if (!rt->g_m)
		return NULL;
	l = bpf_map_lookup_elem(&lineages, &key);
	if (!l || l->goid != go_word(p->goroutine + rt->g_goid))
		return NULL;
	*owner = l->owner;
	g = goroutine_find(p, rt, l->owner);
	return g && g->frames[0].span_id == l->span_id ? g : NULL;
}

/* Begins a client span: below the innermost open span of the goroutine, else below the
 * span that its context or its starter has open, else as a root. */
static __always_inline struct frame *span_begin_child(const struct probe *p,
						      const struct runtime_layout *rt, u32 kind,
						      u64 context_itab, u64 context_data)
{
	struct goroutine *g, *owner;
	u64 parent_id = 0, owner_address = 0;

	g = goroutine_find(p, rt, p->goroutine);
	if (!g) {
		owner = span_owner(p, rt, context_itab, context_data, &owner_address);
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
			g->random = owner->random;
			g->root_id = owner->root_id;
			g->owner = owner_address;
			parent_id = owner->frames[0].span_id;
		} else {
			trace_new(g, rt);
		}
	} else if (g->depth) {
		parent_id = g->frames[(g->depth - 1) & (MAX_FRAMES - 1)].span_id;
	}
	return span_push(p, g, kind, parent_id);
}

static __always_inline struct frame *span_innermost(struct goroutine *g)
{
	if (!g->depth || g->depth > MAX_FRAMES)
		return NULL;
	return &g->frames[(g->depth - 1) & (MAX_FRAMES - 1)];
}

/* Drops what is open above depth: begun, and left by a panic. */
static __always_inline void span_unwind(const struct probe *p, struct goroutine *g, u32 depth)
{
	if (g->depth <= depth)
		return;
	count(p, COUNT_LOST_UNFINISHED, g->depth - depth);
	g->depth = depth;
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

static __always_inline void record_fill(struct record_header *r, const struct probe *p,
					const struct goroutine *g, const struct frame *f,
					u64 end_ns, u64 series)
{
	r->kind = f->kind;
	r->tgid = p->tgid;
	r->flags = f->flags | (g->random ? SPAN_RANDOM : 0);
	r->binary = p->binary;
	r->start_ns = f->start_ns;
	r->end_ns = end_ns;
	__builtin_memcpy(r->trace_id, g->trace_id, 16);
	__builtin_memcpy(r->span_id, &f->span_id, 8);
	__builtin_memcpy(r->parent_id, &f->parent_id, 8);
	r->series = series;
}

/* A wakeup would cost the app an interrupt: the reader polls. */
static __always_inline void record_submit(struct process *process, void *record)
{
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	count_in(process, COUNT_EMITTED, 1);
}

/* Is this the span that decides for its trace, as far as it is here? */
static __always_inline bool span_is_local_root(const struct goroutine *g, const struct frame *f)
{
	return g->root_id == f->span_id;
}

/* Counts a span that is not sampled, by the reason for that. */
static __always_inline void count_unsampled(struct process *process, const struct goroutine *g)
{
	count_in(process, g->backed_off ? COUNT_LOST_BACKED_OFF : COUNT_SAMPLED_OUT, 1);
}

/* For 10 s after the limit has refused a trace nobody can count on all being kept. */
static __always_inline u32 keep_limited(const struct process *process, u64 now)
{
	u64 refused = process->keep_refused_ns;

	return refused && now - refused < 10000000000ULL ? SPAN_KEPT_LIMITED : 0;
}

/* Whether a trace that is not sampled is kept all the same, by how its local root
 * ended: the flag that says why, or 0. */
static __always_inline u32 keep_reason(struct process *process, const struct goroutine *g,
				       bool failed, u64 ns)
{
	struct settings *s = settings_get();
	u64 now, due;
	u32 flag = 0;

	if (!s || g->backed_off)
		return 0;
	if (failed && s->keep_errors)
		flag = SPAN_KEPT_ERROR;
	else if (s->keep_slower_ns && ns > s->keep_slower_ns)
		flag = SPAN_KEPT_SLOW;
	if (!flag)
		return 0;
	/* A limit on average and burst. Two CPUs that meet here may pass one too many. */
	now = bpf_ktime_get_ns();
	due = process->keep_next_ns;
	if (due > now + s->keep_burst_ns) {
		process->keep_refused_ns = now;
		return 0;
	}
	process->keep_next_ns = (due > now ? due : now) + s->keep_interval_ns;
	return flag | keep_limited(process, now);
}

static __always_inline bool keep_possible(void)
{
	struct settings *s = settings_get();

	return s && (s->keep_errors || s->keep_slower_ns);
}

/* Remembers an ended child until its local root ends; body is STASH_BODY words. False:
 * nothing waits for it. */
static __always_inline bool stash_add(const struct probe *p, const struct runtime_layout *rt,
				      struct goroutine *g, const struct frame *f, u64 end_ns,
				      const void *body)
{
	struct goroutine *owner = g->owner ? goroutine_find(p, rt, g->owner) : g;
	u64 root_id = g->root_id;

	if (!owner || owner->root_id != root_id || g->backed_off || !keep_possible())
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

#endif
