/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * context.h: the contexts that lead to what a goroutine has open: registered by server
 * spans, found by walking from a child to its parents.
 */
#ifndef AGENT_CONTEXT_H
#define AGENT_CONTEXT_H

#include "goroutine.h"

#define MAX_CONTEXT_DEPTH 24

/* Lets goroutines that are handed this context find the spans of this one. */
static __always_inline void context_register(const struct probe *p, struct goroutine *g,
					     u64 context)
{
	if (!context)
		return;
	if (context_claim(context, p->goroutine, p->tgid))
		g->context = context;
	else
		count(p, COUNT_CONTEXTS_FULL, 1);
}

/* Numbers of trace.SpanKind. */
#define SDK_KIND_SERVER 2
#define SDK_KIND_CLIENT 3

/* A span of OpenTelemetry's SDK that a context holds. From trace_id on it is laid out as a
 * trace.SpanContext begins, which user space has checked. */
struct sdk_span {
	u64 kind; /* trace.SpanKind, 0: unknown */
	u64 trace_id[2];
	u64 span_id; /* 0: there is none */
	u64 flags;
	struct auto_span *made; /* it is one of auto_spans, and the other fields are not set */
};

/* What context_walk returns: the address of a g, or SDK_FOUND, the kind and the address of
 * a trace.SpanContext, or AUTO_FOUND and the address of a span that auto_spans has.
 * Addresses of the target have 47 bits, or on arm64 48. */
#define SDK_FOUND (1ULL << 63)
#define AUTO_FOUND (1ULL << 62)
#define SDK_KIND(found) (((found) >> 48) & 7)
#define SDK_ADDRESS(found) ((found) & ((1ULL << 48) - 1))

static __always_inline struct auto_span *auto_span_of(u32 tgid, u64 span)
{
	struct auto_span_key key = { .span = span, .tgid = tgid };

	return bpf_map_lookup_elem(&auto_spans, &key);
}

/* The value of a context, if that is a span that the program has made itself. */
static __always_inline u64 sdk_found(u64 bias, u32 tgid, u32 binary, u64 value)
{
	/* An any: its type and its data word. */
	struct go_iface any = go_iface(value);
	struct type_key type = { .type = any.tab ? any.tab - bias : 0, .binary = binary };
	struct type_info *info = bpf_map_lookup_elem(&types, &type);
	u64 kind;

	if (info && info->role == TYPE_AUTO_SPAN)
		return auto_span_of(tgid, any.data) ? AUTO_FOUND | SDK_ADDRESS(any.data) : 0;
	if (!info || info->role != TYPE_SDK_SPAN || !go_word(any.data + info->offset + 16))
		return 0; /* none, or one without an id */
	kind = info->next ? go_word(any.data + info->next) & 7 : 0;
	return SDK_FOUND | kind << 48 | SDK_ADDRESS(any.data + info->offset);
}

/* The g that a context was registered by, 0 if it was not. A global function, as those of
 * goroutine.h. */
__noinline u64 context_holder(u64 context, u32 tgid)
{
	struct table_entry *e = table_find(&context_table, context, tgid);

	return e ? e->value : 0;
}

/* From a context to its parent; false: there is none. */
static __always_inline bool context_up(const struct type_info *info, u64 bias, u64 owner,
				       u64 *type, u64 *data)
{
	struct go_iface parent;

	switch (info->role) {
	case TYPE_CONTEXT_VALUE:
		*data += info->offset;
		*type = info->next;
		return true;
	case TYPE_CONTEXT_POINTER:
		*data = go_word(*data + info->offset);
		*type = info->next;
		return true;
	case TYPE_CONTEXT_INTERFACE:
		parent = go_iface(*data + info->offset);
		break;
	case TYPE_CONTEXT_INDIRECT:
		*data = go_word(*data + info->offset);
		if (!*data)
			return false;
		parent = go_iface(*data + info->next);
		break;
	default:
		return false;
	}
	*data = parent.data;
	*type = image_type(parent.tab, bias, owner);
	return true;
}

/* Where the open spans are that a context.Context stems from; 0 if nowhere. Walks
 * from child to parent by the types found in the binary, and stops at an unknown. With
 * sdk it stops at a span of the SDK, too.
 *
 * A global function, of numbers only: the verifier looks at it once, and not again for each
 * program that calls it. */
__noinline u64 context_walk(u64 bias, u64 tgid_binary, u64 itab, u64 data, u64 sdk)
{
	u32 tgid = tgid_binary, binary = tgid_binary >> 32;
	struct type_key type = { .type = image_type(itab, bias, tgid_binary), .binary = binary };

	for (int i = 0; i < MAX_CONTEXT_DEPTH; i++) {
		struct type_info *info;
		u64 found;

		if (!data || !type.type)
			return 0;
		found = context_holder(data, tgid);
		if (found)
			return found;
		info = bpf_map_lookup_elem(&types, &type);
		if (!info)
			return 0;
		if (sdk && info->role == TYPE_CONTEXT_INTERFACE && info->next) {
			found = sdk_found(bias, tgid, binary, data + info->next);
			if (found)
				return found;
		}
		if (!context_up(info, bias, tgid_binary, &type.type, &data))
			return 0;
	}
	return 0;
}

static __always_inline u64 context_owner(const struct probe *p, u64 itab, u64 data)
{
	return context_walk(p->bias, (u64)p->binary << 32 | p->tgid, itab, data, 0);
}

/* The same, or the nearest span of the SDK if that is nearer: then 0. */
static __always_inline u64 context_parent(const struct probe *p, u64 itab, u64 data,
					  struct sdk_span *sdk)
{
	u64 found = context_walk(p->bias, (u64)p->binary << 32 | p->tgid, itab, data, 1);

	if (found & AUTO_FOUND) {
		sdk->made = auto_span_of(p->tgid, SDK_ADDRESS(found));
		return 0;
	}
	if (!(found & SDK_FOUND))
		return found;
	if (bpf_probe_read_user(sdk->trace_id, 32, (void *)SDK_ADDRESS(found)) ||
	    !(sdk->trace_id[0] | sdk->trace_id[1]))
		sdk->span_id = 0;
	sdk->kind = SDK_KIND(found);
	return 0;
}

#endif
