//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * net/http: the server span of HTTP/1.x.
 *
 *   begin  serverHandler.ServeHTTP        the request is parsed, the handler begins; where a
 *                                         PGO build inlined it, right after readRequest
 *   route  (*ServeMux).ServeHTTP          the pattern, where the mux matched it
 *   end    (*response).finishRequest      the handler returned
 *          (*conn).serve.func1            deferred, once a connection: ends what a panic,
 *                                         Goexit, abort or hijack left open
 *
 * What the span says is read at its end, and only for spans that are kept.
 */
#include "goheader.h"
#include "stash.h"

enum nethttp_kind {
	RECORD_HTTP_SERVER = RECORD_LIBRARY(1),
};

struct nethttp_layout {
	u64 response_type; /* *net/http.response; HTTP/2 has another one */
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
	u32 request_pattern; /* from Go 1.23 on; 0: there is none */
	/* What the route's own probe was good for: user space detaches it where the
	 * request that the server made has the pattern all the same. */
	u32 route_same; /* counted up to ROUTE_COUNTED */
	u32 route_other; /* the pattern was on a copy of the request only */
	u32 route_missing; /* no probe, no pattern, and not "not found" */
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
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct nethttp_layout);
} nethttp_layouts SEC(".maps");

/* frame.object of a server span */
#define SERVER_RESPONSE 0

static __always_inline struct nethttp_layout *nethttp_layout(const struct probe *p)
{
	return bpf_map_lookup_elem(&nethttp_layouts, &p->binary);
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
	u32 size = l->request_size;

	if (size <= SCRATCH_SIZE && !bpf_probe_read_user(g->scratch, size, (void *)request))
		return true;
	__builtin_memset(g->scratch, 0, SCRATCH_SIZE);
	return false;
}

/* Takes trace id and parent from the traceparent header, if there is a valid one. */
static __always_inline u64 nethttp_remote_parent(struct goroutine *g, u64 header_map,
						 const struct runtime_layout *rt)
{
	u64 trace_id[2], parent_id = 0;
	u32 flags = 0;
	struct go_string *s = &g->headers.value[HEADER_TRACEPARENT];

	headers_find(header_map, g, rt);
	if (s->len < TRACEPARENT_LEN || s->len > 256)
		return 0;
	if (bpf_probe_read_user(g->scratch, TRACEPARENT_LEN + 1, (void *)s->ptr))
		if (bpf_probe_read_user(g->scratch, TRACEPARENT_LEN, (void *)s->ptr))
			return 0;
	if (!traceparent_parse((const char *)g->scratch, s->len, trace_id, &parent_id, &flags))
		return 0;
	g->trace_id[0] = trace_id[0];
	g->trace_id[1] = trace_id[1];
	g->tracestate = g->headers.value[HEADER_TRACESTATE].len != 0;
	g->random = !!(flags & TRACE_FLAG_RANDOM);
	trace_decide(g, rt, true, flags);
	return parent_id;
}

/* Variants of nethttp_server_begin. */
enum http_begin_site {
	HTTP_SERVE, /* serverHandler.ServeHTTP(sh serverHandler{srv}, rw iface, req *Request) */
	HTTP_READ, /* in (*conn).serve, where the former was inlined: (w, err) of readRequest */
};

/* The response of an HTTP/1.x request that begins here, or 0. */
static __always_inline u64 nethttp_beginning(struct pt_regs *ctx, const struct probe *p,
					     const struct nethttp_layout *l, u64 *request)
{
	u64 words[4];

	go_results(ctx, words);
	if (p->variant == HTTP_READ) {
		if (words[1]) /* err */
			return 0;
		*request = go_word(words[0] + l->response_req);
		return words[0];
	}
	if (go_type_of(words[1], p->bias) != l->response_type)
		return 0; /* HTTP/2 */
	*request = words[3];
	return words[2];
}

SEC("uprobe")
int nethttp_server_begin(struct pt_regs *ctx)
{
	struct nethttp_layout *l;
	struct runtime_layout *rt;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 context, parent_id, response, request = 0;

	if (!probe_enter(ctx, &p))
		return 0;
	l = nethttp_layout(&p);
	rt = runtime_layout(&p);
	if (!l || !rt)
		return 0;
	response = nethttp_beginning(ctx, &p, l, &request);
	if (!response)
		return 0;

	g = goroutine_here(&p);
	if (g) {
		/* A goroutine serves one request after the other. */
		span_unwind(&p, g, 0);
		goroutine_delete(&p, g);
	}
	g = goroutine_add(&p, rt);
	if (!g) {
		count(&p, COUNT_LOST_GOROUTINES_FULL, 1);
		return 0;
	}
	if (!nethttp_read_request(l, g, request))
		count(&p, COUNT_BAD_READ, 1);
	context = *(u64 *)&g->scratch[(l->request_ctx + 8) & (SCRATCH_SIZE - 8)];
	parent_id = nethttp_remote_parent(g, request_string(g->scratch, l->request_header).ptr, rt);
	if (!parent_id)
		trace_new(g, rt);
	f = span_push(&p, g, RECORD_HTTP_SERVER, parent_id);
	if (!f)
		return 0;
	if (parent_id)
		f->flags |= SPAN_REMOTE_PARENT;
	f->object[SERVER_RESPONSE] = response;
	context_register(&p, g, context);
	return 0;
}

/* The goroutine that holds the server span of the request that a mux, on another
 * goroutine, was called with: http.TimeoutHandler does that. */
static __always_inline struct goroutine *nethttp_route_owner(struct pt_regs *ctx,
							     const struct probe *p)
{
	struct nethttp_layout *l = nethttp_layout(p);
	struct runtime_layout *rt = runtime_layout(p);
	struct go_iface context;
	u64 request, owner;

	if (!l || !rt || !GO_HOME_SLOT(ctx, 3))
		return NULL;
	/* (*ServeMux).ServeHTTP(mux, w iface, r): r is needed after the call, so it has
	 * been spilled. If not, what is found there leads to no registered context. */
	request = go_word(GO_HOME_SLOT(ctx, 3));
	if (!request)
		return NULL;
	context = go_iface(request + l->request_ctx);
	owner = context_owner(p, context.tab, context.data);
	return owner ? goroutine_find(p, rt, owner) : NULL;
}

/* At a branch right after the call that matched: its results (h Handler, pattern
 * string, ...) are still in registers. */
SEC("uprobe")
int nethttp_route(struct pt_regs *ctx)
{
	struct goroutine *g;
	struct probe p;
	u64 len = GO_REG3(ctx);

	if (!probe_enter(ctx, &p))
		return 0;
	if (!len || len > (1 << 20))
		return 0;
	g = goroutine_here(&p);
	if (!g)
		g = nethttp_route_owner(ctx, &p);
	if (!g || g->frames[0].kind != RECORD_HTTP_SERVER)
		return 0;
	if (len > ROUTE_MAX)
		len = ROUTE_MAX;
	if (bpf_probe_read_user(g->route, len, (void *)GO_REG2(ctx))) {
		count(&p, COUNT_BAD_READ, 1);
		return 0;
	}
	text_pad((u8 *)g->route, len);
	g->route_len = len; /* the innermost mux matched last, and knows best */
	g->route_at = GO_REG2(ctx);
	return 0;
}

/* Takes the route from the request itself if no probe has seen it; else counts whether
 * that would have done. g->scratch holds the Request. */
static __always_inline void nethttp_own_route(struct nethttp_layout *l, struct goroutine *g,
					      u16 status)
{
	struct go_string pattern = request_string(g->scratch, l->request_pattern);

	if (!l->request_pattern)
		return;
	if (g->route_len) {
		if (pattern.ptr != g->route_at)
			__sync_fetch_and_add(&l->route_other, 1);
		else if (l->route_same < ROUTE_COUNTED)
			__sync_fetch_and_add(&l->route_same, 1);
		return;
	}
	if (!pattern.len) {
		if (status != 404 && status != 405)
			__sync_fetch_and_add(&l->route_missing, 1);
		return;
	}
	if (pattern.len > ROUTE_MAX)
		pattern.len = ROUTE_MAX;
	if (bpf_probe_read_user(g->route, pattern.len, (void *)pattern.ptr))
		return;
	text_pad((u8 *)g->route, pattern.len);
	g->route_len = pattern.len;
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
	headers_find(request_string(g->scratch, l->request_header).ptr, g, e->runtime);
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

#define METRIC_HTTP_SERVER 0

/* series_key.detail[0] */
#define HTTP_DETAIL(status, method, proto_major, proto_minor, tls, flags)               \
	((u64)(status) | (u64)(method) << 16 | (u64)(proto_major) << 24 |               \
	 (u64)(proto_minor) << 32 | (u64)(tls) << 40 | (u64)((flags) & 0xff) << 48)

static __always_inline void nethttp_measure(const struct probe *p, struct goroutine *g,
					    struct nethttp_ending *e)
{
	struct series_key key = {};
	struct frame *f = &g->frames[0];
	u32 method = http_method(request_string(g->scratch, e->layout->request_method));

	key.tgid = p->tgid;
	key.kind = RECORD_HTTP_SERVER;
	key.text = g->route_len ? text_hash((u8 *)g->route, g->route_len) : 0;
	key.error_type = e->panic_type;
	key.detail[0] = HTTP_DETAIL(e->status, method, e->proto_major, e->proto_minor, e->tls,
				    f->flags & (SPAN_ABORTED | SPAN_PANIC | SPAN_GOEXIT));
	e->series = measure(p, e->process, METRIC_HTTP_SERVER, &key, g->route, g->route_len, 0,
			    e->end_ns - f->start_ns, http_bounds, sizeof(http_bounds) / sizeof(u64));
}

static __always_inline void nethttp_end(const struct probe *p, struct nethttp_layout *l,
					const struct runtime_layout *rt, struct goroutine *g,
					u32 flags, u64 panic_type)
{
	struct nethttp_ending e = { .layout = l, .runtime = rt, .panic_type = panic_type };
	struct frame *f = &g->frames[0];
	u64 response = f->object[SERVER_RESPONSE];
	u32 size, keep = 0;
	bool failed;

	e.end_ns = bpf_ktime_get_ns();
	e.process = process_of(p);
	if (!e.process)
		goto pop; /* as many processes as the map holds: nothing can be counted */
	span_unwind(p, g, 1);
	f->flags |= flags;
	size = l->response_size;
	if (size > SCRATCH_SIZE || bpf_probe_read_user(g->scratch, size, (void *)response))
		__builtin_memset(g->scratch, 0, SCRATCH_SIZE);
	/* Of an abort only what was written is known. */
	if (!(flags & SPAN_ABORTED) || g->scratch[l->response_wrote_header & (SCRATCH_SIZE - 1)])
		e.status = *(u64 *)&g->scratch[l->response_status & (SCRATCH_SIZE - 8)];
	if (!nethttp_read_request(l, g, *(u64 *)&g->scratch[l->response_req & (SCRATCH_SIZE - 8)]))
		count_in(e.process, COUNT_BAD_READ, 1);
	e.proto_major = g->scratch[l->request_proto_major & (SCRATCH_SIZE - 1)];
	e.proto_minor = g->scratch[l->request_proto_minor & (SCRATCH_SIZE - 1)];
	e.tls = *(u64 *)&g->scratch[l->request_tls & (SCRATCH_SIZE - 8)] != 0;

	nethttp_own_route(l, g, e.status);
	nethttp_measure(p, g, &e);
	failed = e.status >= 500 || (flags & (SPAN_PANIC | SPAN_GOEXIT));
	if (g->sampled && failed)
		f->flags |= keep_limited(e.process, e.end_ns);
	if (!g->sampled) {
		keep = keep_reason(e.process, g, failed, e.end_ns - f->start_ns);
		stash_settle(p, e.process, g, keep);
		f->flags |= keep;
	}
	if (g->sampled || keep)
		nethttp_emit(p, g, &e);
	else
		count_unsampled(e.process, g);
pop:
	span_pop(p, g);
}

/* Variants of nethttp_server_end. */
enum http_end_site {
	HTTP_FINISH_REQUEST, /* (*response).finishRequest(w) */
	HTTP_CONNECTION_END, /* (*conn).serve.func1(), deferred */
};

/* Why a request ends with its connection, as flags of the span. */
static __always_inline u32 nethttp_abort(const struct probe *p, const struct nethttp_layout *l,
					 const struct runtime_layout *rt, u64 response,
					 u64 *panic_type)
{
	u64 conn = go_word(response + l->response_conn);
	u64 panic = rt->g_panic ? go_word(p->goroutine + rt->g_panic) : 0;
	u32 flags = SPAN_ABORTED;

	if (go_byte(conn + l->conn_hijacked))
		flags |= SPAN_HIJACKED;
	if (!panic)
		return flags;
	if (go_byte(panic + rt->panic_goexit))
		return flags | SPAN_GOEXIT;
	*panic_type = go_word(panic + rt->panic_arg);
	if (*panic_type)
		*panic_type -= p->bias;
	return flags | SPAN_PANIC;
}

SEC("uprobe")
int nethttp_server_end(struct pt_regs *ctx)
{
	struct nethttp_layout *l;
	struct runtime_layout *rt;
	struct goroutine *g;
	struct probe p;
	u64 response, panic_type = 0;
	u32 flags = 0;

	if (!probe_enter(ctx, &p))
		return 0;
	l = nethttp_layout(&p);
	rt = runtime_layout(&p);
	if (!l || !rt)
		return 0;
	g = goroutine_here(&p);
	if (!g || g->frames[0].kind != RECORD_HTTP_SERVER)
		return 0;
	response = g->frames[0].object[SERVER_RESPONSE];
	if (p.variant == HTTP_CONNECTION_END)
		flags = nethttp_abort(&p, l, rt, response, &panic_type);
	else if (response != GO_REG0(ctx))
		return 0; /* "Expectation failed" finishes what never began */
	nethttp_end(&p, l, rt, g, flags, panic_type);
	return 0;
}
