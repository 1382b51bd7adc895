/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * nethttp.h: what every server of net/http has in common: the layout of a request, its
 * record, and how it is measured.
 */
#ifndef AGENT_NETHTTP_H
#define AGENT_NETHTTP_H

#include "goheader.h"
#include "join.h"
#include "stash.h"

enum nethttp_kind {
	RECORD_HTTP_SERVER = RECORD_LIBRARY(1),
};

/* Of HTTP/1.x, response is net/http.response; of HTTP/2, it is the responseWriterState
 * that the response writer points to. */
struct nethttp_layout {
	u64 response_type; /* that serverHandler.ServeHTTP is handed; 0: it is not to begin any */
	u32 request_size; /* as much of it as holds what is read, at most SCRATCH_SIZE */
	u32 response_size; /* likewise */
	u32 response_conn;
	u32 response_req;
	u32 response_status;
	u32 response_wrote_header;
	u32 conn_hijacked;
	u32 request_method;
	u32 request_header;
	u32 request_host;
	u32 request_uri;
	u32 request_remote_addr;
	u32 request_tls;
	u32 request_ctx;
	u32 request_proto_major;
	u32 request_proto_minor;
	u32 conn_rwc; /* 0: its connections are not joined with their clients */
	u32 request_pattern; /* from Go 1.23 on; 0: there is none */
	u32 request_url;
	u32 url_path;
	u32 url_raw_path;
	u32 route_slot; /* of the pattern at HTTP_ROUTE_STACK, from the stack pointer */
	/* What the route's own probe was good for: user space detaches it where the
	 * request that the server made has the pattern all the same. */
	u32 route_same; /* counted up to ROUTE_COUNTED */
	u32 route_other; /* the pattern was on a copy of the request only */
	u32 route_missing; /* no probe, no pattern, and not "not found" */
	u32 request_inline; /* response_req is the request itself, not a pointer to it */
	u32 response_stream; /* of HTTP/2 */
	u32 stream_id; /* 0: HTTP/1.x */
};

/* Which server it is, and so which layout is its own. */
enum http_server {
	HTTP_1,
	HTTP_2, /* of net/http */
	HTTP_2X, /* golang.org/x/net/http2 */
	HTTP_SERVERS,
};

#define ROUTE_COUNTED 10000

enum http_text {
	TEXT_METHOD,
	TEXT_ROUTE,
	TEXT_URI,
	TEXT_HOST,
	TEXT_REMOTE_ADDR,
	TEXT_USER_AGENT,
	TEXT_FORWARDED_FOR,
	TEXT_TRACESTATE,
	HTTP_TEXTS,
};

/* The texts follow each other in text, in the order of enum http_text. */
struct http_server_record {
	struct record_header header;
	u64 panic_type; /* type of the panic's value, as linked; 0: none or unknown */
	u16 status; /* 0: never written, or not known */
	u8 proto_major;
	u8 proto_minor;
	u16 text_len[HTTP_TEXTS];
	u32 text_end; /* sum of text_len */
	u32 bad_reads; /* texts that could not be read */
	u32 pad;
};

#define SMALL_TEXT 256
#define LARGE_TEXT 2048
#define TEXT_MAX 1024

struct http_server_small {
	struct http_server_record record;
	char text[2 * SMALL_TEXT];
};

struct http_server_large {
	struct http_server_record record;
	char text[LARGE_TEXT + TEXT_MAX];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HTTP_SERVERS * MAX_BINARIES); /* server * MAX_BINARIES + binary */
	__type(key, u32);
	__type(value, struct nethttp_layout);
} nethttp_layouts SEC(".maps");

/* frame.object of a server span */
#define SERVER_RESPONSE 0
#define SERVER_WHICH 1 /* enum http_server */
#define SERVER_PANIC 2

static __always_inline struct nethttp_layout *nethttp_layout(const struct probe *p)
{
	return bpf_map_lookup_elem(&nethttp_layouts, &p->binary);
}

static __always_inline struct nethttp_layout *nethttp_layout_of(const struct probe *p, u32 server)
{
	u32 at = server * MAX_BINARIES + p->binary;

	return bpf_map_lookup_elem(&nethttp_layouts, &at);
}

static __always_inline struct go_string request_string(const u8 *request, u32 offset)
{
	struct go_string s;

	/* Offsets were checked by user space; the mask tells the verifier. */
	s.ptr = *(u64 *)&request[offset & (SCRATCH_SIZE - 8)];
	s.len = *(u64 *)&request[(offset + 8) & (SCRATCH_SIZE - 8)];
	return s;
}

/* Reads the Request into g->scratch: one long read is much cheaper than many short
 * ones. All zero if it cannot be read. */
static __always_inline bool nethttp_read_request(const struct nethttp_layout *l,
						 struct goroutine *g, u64 request)
{
	return read_object(g->scratch, l->request_size, request);
}

/* How deep in its goroutine's stack a frame is: of two routers that are nested, which is
 * the inner one. Stacks move when they grow, so addresses do not tell. A goroutine that the
 * handler has started is deeper than all of the request's own. */
static __always_inline u32 route_depth(struct pt_regs *ctx, const struct probe *p, bool here)
{
	u32 depth = go_word(p->goroutine + G_STACK_HI) - GO_SP(ctx);

	return (depth >> 1) | (here ? 0 : 1U << 31);
}

/* Keeps a request's tracestate for the calls made within it; the scratch of its goroutine is
 * overwritten. A global function, as those of goroutine.h. */
__noinline u64 tracestate_keep(u64 goroutine, u32 tgid, u64 text, u64 len, u64 trace_low)
{
	struct table_entry *e = table_find(&goroutine_table, goroutine, tgid);
	struct goroutine *g = e ? goroutine_at(e) : NULL;
	struct goroutine_key key = { .address = goroutine, .tgid = tgid };
	struct tracestate *kept;

	if (!g)
		return 0;
	if (!len || len > TRACESTATE_MAX) {
		bpf_map_delete_elem(&tracestates, &key); /* of an earlier request in the same trace */
		return 0;
	}
	kept = (struct tracestate *)g->scratch;
	__builtin_memset(kept, 0, sizeof(*kept));
	kept->trace_low = trace_low;
	kept->len = len;
	if (!bpf_probe_read_user(kept->text, at_most(len, TRACESTATE_MAX), (void *)text))
		bpf_map_update_elem(&tracestates, &key, kept, BPF_ANY);
	return 0;
}

/* Takes trace id and parent from the traceparent header, if there is a valid one. */
static __always_inline u64 nethttp_remote_parent(const struct probe *p, struct goroutine *g,
						 u64 header_map,
						 const struct runtime_layout *rt)
{
	u64 trace_id[2], parent_id = 0;
	u32 flags = 0;
	struct go_string *s = &g->headers.value[HEADER_TRACEPARENT];

	if (!headers_find(p, header_map, g, rt))
		count(p, COUNT_BAD_READ, 1);
	if (s->len < TRACEPARENT_LEN || s->len > 256)
		return 0;
	if (bpf_probe_read_user(g->scratch, TRACEPARENT_LEN + 1, (void *)s->ptr))
		if (bpf_probe_read_user(g->scratch, TRACEPARENT_LEN, (void *)s->ptr)) {
			count(p, COUNT_BAD_READ, 1); /* a trace begins here that goes on */
			return 0;
		}
	if (!traceparent_parse((const char *)g->scratch, s->len, trace_id, &parent_id, &flags))
		return 0;
	g->trace_id[0] = trace_id[0];
	g->trace_id[1] = trace_id[1];
	g->tracestate = g->headers.value[HEADER_TRACESTATE].len != 0;
	if (tracestates_kept)
		tracestate_keep(p->goroutine, p->tgid, g->headers.value[HEADER_TRACESTATE].ptr,
				g->headers.value[HEADER_TRACESTATE].len, trace_id[1]);
	g->random = !!(flags & TRACE_FLAG_RANDOM);
	trace_decide(g, rt, true, flags);
	trace_limit_remote(p, g);
	return parent_id;
}

/* Reads the beginning of a text, with zeros behind it. */
static __always_inline void drop_text(u8 *to, struct go_string text)
{
	u32 n = text.len < DROP_TEXT ? text.len : DROP_TEXT;

	__builtin_memset(to, 0, DROP_TEXT);
	if (n)
		bpf_probe_read_user(to, n, (void *)text.ptr);
}

/* Whether a rule says that no spans of this request are wanted. Both texts are compared
 * without a branch, so that the verifier walks each rule once. */
static __always_inline void nethttp_drop(struct goroutine *g, struct go_string uri)
{
	struct settings *s = settings_get();
	u64 *path = (u64 *)g->scratch, *agent = (u64 *)(g->scratch + DROP_TEXT);

	if (!s || !s->drop_rules || g->backed_off)
		return;
	drop_text(g->scratch, uri);
	drop_text(g->scratch + DROP_TEXT, g->headers.value[HEADER_USER_AGENT]);
	for (u32 i = 0; i < DROP_RULES; i++) {
		struct drop_rule *rule;
		u64 differ = 0;
		u32 key = i;

		if (i >= s->drop_rules)
			return;
		rule = bpf_map_lookup_elem(&drop_rules, &key);
		if (!rule)
			return;
		for (u32 w = 0; w < DROP_TEXT / 8; w++) {
			differ |= (path[w] ^ rule->path[w]) & rule->path_mask[w];
			differ |= (agent[w] ^ rule->agent[w]) & rule->agent_mask[w];
		}
		if (differ)
			continue;
		g->backed_off = DROPPED_BY_RULE;
		g->sampled = 0;
		return;
	}
}

/* Takes trace and parent from the client at the other end of the connection, if that is
 * on this node. l is the layout of the response; path is where the one that the server has
 * read is. */
static __always_inline u64 nethttp_joined_parent(const struct probe *p,
						 const struct nethttp_layout *l,
						 const struct runtime_layout *rt,
						 struct goroutine *g, u64 response,
						 u64 path, struct go_string host)
{
	struct join_request request = { .host = host };
	u64 conn;

	if (!joins_used || !l || !l->conn_rwc)
		return 0;
	request.path = join_text(g->scratch, go_string(path));
	if (!join_is_likely(request.path))
		return 0;
	conn = go_word(response + l->response_conn);
	if (l->stream_id)
		request.stream = go_word(go_word(response + l->response_stream) + l->stream_id);
	return join_find(p, rt, g, go_iface(conn + l->conn_rwc), &request);
}

static __always_inline u32 text_max(u32 which)
{
	switch (which) {
	case TEXT_METHOD:
		return 32;
	case TEXT_ROUTE:
		return ROUTE_MAX;
	case TEXT_URI:
		return TEXT_MAX;
	case TEXT_REMOTE_ADDR:
		return 64;
	case TEXT_TRACESTATE:
		return 512;
	default:
		return 256;
	}
}

struct http_texts {
	struct go_string s[HTTP_TEXTS];
};

/* Copies the texts behind the record; max is room that the verifier knows to be
 * free behind each begin. */
static __always_inline void nethttp_texts(struct process *process, struct http_server_record *r,
					  char *text, u32 room, u32 max, struct goroutine *g,
					  const struct http_texts *texts)
{
	r->text_end = 0;
	for (u32 i = 0; i < HTTP_TEXTS; i++) {
		/* Kept in the record: read back it is any number to the verifier, so
		 * that what it has checked for one text holds for the next. */
		u64 at = r->text_end;
		u64 len = texts->s[i].len;
		u32 limit = text_max(i) < max ? text_max(i) : max;
		long err;

		r->text_len[i] = 0;
		barrier_var(at);
		if (at > room)
			continue;

		if (len > limit) {
			len = limit;
			r->header.flags |= SPAN_TRUNCATED;
		}
		barrier_var(len);
		if (i == TEXT_ROUTE)
			err = bpf_probe_read_kernel(text + at, len, g->route);
		else
			err = bpf_probe_read_user(text + at, len, (void *)texts->s[i].ptr);
		if (err) {
			len = 0;
			r->bad_reads++;
		}
		r->text_len[i] = len;
		r->text_end += len;
	}
	count_in(process, COUNT_BAD_READ, r->bad_reads);
}

/* Names the ends that are known by now, for all that happens at the end. */
struct nethttp_ending {
	struct process *process;
	const struct nethttp_layout *layout;
	const struct runtime_layout *runtime;
	u64 end_ns;
	u64 panic_type;
	u64 series;
	u16 status;
	u8 proto_major;
	u8 proto_minor;
	u8 tls;
	u8 pad[3];
};

static __always_inline void nethttp_record(struct http_server_record *r, const struct probe *p,
					   struct goroutine *g, const struct nethttp_ending *e)
{
	record_fill(&r->header, p, g, &g->frames[0], e->end_ns, e->series);
	r->panic_type = e->panic_type;
	r->status = e->status;
	r->proto_major = e->proto_major;
	r->proto_minor = e->proto_minor;
	if (e->tls)
		r->header.flags |= SPAN_TLS;
	r->bad_reads = 0;
	r->pad = 0;
}

/* g->scratch holds the Request; its strings are taken before the headers are looked
 * up, which uses the scratch. */
static __always_inline void nethttp_emit(const struct probe *p, struct goroutine *g,
					 const struct nethttp_ending *e)
{
	const struct nethttp_layout *l = e->layout;
	struct http_server_small *small;
	struct http_server_large *large;
	struct http_texts texts;
	u64 total = 0;

	texts.s[TEXT_METHOD] = request_string(g->scratch, l->request_method);
	texts.s[TEXT_ROUTE].ptr = 0;
	texts.s[TEXT_ROUTE].len = g->route_len;
	texts.s[TEXT_URI] = request_string(g->scratch, l->request_uri);
	texts.s[TEXT_HOST] = request_string(g->scratch, l->request_host);
	texts.s[TEXT_REMOTE_ADDR] = request_string(g->scratch, l->request_remote_addr);
	headers_find(p, request_string(g->scratch, l->request_header).ptr, g, e->runtime);
	texts.s[TEXT_USER_AGENT] = g->headers.value[HEADER_USER_AGENT];
	texts.s[TEXT_FORWARDED_FOR] = g->headers.value[HEADER_FORWARDED_FOR];
	texts.s[TEXT_TRACESTATE].ptr = 0;
	texts.s[TEXT_TRACESTATE].len = 0;
	if (g->tracestate)
		texts.s[TEXT_TRACESTATE] = g->headers.value[HEADER_TRACESTATE];
	for (u32 i = 0; i < HTTP_TEXTS; i++)
		total += texts.s[i].len;

	if (total <= SMALL_TEXT) {
		small = bpf_ringbuf_reserve(&ring, sizeof(*small), 0);
		if (!small)
			goto full;
		nethttp_record(&small->record, p, g, e);
		nethttp_texts(e->process, &small->record, small->text, SMALL_TEXT, SMALL_TEXT, g, &texts);
		record_submit(e->process, small);
		return;
	}
	large = bpf_ringbuf_reserve(&ring, sizeof(*large), 0);
	if (!large)
		goto full;
	nethttp_record(&large->record, p, g, e);
	nethttp_texts(e->process, &large->record, large->text, LARGE_TEXT, TEXT_MAX, g, &texts);
	record_submit(e->process, large);
	return;
full:
	count_in(e->process, COUNT_LOST_RING_FULL, 1);
}

/* Methods that metrics tell apart; any other is _OTHER, whatever a client makes up. */
enum http_method {
	METHOD_OTHER,
	METHOD_GET,
	METHOD_HEAD,
	METHOD_POST,
	METHOD_PUT,
	METHOD_PATCH,
	METHOD_DELETE,
	METHOD_CONNECT,
	METHOD_OPTIONS,
	METHOD_TRACE,
	METHOD_QUERY,
	HTTP_METHODS,
};

static __always_inline u32 http_method(struct go_string s)
{
	u64 word = 0;

	if (!s.len) /* as net/http has it */
		return METHOD_GET;
	if (s.len > 7 || bpf_probe_read_user(&word, s.len & 7, (void *)s.ptr))
		return METHOD_OTHER;
	switch (word) {
	case WORD('G', 'E', 'T', 0, 0, 0, 0, 0):
		return METHOD_GET;
	case WORD('H', 'E', 'A', 'D', 0, 0, 0, 0):
		return METHOD_HEAD;
	case WORD('P', 'O', 'S', 'T', 0, 0, 0, 0):
		return METHOD_POST;
	case WORD('P', 'U', 'T', 0, 0, 0, 0, 0):
		return METHOD_PUT;
	case WORD('P', 'A', 'T', 'C', 'H', 0, 0, 0):
		return METHOD_PATCH;
	case WORD('D', 'E', 'L', 'E', 'T', 'E', 0, 0):
		return METHOD_DELETE;
	case WORD('C', 'O', 'N', 'N', 'E', 'C', 'T', 0):
		return METHOD_CONNECT;
	case WORD('O', 'P', 'T', 'I', 'O', 'N', 'S', 0):
		return METHOD_OPTIONS;
	case WORD('T', 'R', 'A', 'C', 'E', 0, 0, 0):
		return METHOD_TRACE;
	case WORD('Q', 'U', 'E', 'R', 'Y', 0, 0, 0):
		return METHOD_QUERY;
	}
	return METHOD_OTHER;
}

/* The method of the requests that a pattern of ServeMux is for, of those whose method is so
 * long; 0: any. HEAD is also served by what is for GET. */
static __always_inline u32 method_of_route(u64 route, u64 method_len)
{
	if (method_len == 3 && (route & 0xffffffff) == WORD('G', 'E', 'T', ' ', 0, 0, 0, 0))
		return METHOD_GET;
	if (method_len == 3 && (route & 0xffffffff) == WORD('P', 'U', 'T', ' ', 0, 0, 0, 0))
		return METHOD_PUT;
	if (method_len == 4 && (route & 0xffffffffff) == WORD('P', 'O', 'S', 'T', ' ', 0, 0, 0))
		return METHOD_POST;
	if (method_len == 6 && (route & 0xffffffffffffff) == WORD('D', 'E', 'L', 'E', 'T', 'E', ' ', 0))
		return METHOD_DELETE;
	return METHOD_OTHER;
}

#define METRIC_HTTP_SERVER 0

/* series_key.detail[0] */
#define HTTP_DETAIL(status, method, proto_major, proto_minor, tls, flags)               \
	((u64)(status) | (u64)(method) << 16 | (u64)(proto_major) << 24 |               \
	 (u64)(proto_minor) << 32 | (u64)(tls) << 40 | (u64)((flags) & 0xff) << 48 |    \
	 (u64)!!((flags) & SPAN_CRASHED) << 56)

static __always_inline void nethttp_measure(const struct probe *p, struct goroutine *g,
					    struct nethttp_ending *e)
{
	struct series_key key = {};
	struct frame *f = &g->frames[0];
	u32 method = g->route_method;

	if (!method)
		method = http_method(request_string(g->scratch, e->layout->request_method));
	key.tgid = p->tgid;
	key.kind = RECORD_HTTP_SERVER;
	key.text = g->route_hash;
	if (!key.text && g->route_len)
		key.text = text_hash((u8 *)g->route, g->route_len);
	key.error_type = e->panic_type;
	key.detail[0] = HTTP_DETAIL(e->status, method, e->proto_major, e->proto_minor, e->tls,
				    f->flags & (SPAN_ABORTED | SPAN_PANIC | SPAN_GOEXIT | SPAN_CRASHED));
	e->series = measure(p, e->process, METRIC_HTTP_SERVER, &key, g->route, g->route_len, g->route_unread, 0,
			    e->end_ns - f->start_ns, http_bounds, sizeof(http_bounds) / sizeof(u64));
}

#endif
