/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * propagate.h: whom a request may tell its trace, and the header that does. Loaded only
 * where propagation is asked for.
 */
#ifndef AGENT_PROPAGATE_H
#define AGENT_PROPAGATE_H

#include "nethttp.h"
#include "join.h"

/* Set by user space before loading. */
const volatile u32 propagate_dotless = 0; /* hosts without a dot may be told */
const volatile u32 propagate_writes = 0; /* into the buffers of the app, not into messages */
const volatile u32 propagate_tgid = 0; /* offset in task_struct */
const volatile u32 propagate_queued = 0; /* of sk_wmem_queued in struct sock */

/* What became of the requests that have a span. */
enum propagate_counter {
	PROPAGATE_SENT,
	PROPAGATE_OWN, /* the app had set a traceparent, or a tracestate, itself */
	PROPAGATE_NOT_ALLOWED, /* the destination may not be told */
	PROPAGATE_PROXIED, /* likewise: who is behind the proxy is not known */
	PROPAGATE_TLS, /* encrypted before it could be changed */
	PROPAGATE_UNREADABLE, /* the request's header, or its connection */
	PROPAGATE_NEW, /* the first request on a connection that was not known yet */
	PROPAGATE_UNFIT, /* what was sent did not begin as expected, or was not alone on its way */
	PROPAGATE_NO_ROOM, /* in the buffer that the request is written to */
	PROPAGATE_FAILED, /* the kernel refused */
	PROPAGATE_COUNTERS,
};

struct propagate_layout {
	u32 request_header;
	u32 treq_request; /* of transportRequest */
	u32 conn; /* of persistConn */
	u32 conn_proxy; /* cacheKey.proxy, .scheme, .addr */
	u32 conn_scheme;
	u32 conn_addr;
};

/* "traceparent: " version-trace-span-flags CR LF */
#define PROPAGATE_NAME 13
#define PROPAGATE_LEN (PROPAGATE_NAME + TRACEPARENT_LEN + 2)

/* The tracestate of a trace, by the goroutine that serves the request it came with. */
struct propagate_tracestate {
	u64 goroutine; /* 0: there is none */
	u64 trace_low;
};

/* The header of a request that is about to be written. */
struct propagate_note {
	struct join client; /* whose span is open as long as this counts */
	struct propagate_tracestate state;
	u8 text[PROPAGATE_LEN + 2];
};

/* LRU: one that is evicted leaves its request as it is. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct propagate_note);
} propagate_notes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct propagate_layout);
} propagate_layouts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PROPAGATE_COUNTERS);
	__type(key, u32);
	__type(value, u64);
} propagate_counts SEC(".maps");

static __always_inline void propagate_count(u32 which)
{
	u64 *n = bpf_map_lookup_elem(&propagate_counts, &which);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/* --- who may be told --- */

/* Networks, IPv4 ones mapped to IPv6. */
struct propagate_network {
	u32 bits; /* of ip that count */
	u32 ip[4]; /* in the order of the wire */
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct propagate_network);
	__type(value, u32);
} propagate_networks SEC(".maps");

/* Names of hosts, backwards: what a name must end with comes first, and a zero ends one
 * that must be equal. */
#define PROPAGATE_HOST 120

struct propagate_name {
	u32 bits;
	u8 text[PROPAGATE_HOST + 8];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct propagate_name);
	__type(value, u32);
} propagate_names SEC(".maps");

static __always_inline bool propagate_to_address(const struct conn_address *a)
{
	struct propagate_network key = {
		.bits = 128,
		.ip = { a->ip[0], a->ip[0] >> 32, a->ip[1], a->ip[1] >> 32 },
	};

	return bpf_map_lookup_elem(&propagate_networks, &key);
}

/* The host, in a goroutine's scratch. */
struct propagate_host {
	u8 text[PROPAGATE_HOST + 8];
	struct propagate_name key;
	u32 len; /* of the name */
	u32 dots;
	u32 number; /* of the digits at the end */
	u32 unit; /* what the next one counts; 0: that is no number */
	u32 port; /* 0: there is none */
};

_Static_assert(sizeof(struct propagate_host) <= SCRATCH_SIZE, "the scratch holds a host");

static __always_inline u32 is_equal(u32 a, u32 b)
{
	return ((a ^ b) - 1) >> 31; /* of bytes, without a branch */
}

/* What propagate_host_rule returns: whether this host may be told, and the port. */
#define HOST_ALLOWED (1ULL << 32)
#define HOST_PORT(host) ((u32)(host) & 0xffff)

/* "host:port", of which the name of the host counts, behind the last slash. The counts are
 * in map memory, and nothing branches: to the verifier every turn of the loop is like the
 * next. A global function, as those of goroutine.h; the scratch of the goroutine is
 * overwritten. */
__noinline u64 propagate_host_rule(u64 ptr, u64 size, u64 goroutine, u32 tgid)
{
	struct table_entry *e = table_find(&goroutine_table, goroutine, tgid);
	struct goroutine *g = e ? goroutine_at(e) : NULL;
	struct propagate_host *h;
	u32 len = size;
	u8 first;

	if (!g || size < 3 || size > PROPAGATE_HOST)
		return 0;
	h = (struct propagate_host *)g->scratch;
	barrier_var(len);
	len &= 127; /* once more, for the verifier */
	__builtin_memset(h, 0, sizeof(*h));
	h->unit = 1;
	if (bpf_probe_read_user(h->text, len, (void *)ptr))
		return 0;
	for (u32 i = 0; i < PROPAGATE_HOST; i++) {
		u32 c, colon, upper, digit;

		if (i >= len)
			break;
		c = h->text[(len - 1 - i) & 127];
		if (c == '/')
			break;
		upper = (c - 'A' - 26) >> 31 & ~((c - 'A') >> 31);
		h->key.text[h->len & 127] = c | upper << 5;
		colon = is_equal(c, ':'); /* what came was a port */
		digit = (c - '0' - 10) >> 31 & ~((c - '0') >> 31);
		h->port |= (h->unit ? h->number : 0) & -colon;
		h->number += (c - '0') * h->unit * digit;
		h->unit *= 10 * digit;
		h->len = (h->len + 1) & (colon - 1);
		h->dots = (h->dots + is_equal(c, '.')) & (colon - 1);
	}
	first = h->key.text[(h->len - 1) & 127] | 0x20;
	h->key.text[h->len & 127] = 0;
	h->key.bits = (h->len + 1) * 8;
	/* An address, or a number that some resolvers take for one. */
	if (!h->len || first < 'a' || first > 'z')
		return h->port & 0xffff;
	if ((!h->dots && propagate_dotless) || bpf_map_lookup_elem(&propagate_names, &h->key))
		return HOST_ALLOWED | (h->port & 0xffff);
	return h->port & 0xffff;
}

static __always_inline u64 propagate_host_of(const struct probe *p, struct go_string host)
{
	return propagate_host_rule(host.ptr, host.len, p->goroutine, p->tgid);
}

/* --- the header --- */

static __always_inline u8 hex_of(u32 n)
{
	return n + '0' + 39 * ((9 - n) >> 31); /* without a branch */
}

static __always_inline void hex_put(u8 *to, u64 id)
{
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < 8; i++) {
		to[2 * i] = hex_of((id >> (8 * i + 4)) & 15);
		to[2 * i + 1] = hex_of((id >> (8 * i)) & 15);
	}
}

/* By itself, for it keeps much on the stack. */
static __noinline int propagate_text(u8 *to, const struct goroutine *g, const struct frame *f)
{
	bool foreign = f->flags & SPAN_FOREIGN;
	u32 flags = (span_sampled(g, f) ? TRACE_FLAG_SAMPLED : 0) |
		    (g->random && !foreign ? TRACE_FLAG_RANDOM : 0);

	__builtin_memcpy(to, "traceparent: 00-", 16);
	hex_put(to + 16, foreign ? f->trace_id[0] : g->trace_id[0]);
	hex_put(to + 32, foreign ? f->trace_id[1] : g->trace_id[1]);
	to[48] = '-';
	hex_put(to + 49, f->span_id);
	to[65] = '-';
	to[66] = '0';
	to[67] = hex_of(flags);
	to[68] = '\r';
	to[69] = '\n';
	to[70] = 0;
	to[71] = 0;
	return 0;
}

_Static_assert(PROPAGATE_LEN == 70, "the length of the header");

/* Which tracestate goes with the header of a span. That of a trace which is not the
 * goroutine's is the app's own affair. */
static __always_inline struct propagate_tracestate propagate_tracestate_of(const struct probe *p,
								const struct goroutine *g,
								const struct frame *f)
{
	struct propagate_tracestate state = {
		.goroutine = g->owner ? g->owner : p->goroutine,
		.trace_low = g->trace_id[1],
	};

	if (f->flags & SPAN_FOREIGN)
		state.goroutine = 0;
	return state;
}

/* "tracestate: ", or what HPACK makes of the name */
#define STATE_NAME 12

/* The tracestate of a trace, NULL if there is none. It may become another's at any time: what
 * was taken from it counts only if it is the same afterwards. */
static __always_inline struct tracestate *propagate_tracestate_find(u64 goroutine, u32 tgid,
								   u64 trace_low, u64 *len)
{
	struct goroutine_key key = { .address = goroutine, .tgid = tgid };
	struct tracestate *kept;

	kept = goroutine ? bpf_map_lookup_elem(&tracestates, &key) : NULL;
	if (!kept || *(volatile u64 *)&kept->trace_low != trace_low)
		return NULL;
	*len = *(volatile u32 *)&kept->len;
	return *len && *len <= TRACESTATE_MAX ? kept : NULL;
}

static __always_inline bool propagate_tracestate_same(const struct tracestate *kept, u64 trace_low,
						      u64 len)
{
	return *(volatile u64 *)&kept->trace_low == trace_low && *(volatile u32 *)&kept->len == len;
}

/* Why none is added. */
enum propagate_own {
	OWN_NONE, /* nothing speaks against it */
	OWN_TRACEPARENT,
	OWN_UNREADABLE, /* what was not seen in full is left as it is */
};

/* Whether the app has a traceparent of its own in a map of headers. A global function, as
 * those of goroutine.h; the scratch of the goroutine is overwritten. */
__noinline u64 propagate_own_in(u64 map, u64 goroutine, u32 tgid, u32 binary)
{
	struct runtime_layout *rt = bpf_map_lookup_elem(&runtime_layouts, &binary);
	struct table_entry *e = table_find(&goroutine_table, goroutine, tgid);
	struct goroutine *g = e ? goroutine_at(e) : NULL;
	u64 keys = 0;

	if (!g || !rt || !rt->group_size)
		return OWN_UNREADABLE;
	headers_find(NULL, map, g, rt);
	if (g->headers.value[HEADER_TRACEPARENT].len || g->headers.value[HEADER_TRACESTATE].len)
		return OWN_TRACEPARENT;
	/* Maps of all releases begin with the number of keys. */
	if ((map && bpf_probe_read_user(&keys, sizeof(keys), (void *)map)) ||
	    g->headers.seen != keys)
		return OWN_UNREADABLE;
	return OWN_NONE;
}

static __always_inline bool propagate_may_add(const struct probe *p, u64 header_map)
{
	u64 own = propagate_own_in(header_map, p->goroutine, p->tgid, p->binary);

	if (own == OWN_TRACEPARENT)
		propagate_count(PROPAGATE_OWN);
	else if (own == OWN_UNREADABLE)
		propagate_count(PROPAGATE_UNREADABLE);
	return own == OWN_NONE;
}

static __always_inline struct propagate_layout *propagate_layout(const struct probe *p)
{
	return bpf_map_lookup_elem(&propagate_layouts, &p->binary);
}

enum propagate_process {
	PROPAGATE_CLIENT = 1,
	PROPAGATE_BEHIND_PROXY, /* some of its connections go through one */
};

/* Processes that have clients of HTTP. LRU: what is evicted is found again by the next
 * connection. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, u32);
	__type(value, u32);
} propagate_processes SEC(".maps");

/* --- headers that are written into a buffer of the app --- */

/* What a request is known by: its connection, or for HTTP/2 the framer of that, and the
 * stream. Before it has these: its clientStream, or for gRPC its goroutine. */
struct propagate_write_key {
	u64 object;
	u32 tgid;
	u32 stream;
};

struct propagate_write {
	struct propagate_tracestate state;
	u8 text[PROPAGATE_LEN + 2];
	u32 port; /* of the URL, if the address decides */
	u32 named; /* it does not: the host may be told */
};

/* LRU: one that is evicted leaves its request as it is. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct propagate_write_key);
	__type(value, struct propagate_write);
} propagate_pending SEC(".maps");

/* Notes the header of a request; the scratch is overwritten. */
static __always_inline void propagate_put(const struct probe *p,
					  const struct propagate_write_key *key,
					  struct goroutine *g, const struct frame *f, u32 port,
					  bool named)
{
	struct propagate_write *w = (struct propagate_write *)g->scratch;

	w->state = propagate_tracestate_of(p, g, f);
	propagate_text(w->text, g, f);
	w->port = port;
	w->named = named;
	bpf_map_update_elem(&propagate_pending, key, w, BPF_ANY);
}

#endif
