/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * join.h: joins the two ends of a connection of this node, without a header: the client
 * notes the addresses of its connection before it writes, the server finds them when it
 * has read the request.
 *
 * A note is found by the client's address, port and stream; where two clients share
 * these, for connections to several servers, the later one by that of its server as well.
 * It is believed if
 *
 *  - the server's address is the one that the client has connected to, or it may have
 *    been translated on the way (a Kubernetes service) and both name the same host;
 *  - both have the same path;
 *  - the client's span is still open, on its goroutine, or as a stream of gRPC.
 *
 * The stream is that of HTTP/2, whose number both ends know; it is 0 for HTTP/1.x, where a
 * connection has one request at a time.
 *
 * Addresses that mean something else in each network namespace, as 127.0.0.1 does, count
 * only within one. A note that is not believed costs the join, never more.
 */
#ifndef AGENT_JOIN_H
#define AGENT_JOIN_H

#include "metric.h"

#define MAX_CONN_DEPTH 4
#define JOIN_TEXT 64 /* bytes of path and host that are compared */

struct conn_address {
	u64 ip[2]; /* IPv6, or IPv4 mapped to it, in the order of the wire */
	u32 port;
	u32 pad;
};

struct conn_ends {
	struct conn_address local;
	struct conn_address remote;
};

/* What a client has under way. */
struct join {
	struct conn_ends ends; /* as the client sees them */
	u64 netns; /* 0: the addresses are the same everywhere */
	u64 goroutine;
	u64 span_id;
	u64 path; /* hash; 0: unknown */
	u64 host; /* likewise */
	u64 moved; /* the clientStream of gRPC that has the span now, in grpc_streams */
	u32 tgid;
	u32 stream; /* of HTTP/2; 0: HTTP/1 */
	u32 shared; /* two clients had the same address and port */
	u32 pad;
};

/* LRU: a client that is killed leaves its note behind; one that is evicted only leaves
 * two traces instead of one. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, struct join);
} joins SEC(".maps");

/* Set by the first client: until then servers do not look. */
u32 joins_used;

/* When a path was last noted, by its hash: most requests come from elsewhere, and a server
 * that knows so need not find out the addresses of its connection, which takes six times
 * as long. 0 is for notes without a path. */
#define JOIN_PATHS 4096

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, JOIN_PATHS);
	__type(key, u32);
	__type(value, u64); /* ktime, to a second */
} join_paths SEC(".maps");

/* For how long a request may be on its way: a server may let it wait. */
#define JOIN_AGE_NS 60000000000ULL

/* The net.netFD of a net.Conn that is one TCP connection; 0 if it is not. */
static __always_inline u64 conn_descriptor(const struct probe *p, struct go_iface conn)
{
	struct type_key type = { .type = probe_type(p, conn.tab), .binary = p->binary };
	u64 data = conn.data;

	for (int i = 0; i < MAX_CONN_DEPTH; i++) {
		struct type_info *info;
		struct go_iface inner;

		if (!data || !type.type)
			return 0;
		info = bpf_map_lookup_elem(&types, &type);
		if (!info)
			return 0;
		if (info->role == TYPE_CONN_DESCRIPTOR)
			return go_word(data + info->offset);
		if (info->role == TYPE_CONN_VALUE) {
			data += info->offset;
			type.type = info->next;
		} else if (info->role == TYPE_CONN_POINTER) {
			data = go_word(data + info->offset);
			type.type = info->next;
		} else if (info->role == TYPE_CONN_INTERFACE) {
			inner = go_iface(data + info->offset);
			data = inner.data;
			type.type = probe_type(p, inner.tab);
		} else {
			return 0;
		}
	}
	return 0;
}

/* net.TCPAddr, as user space has checked it. */
struct tcp_addr {
	u64 ip, ip_len, ip_cap;
	u64 port;
};

static __always_inline bool conn_address(u64 tcp_addr, struct conn_address *a)
{
	struct tcp_addr addr;
	u32 v4 = 0;

	a->pad = 0;
	if (!tcp_addr || bpf_probe_read_user(&addr, sizeof(addr), (void *)tcp_addr))
		return false;
	a->port = addr.port;
	if (addr.ip_len == 16)
		return !bpf_probe_read_user(a->ip, 16, (void *)addr.ip);
	if (addr.ip_len != 4 || bpf_probe_read_user(&v4, 4, (void *)addr.ip))
		return false;
	a->ip[0] = 0;
	a->ip[1] = 0xffff0000ULL | (u64)v4 << 32;
	return true;
}

/* laddr and raddr of a netFD; a connection has *net.TCPAddr in both. */
struct conn_addresses {
	struct go_iface local, remote;
};

static __always_inline bool conn_addresses(const struct probe *p, const struct runtime_layout *rt,
					   struct go_iface conn, struct conn_addresses *a)
{
	u64 fd = rt->netfd_addresses ? conn_descriptor(p, conn) : 0;

	return fd && !bpf_probe_read_user(a, sizeof(*a), (void *)(fd + rt->netfd_addresses));
}

/* Loopback and link-local addresses mean something else in each network namespace. */
static __always_inline bool address_is_local(const struct conn_address *a)
{
	u32 v4 = a->ip[1] >> 32;

	if (a->ip[0])
		return (a->ip[0] & 0xc0ff) == 0x80fe; /* fe80::/10 */
	if ((u32)a->ip[1] == 0xffff0000)
		return (v4 & 0xff) == 127 || (v4 & 0xffff) == 0xfea9; /* 169.254.0.0/16 */
	return true; /* ::1 */
}

/* The network namespace of this thread, as a number of no other meaning; 0: unknown. */
static __always_inline u64 net_namespace(void)
{
	const struct settings *s = settings_get();
	u64 nsproxy = 0, net = 0;

	if (!s || !s->task_nsproxy ||
	    bpf_probe_read_kernel(&nsproxy, sizeof(nsproxy),
				  (void *)(bpf_get_current_task() + s->task_nsproxy)))
		return 0;
	bpf_probe_read_kernel(&net, sizeof(net), (void *)(nsproxy + s->nsproxy_net));
	return net;
}

/* The namespace that an address needs to be told from another; false: it is unknown. */
static __always_inline bool address_namespace(const struct conn_address *a, u64 *netns)
{
	*netns = 0;
	if (!address_is_local(a))
		return true;
	*netns = net_namespace();
	return *netns != 0;
}

static __always_inline u64 join_key(const struct conn_address *client,
				    const struct conn_address *server, u64 netns, u32 stream)
{
	u64 hash = client->ip[0] * 0x9e3779b97f4a7c15ULL;

	if (server) {
		hash ^= server->ip[0] * 0xd6e8feb86659fd93ULL ^ server->port;
		hash = (hash ^ server->ip[1] ^ hash >> 32) * 0xd6e8feb86659fd93ULL;
	}
	hash = (hash ^ client->ip[1] ^ hash >> 32) * 0x9fb21c651e98df25ULL;
	hash = (hash ^ netns ^ hash >> 32) * 0x9e3779b97f4a7c15ULL;
	hash = (hash ^ ((u64)client->port << 32 | stream) ^ hash >> 32) * 0x9fb21c651e98df25ULL;
	hash ^= hash >> 32;
	return hash ? hash : 1; /* 0: no note */
}

static __always_inline bool address_equal(const struct conn_address *a,
					  const struct conn_address *b)
{
	return a->ip[0] == b->ip[0] && a->ip[1] == b->ip[1] && a->port == b->port;
}

#define JOIN_ROOT 1 /* hash of the path "/", which a client may call "" */

/* A hash of a path or host for comparing the two ends; 0 if it cannot be read. scratch
 * is overwritten. */
static __always_inline u64 join_text(u8 *scratch, struct go_string s)
{
	u64 len = s.len < JOIN_TEXT ? s.len : JOIN_TEXT;

	if (len <= 1)
		return JOIN_ROOT;
	/* Bounded again in the register that is used: see text_hash. */
	barrier_var(len);
	len &= 2 * JOIN_TEXT - 1;
	if (bpf_probe_read_user(scratch, len, (void *)s.ptr))
		return 0;
	text_pad(scratch, len);
	return text_hash(scratch, len) ^ s.len << 32;
}

/* When a path, by its hash, was last noted. */
static __always_inline u64 *join_path(u64 path)
{
	u32 at = path ? 1 + (path ^ path >> 32) % (JOIN_PATHS - 1) : 0;

	return bpf_map_lookup_elem(&join_paths, &at);
}

/* Written once a second, so that CPUs do not wait for each other. */
static __always_inline void join_path_note(u64 path)
{
	u64 now = bpf_ktime_get_ns(), *at = join_path(path);

	if (at && now - *at > 1000000000ULL)
		*at = now;
}

static __always_inline bool join_path_is_recent(u64 path, u64 now)
{
	u64 *at = join_path(path), noted = at ? *(volatile u64 *)at : 0;

	/* It may have been noted again since. */
	return noted && (noted > now || now - noted < JOIN_AGE_NS);
}

/* False if no client on this node has lately asked for this path. One that could not be
 * read may be any. */
static __always_inline bool join_is_likely(u64 path)
{
	u64 now = bpf_ktime_get_ns();

	return !path || join_path_is_recent(path, now) || join_path_is_recent(0, now);
}

/* The goroutine of a client whose noted span is still open, else NULL. */
static __always_inline struct goroutine *join_client(const struct join *join)
{
	struct table_entry *e = table_find(&goroutine_table, join->goroutine, join->tgid);
	struct goroutine *client = e ? goroutine_at(e) : NULL;
	const struct frame *f = client ? span_innermost(client) : NULL;

	return f && f->span_id == join->span_id ? client : NULL;
}

/* The stream that the noted span has become, if that is open, else NULL. The note says so
 * before the span leaves its goroutine. */
static __always_inline struct grpc_stream *join_stream(const struct join *join)
{
	struct grpc_stream_key key = { .stream = *(volatile u64 *)&join->moved, .tgid = join->tgid };
	struct grpc_stream *s;

	if (!key.stream)
		return NULL;
	s = bpf_map_lookup_elem(&grpc_streams, &key);
	return s && s->frame.span_id == join->span_id ? s : NULL;
}

/* Notes that a span, the innermost of a goroutine, is about to be written to a connection.
 * Returns the key for join_forget, 0 if there is nothing to forget. */
static __always_inline u64 join_note(const struct probe *p, u64 goroutine, u64 span_id,
				     const struct conn_ends *ends, u32 stream, u64 path, u64 host)
{
	struct join *old, join = {};
	u64 key;

	if (!address_namespace(&ends->local, &join.netns))
		return 0;
	key = join_key(&ends->local, NULL, join.netns, stream);
	join.ends = *ends;
	join.goroutine = goroutine;
	join.span_id = span_id;
	join.path = path;
	join.host = host;
	join.tgid = p->tgid;
	join.stream = stream;
	old = bpf_map_lookup_elem(&joins, &key);
	if (old && old->span_id != span_id && (join_client(old) || join_stream(old))) {
		old->shared = 1;
		join.shared = 1;
		key = join_key(&ends->local, &ends->remote, join.netns, stream);
	}
	bpf_map_update_elem(&joins, &key, &join, BPF_ANY);
	join_path_note(path);
	if (!joins_used)
		joins_used = 1;
	return key;
}

static __always_inline void join_forget(u64 key, u64 span_id)
{
	struct join *join = bpf_map_lookup_elem(&joins, &key);

	if (join && join->span_id == span_id)
		bpf_map_delete_elem(&joins, &key);
}

/* Takes trace and decision over from a stream of gRPC. */
static __always_inline bool join_adopt_stream(const struct join *join, struct goroutine *g,
					      const struct runtime_layout *rt)
{
	struct grpc_stream *s = join_stream(join);

	if (!s)
		return false;
	g->trace_id[0] = s->trace_id[0];
	g->trace_id[1] = s->trace_id[1];
	g->random = s->random;
	trace_decide(g, rt, true, s->sampled ? TRACE_FLAG_SAMPLED : 0);
	return true;
}

/* Takes trace and decision over from the client, if its span is open. */
static __always_inline bool join_adopt(const struct join *join, struct goroutine *g,
				       const struct runtime_layout *rt)
{
	struct goroutine *client = join_client(join);
	struct frame *f = client ? span_innermost(client) : NULL;
	bool foreign;
	u32 flags;

	if (!client || !f)
		return join_adopt_stream(join, g, rt);
	foreign = f->flags & SPAN_FOREIGN;
	g->trace_id[0] = foreign ? f->trace_id[0] : client->trace_id[0];
	g->trace_id[1] = foreign ? f->trace_id[1] : client->trace_id[1];
	g->random = client->random;
	flags = span_sampled(client, f) ? TRACE_FLAG_SAMPLED : 0;
	/* Again: its goroutine runs on, and may have ended the span meanwhile. */
	if (!join_client(join))
		return join_adopt_stream(join, g, rt);
	trace_decide(g, rt, true, flags);
	return true;
}

/* What a server knows of a request, for comparing. */
struct join_request {
	u64 path; /* join_text */
	struct go_string host;
	u32 stream;
	u32 pad;
};

/* The note under a key, if it is of this end of a connection. */
static __always_inline struct join *join_at(u64 key, const struct conn_address *client, u64 netns,
					    u32 stream)
{
	struct join *join = bpf_map_lookup_elem(&joins, &key);

	if (!join || join->netns != netns || join->stream != stream ||
	    !address_equal(&join->ends.local, client))
		return NULL;
	return join;
}

/* Whether the server's end and the request are those of the note. */
static __always_inline bool join_matches(const struct join *join, struct goroutine *g,
					 const struct conn_address *local,
					 const struct join_request *r)
{
	if (join->path && r->path && join->path != r->path)
		return false;
	if (address_equal(&join->ends.remote, local))
		return true;
	/* Another address than the client has asked for: translated on the way? */
	return !join->shared && !address_is_local(local) && r->path && join->path == r->path &&
	       join->host && join->host == join_text(g->scratch, r->host);
}

/* The span of the client at the other end of a server's connection, whose trace g takes
 * over; 0 if it is not known. To be called if join_is_likely. */
static __always_inline u64 join_find(const struct probe *p, const struct runtime_layout *rt,
				     struct goroutine *g, struct go_iface conn,
				     const struct join_request *r)
{
	struct conn_addresses addresses;
	struct conn_address local, remote;
	struct join *join;
	u64 key, netns, span_id, other_key;

	if (!conn_addresses(p, rt, conn, &addresses) ||
	    !conn_address(addresses.remote.data, &remote) ||
	    !conn_address(addresses.local.data, &local) || !address_namespace(&remote, &netns))
		return 0;
	key = join_key(&remote, NULL, netns, r->stream);
	join = join_at(key, &remote, netns, r->stream);
	if (!join || !address_equal(&join->ends.remote, &local)) {
		struct join *other;

		other_key = join_key(&remote, &local, netns, r->stream);
		other = join_at(other_key, &remote, netns, r->stream);
		if (other) {
			join = other;
			key = other_key;
		}
	}
	if (!join || !join_matches(join, g, &local, r))
		return 0;
	span_id = join->span_id;
	if (!join_adopt(join, g, rt))
		return 0;
	bpf_map_delete_elem(&joins, &key);
	return span_id;
}

#endif
