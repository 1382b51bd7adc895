/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * goroutine.h: who fired, and what is known of that goroutine: its process, its entry in
 * the table of open spans, and the contexts that lead to it.
 */
#ifndef AGENT_GOROUTINE_H
#define AGENT_GOROUTINE_H

#include "table.h"

/* The smaller of two, for use at once as the size of a read: Linux 5.10 forgets what it
 * knows of a number that has been on the stack in between. */
static __always_inline u64 at_most(u64 n, u64 max)
{
	barrier_var(n);
	return n > max ? max : n;
}

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

static __always_inline void count_in(struct process *process, enum counter c, u64 n)
{
	if (process && n)
		__sync_fetch_and_add(&process->counters[c], n);
}

/* A bias that no process has: it has called execve, and user space has not looked at what
 * it runs now. */
#define BIAS_STALE (1ULL << 63)

/* The cookie of the site that fired; false without cookies in a process that user space
 * does not know yet. What it runs, and where it was loaded, cannot be told. */
static __always_inline bool probe_cookie(struct pt_regs *ctx, u64 *cookie)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct site_key key = {};
	struct process *process;
	u64 *found;

	if (!without_cookies) {
		*cookie = bpf_get_attach_cookie(ctx);
		return true;
	}
	process = bpf_map_lookup_elem(&processes, &tgid);
	if (!process)
		return false;
	key.address = GO_IP(ctx) - process->bias;
	key.binary = process->binary;
	found = bpf_map_lookup_elem(&sites, &key);
	if (!found)
		return false;
	*cookie = *found;
	return true;
}

static __always_inline bool probe_from(struct pt_regs *ctx, struct probe *p, bool begins)
{
	u32 nobody = 0;
	u64 cookie = 0;

	if (!probe_cookie(ctx, &cookie)) {
		if (begins)
			count_in(bpf_map_lookup_elem(&processes, &nobody),
				 COUNT_LOST_UNKNOWN_PROCESS, 1);
		return false;
	}
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

/* False when the function has not begun: its stack grows, and it starts again. */
static __always_inline bool probe_enter(struct pt_regs *ctx, struct probe *p)
{
	return probe_from(ctx, p, false);
}

/* The same for programs that begin spans: what begins in an unknown process is counted. */
static __always_inline bool probe_begin(struct pt_regs *ctx, struct probe *p)
{
	return probe_from(ctx, p, true);
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

/* Makes p speak of the goroutine that brings the process down. The runtime's last acts
 * run on the system stack, on behalf of the goroutine that the thread was running. */
static __always_inline void probe_crashed(struct probe *p, const struct runtime_layout *rt)
{
	u64 m = rt->g_m ? go_word(p->goroutine + rt->g_m) : 0;
	u64 curg = m ? go_word(m + rt->m_curg) : 0;

	if (curg)
		p->goroutine = curg;
}

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

/* Lets goroutines that are handed this context find the spans of this one. */
static __always_inline void context_register(const struct probe *p, struct goroutine *g,
					     u64 context)
{
	u64 taken;

	if (!context)
		return;
	taken = context_claim(context, p->goroutine, p->tgid);
	if (!taken) {
		count(p, COUNT_CONTEXTS_FULL, 1);
		return;
	}
	g->context = context;
	g->parks = g->request_context && g->may_park && table_may_park(context, p->tgid, taken);
}

/* The same for a request of a connection, whose context all its requests have as their
 * parent: that stays registered, and with it the goroutine's entry, so that the next
 * request finds both. The request's own says which of them a child belongs to. */
static __always_inline void context_register_request(const struct probe *p, struct goroutine *g,
						     u64 request, u64 connection)
{
	if (g->context && (!connection || g->context != connection))
		context_forget(p, g);
	g->request_context = connection ? request : 0;
	if (!g->context)
		context_register(p, g, connection ? connection : request);
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

/* The g that holds what a context, come upon by way of child, was registered for; 0 if there
 * is none. Of a connection's only the child counts that is the request's: others may be
 * left from a request before. Where nothing is open the connection may be gone, and the
 * memory be any other context. A global function, as those above. */
__noinline u64 context_holder(u64 context, u64 child, u32 tgid)
{
	struct table_entry *e = table_find(&context_table, context, tgid), *holder;
	struct goroutine *g;
	u64 address;

	if (!e)
		return 0;
	address = e->value;
	holder = table_find(&goroutine_table, address, tgid);
	g = holder ? goroutine_at(holder) : NULL;
	if (!g || !g->depth || (g->request_context && g->request_context != child))
		return 0;
	return address;
}

/* Where the open spans are that a context.Context stems from; 0 if nowhere. Walks
 * from child to parent by the types found in the binary, and stops at an unknown. With
 * sdk it stops at a span of the SDK, too.
 *
 * A global function, of numbers only: the verifier looks at it once, and not again for each
 * program that calls it. */
__noinline u64 context_walk(u64 bias, u64 tgid_binary, u64 itab, u64 data, u64 sdk)
{
	u64 child = 0;
	u32 tgid = tgid_binary, binary = tgid_binary >> 32;
	struct type_key type = { .type = go_type_of(itab, bias), .binary = binary };

	for (int i = 0; i < MAX_CONTEXT_DEPTH; i++) {
		struct type_info *info;
		struct go_iface parent;
		u64 found;

		if (!data || !type.type)
			return 0;
		found = context_holder(data, child, tgid);
		if (found)
			return found;
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
			found = sdk && info->next ? sdk_found(bias, tgid, binary, data + info->next) : 0;
			if (found)
				return found;
			parent = go_iface(data + info->offset);
		} else if (info->role == TYPE_CONTEXT_INDIRECT) {
			data = go_word(data + info->offset);
			if (!data)
				return 0;
			parent = go_iface(data + info->next);
		} else {
			return 0;
		}
		child = data;
		data = parent.data;
		type.type = go_type_of(parent.tab, bias);
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
