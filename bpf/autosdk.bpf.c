//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * go.opentelemetry.io/auto/sdk: spans that a program makes by hand, for whoever looks on.
 *
 *   begin  (*tracer).start(ctx, span, ...)   of each span, before it has anything
 *   end    (*span).ended(buf)                the whole span, as JSON of OTLP
 *
 * Both functions do nothing, and are there for probes. The first one asks for ids and for
 * the sampling decision, by writing to where it points. Nothing is written into targets
 * here, so a span of the program has no ids, believes that it is sampled, and is known by
 * its address; auto_spans has what is ours. Checked in 1.1.0 to 1.2.1.
 */
#include "stash.h"

enum autosdk_kind {
	RECORD_AUTO_SPAN = RECORD_LIBRARY(9),
};

struct autosdk_layout {
	u32 span_data; /* of sdk.span: the *telemetry.Span, nil until start has returned */
	u32 data_name;
	u32 data_kind;
	u32 pad;
};

#define AUTO_NAME_MAX 56

/* What follows the header in a record, and is all of it that a stash keeps. No series has
 * a key that begins so: these spans are not measured. */
struct autosdk_body {
	u32 tgid;
	u32 kind; /* enum record_kind */
	u32 text_len; /* of the JSON; 0: it could not be had */
	u16 name_len;
	u16 span_kind; /* trace.SpanKind */
	char name[AUTO_NAME_MAX]; /* for where there is no JSON */
};

_Static_assert(sizeof(struct autosdk_body) == STASH_BODY * 8, "a stash holds a body");

struct autosdk_record {
	struct record_header header;
	struct autosdk_body body;
};

#define AUTO_SMALL 1024
#define AUTO_LARGE 8192
#define AUTO_MAX 32768

struct autosdk_small {
	struct autosdk_record record;
	char text[AUTO_SMALL];
};

struct autosdk_large {
	struct autosdk_record record;
	char text[AUTO_LARGE];
};

struct autosdk_whole_large {
	struct autosdk_record record;
	char text[AUTO_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct autosdk_layout);
} autosdk_layouts SEC(".maps");

/* Below a span that is open on a goroutine, of ours. */
static __always_inline void autosdk_below(struct auto_span *s, const struct goroutine *g,
					  u64 address, const struct frame *f)
{
	bool foreign = f->flags & SPAN_FOREIGN;

	s->trace_id[0] = foreign ? f->trace_id[0] : g->trace_id[0];
	s->trace_id[1] = foreign ? f->trace_id[1] : g->trace_id[1];
	s->sampled = !!span_sampled(g, f);
	s->random = g->random;
	s->frame.parent_id = f->span_id;
	if (foreign)
		return;
	s->owner = g->owner ? g->owner : address;
	s->root_id = g->root_id;
	s->backed_off = g->backed_off;
	s->remote_limited = g->remote_limited;
}

/* Below another of the program's own. */
static __always_inline void autosdk_within(struct auto_span *s, const struct auto_span *parent)
{
	s->trace_id[0] = parent->trace_id[0];
	s->trace_id[1] = parent->trace_id[1];
	s->owner = parent->owner;
	s->root_id = parent->root_id;
	s->sampled = parent->sampled;
	s->random = parent->random;
	s->backed_off = parent->backed_off;
	s->remote_limited = parent->remote_limited;
	s->frame.parent_id = parent->frame.span_id;
}

static __always_inline void autosdk_root(struct auto_span *s, const struct runtime_layout *rt)
{
	s->trace_id[0] = random_u64();
	s->trace_id[1] = random_id();
	s->random = 1;
	s->backed_off = rt->no_spans ? BACKED_OFF : WANTED;
	s->sampled = !s->backed_off && sample(s->trace_id[1], false, 0);
}

/* Finds the parent: what the context leads to, else what the goroutine has open. */
static __always_inline void autosdk_parent(const struct probe *p, const struct runtime_layout *rt,
					   struct auto_span *s, u64 itab, u64 data)
{
	struct goroutine *g = goroutine_find(p, rt, p->goroutine), *owner;
	struct frame *f = g ? span_innermost(g) : NULL;
	struct sdk_span sdk = {};
	u64 address = 0;

	barrier_var(f);
	owner = span_owner(p, rt, itab, data, &sdk, &address);
	if (sdk.made) {
		autosdk_within(s, sdk.made);
		/* What this goroutine has begun within that is nearer. */
		if (g && f && f->start_ns > sdk.made->frame.start_ns &&
		    span_is_of(g, f, s->trace_id))
			s->frame.parent_id = f->span_id;
	} else if (sdk.span_id) {
		s->trace_id[0] = sdk.trace_id[0];
		s->trace_id[1] = sdk.trace_id[1];
		s->frame.parent_id = sdk.span_id;
		s->sampled = (sdk.flags & TRACE_FLAG_SAMPLED) && !rt->no_spans;
	} else if (owner && owner != g && owner->depth) {
		autosdk_below(s, owner, address, &owner->frames[0]);
	} else if (g && f) {
		autosdk_below(s, g, p->goroutine, f);
	} else {
		autosdk_root(s, rt);
	}
}

/* (t *tracer, ctx iface, span *span, ...) */
SEC("uprobe")
int autosdk_start(struct pt_regs *ctx)
{
	struct auto_span_key key = { .span = GO_REG3(ctx) };
	struct runtime_layout *rt;
	struct auto_span s = {};
	struct probe p;

	if (!probe_begin(ctx, &p))
		return 0;
	rt = runtime_layout(&p);
	if (!rt)
		return 0;
	autosdk_parent(&p, rt, &s, GO_REG1(ctx), GO_REG2(ctx));
	s.frame.kind = RECORD_AUTO_SPAN;
	s.frame.span_id = random_id();
	s.frame.start_ns = bpf_ktime_get_ns();
	key.tgid = p.tgid;
	if (bpf_map_lookup_elem(&auto_spans, &key))
		count(&p, COUNT_LOST_UNFINISHED, 1); /* forgotten, and its memory used again */
	if (bpf_map_update_elem(&auto_spans, &key, &s, BPF_ANY))
		count(&p, COUNT_LOST_GOROUTINES_FULL, 1);
	return 0;
}

/* Name and kind, from the span itself. */
static __always_inline void autosdk_describe(const struct probe *p, struct autosdk_body *b,
					     u64 span)
{
	struct autosdk_layout *l = bpf_map_lookup_elem(&autosdk_layouts, &p->binary);
	struct go_string name;
	u64 data, len;

	b->tgid = p->tgid;
	b->kind = RECORD_AUTO_SPAN;
	data = l ? go_word(span + l->span_data) : 0;
	if (!data)
		return;
	b->span_kind = go_word(data + l->data_kind) & 7;
	name = go_string(data + l->data_name);
	len = name.len < AUTO_NAME_MAX ? name.len : AUTO_NAME_MAX;
	barrier_var(len);
	if (len > AUTO_NAME_MAX || bpf_probe_read_user(b->name, len, (void *)name.ptr))
		return;
	b->name_len = len;
}

static __always_inline void autosdk_record(struct autosdk_record *r, const struct probe *p,
					   const struct auto_span *s, u64 end_ns,
					   const struct autosdk_body *body)
{
	const struct frame *f = &s->frame;

	r->header.kind = RECORD_AUTO_SPAN;
	r->header.tgid = p->tgid;
	r->header.flags = f->flags | (s->random ? SPAN_RANDOM : 0) |
			  (s->remote_limited == REMOTE_PASSED ? SPAN_REMOTE_LIMITED : 0);
	r->header.binary = p->binary;
	r->header.start_ns = f->start_ns;
	r->header.end_ns = end_ns;
	__builtin_memcpy(r->header.trace_id, s->trace_id, 16);
	__builtin_memcpy(r->header.span_id, &f->span_id, 8);
	__builtin_memcpy(r->header.parent_id, &f->parent_id, 8);
	r->header.series = 0;
	r->body = *body;
}

/* Copies the JSON, all of it or nothing. */
static __always_inline void autosdk_text(struct process *process, struct autosdk_record *r,
					 char *text, u64 len, u64 ptr)
{
	r->body.text_len = len;
	if (!len || bpf_probe_read_user(text, len, (void *)ptr)) {
		r->body.text_len = 0;
		count_in(process, COUNT_BAD_READ, 1);
	}
}

static __always_inline void autosdk_emit(const struct probe *p, struct process *process,
					 const struct auto_span *s, u64 end_ns,
					 const struct autosdk_body *body, u64 len, u64 ptr)
{
	struct autosdk_small *small;
	struct autosdk_large *large;
	struct autosdk_whole_large *huge;

	if (len > AUTO_MAX)
		len = 0; /* a part is not valid: what is left is what the body says */
	barrier_var(len);
	if (len <= AUTO_SMALL) {
		small = bpf_ringbuf_reserve(&ring, sizeof(*small), 0);
		if (!small)
			goto full;
		autosdk_record(&small->record, p, s, end_ns, body);
		autosdk_text(process, &small->record, small->text, len, ptr);
		record_submit(process, small);
		return;
	}
	if (len <= AUTO_LARGE) {
		large = bpf_ringbuf_reserve(&ring, sizeof(*large), 0);
		if (!large)
			goto full;
		autosdk_record(&large->record, p, s, end_ns, body);
		autosdk_text(process, &large->record, large->text, len, ptr);
		record_submit(process, large);
		return;
	}
	if (len > AUTO_MAX)
		return; /* cannot be */
	huge = bpf_ringbuf_reserve(&ring, sizeof(*huge), 0);
	if (!huge)
		goto full;
	autosdk_record(&huge->record, p, s, end_ns, body);
	autosdk_text(process, &huge->record, huge->text, len, ptr);
	record_submit(process, huge);
	return;
full:
	count_in(process, COUNT_LOST_RING_FULL, 1);
}

/* (s *span, buf []byte). It need not be the goroutine that has begun it. */
SEC("uprobe")
int autosdk_ended(struct pt_regs *ctx)
{
	struct auto_span_key key = { .span = GO_REG0(ctx) };
	struct autosdk_body body = {};
	struct goroutine *owner = NULL;
	struct runtime_layout *rt;
	struct auto_span *open, s;
	struct process *process;
	struct probe p;
	u64 end_ns, ptr = GO_REG1(ctx), len = GO_REG2(ctx);

	if (!probe_enter(ctx, &p))
		return 0;
	key.tgid = p.tgid;
	open = bpf_map_lookup_elem(&auto_spans, &key);
	rt = runtime_layout(&p);
	if (!open || !rt)
		return 0; /* begun before the agent was there */
	s = *open;
	end_ns = bpf_ktime_get_ns();
	if (bpf_map_delete_elem(&auto_spans, &key))
		return 0;
	process = process_of(&p);
	if (!process)
		return 0;
	autosdk_describe(&p, &body, key.span);
	if (s.sampled) {
		autosdk_emit(&p, process, &s, end_ns, &body, len, ptr);
		return 0;
	}
	if (s.owner)
		owner = goroutine_find(&p, rt, s.owner);
	if (stash_add_to(owner, s.root_id, &s.frame, end_ns, &body))
		return 0;
	if (s.backed_off == DROPPED_BY_RULE)
		count_in(process, COUNT_DROPPED_BY_RULE, 1);
	else if (s.backed_off)
		count_in(process, COUNT_LOST_BACKED_OFF, 1);
	else if (s.remote_limited == REMOTE_REFUSED)
		count_in(process, COUNT_REMOTE_LIMITED, 1);
	else
		count_in(process, COUNT_SAMPLED_OUT, 1);
	return 0;
}
