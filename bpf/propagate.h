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
const volatile u32 propagate_tgid = 0; /* offset in task_struct */
const volatile u32 propagate_queued = 0; /* of sk_wmem_queued in struct sock */

/* What became of the requests that have a span. */
enum propagate_counter {
	PROPAGATE_SENT,
	PROPAGATE_OWN, /* the app had set a traceparent itself */
	PROPAGATE_NOT_ALLOWED, /* the destination may not be told */
	PROPAGATE_PROXIED, /* likewise: who is behind the proxy is not known */
	PROPAGATE_TLS, /* encrypted before it could be changed */
	PROPAGATE_UNREADABLE, /* the request's header, or its connection */
	PROPAGATE_NEW, /* the first request on a connection that was not known yet */
	PROPAGATE_UNFIT, /* what was sent did not begin as expected, or was not alone on its way */
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

/* The header of a request that is about to be written. */
struct propagate_note {
	struct join client; /* whose span is open as long as this counts */
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
	u32 pad;
};

/* The scratch of a goroutine holds the note, and behind it the host. */
#define PROPAGATE_HOST_AT 192

_Static_assert(sizeof(struct propagate_note) <= PROPAGATE_HOST_AT, "the note fits into the scratch");
_Static_assert(PROPAGATE_HOST_AT + sizeof(struct propagate_host) <= SCRATCH_SIZE, "and a host");

static __always_inline u32 is_equal(u32 a, u32 b)
{
	return ((a ^ b) - 1) >> 31; /* of bytes, without a branch */
}

/* "host:port", of which the name of the host counts. The counts are in map memory, and
 * nothing branches: to the verifier every turn of the loop is like the next. */
static __always_inline bool propagate_to_name(u8 *scratch, struct go_string host)
{
	struct propagate_host *h = (struct propagate_host *)scratch;
	u32 len = host.len;
	u8 first;

	if (len < 3 || len > PROPAGATE_HOST)
		return false;
	barrier_var(len);
	len &= 127; /* once more, for the verifier */
	__builtin_memset(h, 0, sizeof(*h));
	if (bpf_probe_read_user(h->text, len, (void *)host.ptr))
		return false;
	first = h->text[0] | 0x20;
	/* An address, or a number that some resolvers take for one. */
	if (first < 'a' || first > 'z')
		return false;
	for (u32 i = 0; i < PROPAGATE_HOST; i++) {
		u32 c, port, upper;

		if (i >= len)
			break;
		c = h->text[(len - 1 - i) & 127];
		upper = (c - 'A' - 26) >> 31 & ~((c - 'A') >> 31);
		h->key.text[h->len & 127] = c | upper << 5;
		port = is_equal(c, ':'); /* what came was one */
		h->len = (h->len + 1) & (port - 1);
		h->dots = (h->dots + is_equal(c, '.')) & (port - 1);
	}
	h->key.text[h->len & 127] = 0;
	h->key.bits = (h->len + 1) * 8;
	return (!h->dots && propagate_dotless) || bpf_map_lookup_elem(&propagate_names, &h->key);
}

/* --- the header --- */

static __always_inline u8 hex_of(u32 n)
{
	return n + '0' + 39 * ((9 - n) >> 31); /* without a branch */
}

static __always_inline void hex_put(u8 *to, u64 id)
{
	for (u32 i = 0; i < 8; i++) {
		to[2 * i] = hex_of((id >> (8 * i + 4)) & 15);
		to[2 * i + 1] = hex_of((id >> (8 * i)) & 15);
	}
}

static __always_inline void propagate_text(u8 *to, const struct goroutine *g, const struct frame *f)
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
}

_Static_assert(PROPAGATE_LEN == 70, "the length of the header");

/* Whether the app has no traceparent of its own in this header. What was not seen in full
 * is left as it is. */
static __always_inline bool propagate_may_add(u64 request, const struct propagate_layout *l,
					      struct goroutine *g, const struct runtime_layout *rt)
{
	u64 header_map = request ? go_word(request + l->request_header) : 0;
	u64 keys = 0;

	headers_find(header_map, g, rt);
	if (g->headers.value[HEADER_TRACEPARENT].len) {
		propagate_count(PROPAGATE_OWN);
		return false;
	}
	/* Maps of all releases begin with the number of keys. */
	if (!request || !rt->group_size ||
	    (header_map && bpf_probe_read_user(&keys, sizeof(keys), (void *)header_map)) ||
	    g->headers.seen != keys) {
		propagate_count(PROPAGATE_UNREADABLE);
		return false;
	}
	return true;
}

#endif
