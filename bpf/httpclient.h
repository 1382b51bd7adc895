/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * httpclient.h: what HTTP/1.x and HTTP/2 of net/http's client have in common: layouts, the
 * record, and how the two ends of a connection are joined.
 */
#ifndef AGENT_HTTPCLIENT_H
#define AGENT_HTTPCLIENT_H

#include "nethttp.h"

enum httpclient_kind {
	RECORD_HTTP_CLIENT = RECORD_LIBRARY(3),
};

/* Variants of httpclient_begin: whose transport it is. */
enum httpclient_begin_site {
	CLIENT_NET_HTTP,
	CLIENT_HTTP2_X, /* golang.org/x/net/http2's; net/http's may have handed the request on */
};

/* Variants of httpclient_end: which site it is. Those that end in X are of CLIENT_HTTP2_X. */
enum httpclient_end_site {
	CLIENT_RESPONSE, /* (*Response, error) of a try; an error may be tried again */
	CLIENT_ALTERNATE, /* likewise; ErrSkipAltProtocol is no end */
	CLIENT_RETURN, /* RET: (*Response, error) */
	CLIENT_RESPONSE_X,
	CLIENT_RETURN_X,
};

struct httpclient_layout {
	u64 error_text_type; /* *errors.errorString */
	u32 request_size; /* as much of it as holds what is read, at most SCRATCH_SIZE */
	u32 request_method;
	u32 request_url;
	u32 request_host;
	u32 request_ctx;
	u32 request_response; /* the redirect that led to this request */
	u32 url_size; /* likewise */
	u32 url_scheme;
	u32 url_opaque;
	u32 url_user;
	u32 url_host;
	u32 url_path;
	u32 url_raw_path;
	u32 url_raw_query;
	u32 response_size; /* likewise */
	u32 response_status;
	u32 response_proto_major;
	u32 response_proto_minor;
	u32 response_request;
	u32 conn; /* of persistConn; 0: hops are not joined */
};

enum httpclient_flags {
	CLIENT_HTTPS = 1 << 0,
	CLIENT_USER = 1 << 1, /* the URL has credentials, which are not read */
	CLIENT_ENCODED = 1 << 2, /* the path is as it was on the wire */
	CLIENT_OPAQUE = 1 << 3, /* the path stands for all that follows the scheme */
	CLIENT_HOST_ONLY = 1 << 4, /* remembered in a stash: of the texts there is the first */
};

enum httpclient_text {
	CLIENT_TEXT_HOST,
	CLIENT_TEXT_PATH,
	CLIENT_TEXT_QUERY,
	CLIENT_TEXT_METHOD,
	CLIENT_TEXTS,
};

/* What follows the header in a record, and is all of it that a stash keeps. The texts
 * follow each other, in the order of enum httpclient_text; of a stash there is the first. */
struct httpclient_body {
	struct series_key key; /* error_type; detail: HTTP_DETAIL, code */
	u64 peer[2]; /* IPv6, or IPv4 mapped to it, in the order of the wire */
	u16 peer_port; /* 0: not known */
	u8 flags; /* enum httpclient_flags */
	u8 resend_count;
	u32 text_end; /* sum of text_len */
	u16 text_len[CLIENT_TEXTS];
};

_Static_assert(sizeof(struct httpclient_body) == STASH_BODY * 8, "a stash holds a body");

/* series_key.detail[1], below it an error's number */
#define CLIENT_CANCELED (1ULL << 32)

#define CLIENT_SMALL 256
#define CLIENT_LARGE 2048
#define CLIENT_TEXT_MAX 1024

struct httpclient_record {
	struct record_header header;
	struct httpclient_body body;
};

struct httpclient_small {
	struct httpclient_record record;
	char text[2 * CLIENT_SMALL];
};

struct httpclient_large {
	struct httpclient_record record;
	char text[CLIENT_LARGE + CLIENT_TEXT_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct httpclient_layout);
} httpclient_layouts SEC(".maps");

/* frame.object of a request */
#define CLIENT_REQUEST 0
#define CLIENT_PEER 1 /* and 2 */
#define CLIENT_PEER_PORT 3
#define CLIENT_JOIN 4
#define CLIENT_STREAM 5 /* of HTTP/2: its clientStream */

static __always_inline struct httpclient_layout *httpclient_layout(const struct probe *p)
{
	return bpf_map_lookup_elem(&httpclient_layouts, &p->binary);
}

/* Reads a struct into the goroutine's scratch; all zero if it cannot be read. */
static __always_inline bool httpclient_read(struct goroutine *g, u64 address, u32 size)
{
	if (address)
		return read_object(g->scratch, size, address);
	__builtin_memset(g->scratch, 0, SCRATCH_SIZE);
	return false;
}

/* Hashes of path and host of an open request, for its other end to compare. */
static __always_inline void httpclient_target(const struct httpclient_layout *l,
					      struct goroutine *g, const struct frame *f,
					      u64 *path_hash, u64 *host_hash)
{
	struct go_string host, path = {}, url_host = {};
	u64 opaque = 0;

	httpclient_read(g, f->object[CLIENT_REQUEST], l->request_size);
	host = request_string(g->scratch, l->request_host);
	if (httpclient_read(g, request_string(g->scratch, l->request_url).ptr, l->url_size)) {
		path = request_string(g->scratch, l->url_path);
		opaque = request_string(g->scratch, l->url_opaque).len;
		url_host = request_string(g->scratch, l->url_host);
	}
	if (!host.len)
		host = url_host;
	*path_hash = opaque ? 0 : join_text(g->scratch, path);
	*host_hash = join_text(g->scratch, host);
}

/* Which HTTP/2 it is, and so which layout is its own. */
enum http2_client {
	HTTP2_CLIENT, /* of net/http */
	HTTP2_CLIENT_X, /* golang.org/x/net/http2 */
	HTTP2_CLIENTS,
};

struct http2client_layout {
	u32 stream_conn; /* of clientStream: its ClientConn */
	u32 stream_id;
	u32 conn_conn; /* of ClientConn: the net.Conn */
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HTTP2_CLIENTS * MAX_BINARIES);
	__type(key, u32);
	__type(value, struct http2client_layout);
} http2client_layouts SEC(".maps");

static __always_inline struct http2client_layout *http2client_layout(const struct probe *p)
{
	u32 at = (p->variant & 1) * MAX_BINARIES + p->binary;

	return bpf_map_lookup_elem(&http2client_layouts, &at);
}

/* The connection of what may be a clientStream. */
static __always_inline struct go_iface http2client_conn(const struct http2client_layout *l,
							u64 stream)
{
	return go_iface(go_word(stream + l->stream_conn) + l->conn_conn);
}

/* Whether it is one: it leads to a connection of a type that is known. */
static __always_inline bool http2client_is_stream(const struct probe *p,
						  const struct http2client_layout *l, u64 stream)
{
	struct type_key type = { .binary = p->binary };
	struct type_info *info;

	if (!stream)
		return false;
	type.type = go_type_of(http2client_conn(l, stream).tab, p->bias);
	info = type.type ? bpf_map_lookup_elem(&types, &type) : NULL;
	return info && info->role >= TYPE_CONN_DESCRIPTOR && info->role <= TYPE_CONN_VALUE;
}

/* The clientStream among the variables of a closure, 0 if there is none. */
static __always_inline u64 http2client_stream(const struct probe *p,
					      const struct http2client_layout *l, u64 fn)
{
	u64 words[3] = {};

	if (bpf_probe_read_user(words, sizeof(words), (void *)(fn + 8)))
		return 0;
	for (u32 i = 0; i < 3; i++)
		if (http2client_is_stream(p, l, words[i]))
			return words[i];
	return 0;
}

struct http2_call_key {
	u64 stream; /* its clientStream */
	u32 tgid;
	u32 pad;
};

/* A request that goes over HTTP/2: what the goroutine that writes it needs to know of the
 * one that waits for the response, and the other way round. */
struct http2_call {
	u64 goroutine;
	u64 span_id;
	u64 path; /* hashes, as in struct join */
	u64 host;
	u64 join; /* key of the note; 0: none */
	struct conn_address peer;
};

/* LRU: one that is evicted only leaves two traces instead of one. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, struct http2_call_key);
	__type(value, struct http2_call);
} http2_calls SEC(".maps");

static __always_inline void httpclient_peer(struct frame *f, const struct conn_address *peer)
{
	f->object[CLIENT_PEER] = peer->ip[0];
	f->object[CLIENT_PEER + 1] = peer->ip[1];
	f->object[CLIENT_PEER_PORT] = peer->port;
}

/* Forgets the note of a request, whichever way it went. */
static __always_inline void httpclient_unjoin(const struct probe *p, struct frame *f)
{
	struct http2_call_key key = { .stream = f->object[CLIENT_STREAM], .tgid = p->tgid };
	struct http2_call *call;

	if (f->object[CLIENT_JOIN])
		join_forget(f->object[CLIENT_JOIN], f->span_id);
	f->object[CLIENT_JOIN] = 0;
	f->object[CLIENT_STREAM] = 0;
	if (!key.stream)
		return;
	call = bpf_map_lookup_elem(&http2_calls, &key);
	if (!call || call->span_id != f->span_id)
		return;
	httpclient_peer(f, &call->peer);
	if (call->join)
		join_forget(call->join, f->span_id);
	bpf_map_delete_elem(&http2_calls, &key);
}

#endif
