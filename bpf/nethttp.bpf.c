//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * net/http: the server span of HTTP/1.x and HTTP/2.
 *
 *   begin  serverHandler.ServeHTTP        the request is parsed, the handler begins; where a
 *                                         PGO build inlined it, right after readRequest
 *          (*serverConn).runHandler       HTTP/2 that does not go through serverHandler
 *   route  (*ServeMux).ServeHTTP          the pattern, where the mux matched it; in that of
 *          (*ServeMux).handler            Go up to 1.21, which 1.22 calls serveMux121
 *   end    (*response).finishRequest      the handler returned; where a PGO build inlined
 *                                         it, at what it calls
 *          (*conn).serve.func1            deferred, once a connection: ends what a panic,
 *                                         Goexit, abort or hijack left open
 *          (*serverConn).runHandler.func  deferred, once a stream of HTTP/2
 *          runtime.startpanic_m           the process dies of this goroutine
 *
 * Each stream of HTTP/2 has a goroutine of its own, which runs runHandler. Its server is
 * bundled into net/http up to Go 1.26, is net/http/internal/http2 from 1.27 on, and may be
 * golang.org/x/net/http2 before.
 *
 * What the span says is read at its end, and only for spans that are kept.
 */
#include "nethttp.h"

/* Variants of nethttp_server_begin. */
enum http_begin_site {
	HTTP_SERVE, /* serverHandler.ServeHTTP(sh serverHandler{srv}, rw iface, req *Request) */
	HTTP_READ, /* in (*conn).serve, where the former was inlined: (w, err) of readRequest */
	HTTP_RUN, /* (*serverConn).runHandler(sc, rw, req, handler) of HTTP_2 */
	HTTP_RUN_X, /* of HTTP_2X */
};

/* A request that begins. */
struct nethttp_beginning {
	struct nethttp_layout *layout; /* of what request points to */
	u64 response;
	u64 request;
	u32 server; /* enum http_server */
	u32 pad;
};

/* False if no request begins here. */
static __always_inline bool nethttp_beginning(struct pt_regs *ctx, const struct probe *p,
					      struct nethttp_beginning *b)
{
	struct nethttp_layout *http2;
	u64 words[4], type;

	go_results(ctx, words);
	if (p->variant == HTTP_RUN || p->variant == HTTP_RUN_X) {
		b->server = p->variant == HTTP_RUN ? HTTP_2 : HTTP_2X;
		b->layout = nethttp_layout_of(p, b->server);
		b->request = words[2];
		b->response = go_word(words[1]);
		return b->layout && b->response;
	}
	b->server = HTTP_1;
	b->layout = nethttp_layout(p);
	if (!b->layout)
		return false;
	if (p->variant == HTTP_READ) {
		if (words[1]) /* err */
			return false;
		b->request = go_word(words[0] + b->layout->response_req);
		b->response = words[0];
		return true;
	}
	b->request = words[3];
	b->response = words[2];
	type = probe_type(p, words[1]);
	if (type == b->layout->response_type)
		return true;
	http2 = nethttp_layout_of(p, HTTP_2);
	if (!http2 || !type || type != http2->response_type)
		return false; /* begun by runHandler */
	b->server = HTTP_2;
	b->response = go_word(words[2]);
	return b->response;
}

SEC("uprobe")
int nethttp_server_begin(struct pt_regs *ctx)
{
	struct nethttp_beginning b = {};
	struct nethttp_layout *l;
	struct runtime_layout *rt;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	struct go_string uri, host;
	u64 context, url, parent_id;

	if (!probe_begin(ctx, &p))
		return 0;
	rt = runtime_layout(&p);
	if (!rt || !nethttp_beginning(ctx, &p, &b))
		return 0;
	l = b.layout;

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
	if (!nethttp_read_request(l, g, b.request))
		count(&p, COUNT_BAD_READ, 1);
	if (b.server == HTTP_1 && g->scratch[l->request_proto_major & (SCRATCH_SIZE - 1)] == 2) {
		/* "PRI * HTTP/2.0" is no request: a handler is about to make an HTTP/2
		 * connection of this one, whose requests begin in runHandler. */
		goroutine_delete(&p, g);
		return 0;
	}
	context = *(u64 *)&g->scratch[(l->request_ctx + 8) & (SCRATCH_SIZE - 8)];
	table_touch(&context_table, context, p.tgid);
	uri = request_string(g->scratch, l->request_uri);
	url = request_string(g->scratch, l->request_url).ptr;
	host = request_string(g->scratch, l->request_host);
	parent_id = nethttp_remote_parent(&p, g, request_string(g->scratch, l->request_header).ptr, rt);
	if (!parent_id)
		parent_id = nethttp_joined_parent(&p, nethttp_layout_of(&p, b.server), rt, g,
						  b.response, url + l->url_path, host);
	if (!parent_id)
		trace_new(g, rt);
	nethttp_drop(g, uri);
	f = span_push(&p, g, RECORD_HTTP_SERVER, parent_id);
	if (!f)
		return 0;
	if (parent_id)
		f->flags |= SPAN_REMOTE_PARENT;
	f->object[SERVER_RESPONSE] = b.response;
	f->object[SERVER_WHICH] = b.server;
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

	if (!l || !rt)
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

/* Variants of nethttp_route. */
enum http_route_site {
	HTTP_ROUTE_RESULT, /* right after the call that matched: its results (h Handler, pattern
			    * string, ...) are still in registers */
	HTTP_ROUTE_STACK, /* in the function that matched, its own results on its stack */
};

/* Bytes of stack from (*ServeMux).ServeHTTP to there; some releases take a few less. */
#define HTTP_MUX_FRAMES 592

SEC("uprobe")
int nethttp_route(struct pt_regs *ctx)
{
	struct go_string pattern = { .ptr = GO_REG2(ctx), .len = GO_REG3(ctx) };
	struct nethttp_layout *l;
	struct goroutine *g;
	struct probe p;
	u64 len;
	u32 depth;

	if (!probe_enter(ctx, &p))
		return 0;
	if (p.variant == HTTP_ROUTE_STACK) {
		l = nethttp_layout(&p);
		if (!l)
			return 0;
		pattern = go_string(GO_SP(ctx) + l->route_slot);
	}
	len = pattern.len;
	if (!len || len > (1 << 20))
		return 0;
	g = goroutine_here(&p);
	depth = route_depth(ctx, &p, g != NULL);
	if (p.variant == HTTP_ROUTE_STACK)
		depth -= HTTP_MUX_FRAMES / 2;
	if (!g && p.variant == HTTP_ROUTE_RESULT)
		g = nethttp_route_owner(ctx, &p);
	if (!g || g->frames[0].kind != RECORD_HTTP_SERVER)
		return 0;
	if (len > ROUTE_MAX)
		len = ROUTE_MAX;
	if (bpf_probe_read_user(g->route, len, (void *)pattern.ptr)) {
		count(&p, COUNT_BAD_READ, 1);
		return 0;
	}
	text_pad((u8 *)g->route, len);
	g->route_len = len; /* the innermost mux matched last, and knows best */
	g->route_at = pattern.ptr;
	g->route_depth = depth;
	return 0;
}

/* Takes the route from the request itself if no probe has seen it; else counts whether
 * that would have done. g->scratch holds the Request. */
static __always_inline void nethttp_own_route(const struct probe *p, const struct nethttp_layout *l,
					      struct nethttp_layout *counts, struct goroutine *g,
					      const struct nethttp_ending *e)
{
	u64 method_len = request_string(g->scratch, l->request_method).len;
	u64 owner = image_owner(p->tgid, p->binary), constant;
	struct go_string pattern = {};
	u64 hash = 0, method = 0;

	g->route_hash = g->route_unread = g->route_method = 0;
	if (!counts->request_pattern || (g->route_len && g->route_at == ROUTE_OF_ROUTER))
		return;
	/* HTTP/2 of Go 1.27 has its own request, from which the handler's is made. */
	if (l->request_pattern)
		pattern = request_string(g->scratch, l->request_pattern);
	if (g->route_len) {
		if (pattern.ptr != g->route_at)
			__sync_fetch_and_add(&counts->route_other, 1);
		else if (counts->route_same < ROUTE_COUNTED)
			__sync_fetch_and_add(&counts->route_same, 1);
		return;
	}
	if (!pattern.len) {
		if (e->status != 404 && e->status != 405)
			__sync_fetch_and_add(&counts->route_missing, 1);
		return;
	}
	if (pattern.len > ROUTE_MAX)
		pattern.len = ROUTE_MAX;
	constant = image_text(IMAGE_TEXT, e->runtime, p->bias, pattern.ptr, pattern.len);
	if (constant) {
		hash = image_get(constant, owner);
		method = image_get(image_key(IMAGE_METHOD, pattern.ptr - p->bias, method_len), owner);
	}
	if (hash && method) {
		g->route_hash = hash;
		g->route_unread = pattern.ptr;
		g->route_method = method - 1;
		g->route_len = pattern.len;
		return;
	}
	if (bpf_probe_read_user(g->route, pattern.len, (void *)pattern.ptr))
		return;
	text_pad((u8 *)g->route, pattern.len);
	g->route_len = pattern.len;
	g->route_hash = text_hash((u8 *)g->route, pattern.len);
	g->route_method = method_of_route(*(u64 *)g->route, method_len);
	if (constant) {
		image_put(constant, owner, g->route_hash);
		image_put(image_key(IMAGE_METHOD, pattern.ptr - p->bias, method_len), owner, g->route_method + 1);
	}
}

static __always_inline void nethttp_end(const struct probe *p, const struct nethttp_layout *l,
					struct nethttp_layout *counts,
					const struct runtime_layout *rt, struct goroutine *g,
					u32 flags, u64 panic_type)
{
	struct nethttp_ending e = { .layout = l, .runtime = rt, .panic_type = panic_type };
	struct frame *f = &g->frames[0];
	u64 response = f->object[SERVER_RESPONSE], request;
	u32 keep = 0;
	bool failed;

	e.end_ns = bpf_ktime_get_ns();
	e.process = process_of(p);
	if (!e.process)
		goto pop; /* as many processes as the map holds: nothing can be counted */
	span_unwind(p, g, 1);
	if (f->flags & SPAN_STOOD_DOWN) {
		stash_settle(p, e.process, g, 0);
		count_in(e.process, COUNT_STOOD_DOWN, 1);
		goto pop;
	}
	f->flags |= flags;
	read_object(g->scratch, l->response_size, response);
	/* Of an abort only what was written is known. */
	if (!(flags & SPAN_ABORTED) || g->scratch[l->response_wrote_header & (SCRATCH_SIZE - 1)])
		e.status = *(u64 *)&g->scratch[l->response_status & (SCRATCH_SIZE - 8)];
	request = response + l->response_req;
	if (!l->request_inline)
		request = *(u64 *)&g->scratch[l->response_req & (SCRATCH_SIZE - 8)];
	if (!nethttp_read_request(l, g, request))
		count_in(e.process, COUNT_BAD_READ, 1);
	e.proto_major = g->scratch[l->request_proto_major & (SCRATCH_SIZE - 1)];
	e.proto_minor = g->scratch[l->request_proto_minor & (SCRATCH_SIZE - 1)];
	e.tls = *(u64 *)&g->scratch[l->request_tls & (SCRATCH_SIZE - 8)] != 0;

	nethttp_own_route(p, l, counts, g, &e);
	nethttp_measure(p, g, &e);
	failed = e.status >= 500 || (flags & (SPAN_PANIC | SPAN_GOEXIT | SPAN_CRASHED));
	if (g->sampled && failed)
		f->flags |= keep_limited(e.process, e.end_ns);
	if (!g->sampled) {
		keep = keep_reason(e.process, g, failed, e.end_ns - f->start_ns);
		stash_settle(p, e.process, g, keep);
		f->flags |= keep;
	}
	if ((g->sampled || keep) && g->route_unread &&
	    bpf_probe_read_user(g->route, at_most(g->route_len, ROUTE_MAX), (void *)g->route_unread))
		g->route_len = 0; /* its page is not there any more */
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
	HTTP_STREAM_END, /* (*serverConn).runHandler.func1(), deferred */
	HTTP_CRASH, /* runtime.startpanic_m(): the process dies */
	HTTP_FINISHING, /* in (*conn).serve, where finishRequest was inlined */
};

/* Whether and why the goroutine unwinds, as flags of the span. */
static __always_inline u32 nethttp_unwinding(const struct probe *p, const struct runtime_layout *rt,
					     u64 *panic_type)
{
	u64 panic = rt->g_panic ? go_word(p->goroutine + rt->g_panic) : 0;

	if (!panic)
		return 0;
	if (go_byte(panic + rt->panic_goexit))
		return SPAN_ABORTED | SPAN_GOEXIT;
	*panic_type = go_word(panic + rt->panic_arg);
	if (*panic_type)
		*panic_type -= p->bias;
	return SPAN_ABORTED | SPAN_PANIC;
}

/* Why a request ends with its connection, as flags of the span. */
static __always_inline u32 nethttp_abort(const struct probe *p, const struct nethttp_layout *l,
					 const struct runtime_layout *rt, u64 response,
					 u64 *panic_type)
{
	u64 conn = go_word(response + l->response_conn);
	u32 flags = SPAN_ABORTED | nethttp_unwinding(p, rt, panic_type);

	if (go_byte(conn + l->conn_hijacked))
		flags |= SPAN_HIJACKED;
	return flags;
}

SEC("uprobe")
int nethttp_server_end(struct pt_regs *ctx)
{
	struct panicked panicked;
	struct nethttp_layout *l, *counts;
	struct runtime_layout *rt;
	struct goroutine *g;
	struct probe p;
	u64 response, panic_type = 0;
	u32 server, flags = 0;

	if (!probe_enter(ctx, &p))
		return 0;
	rt = runtime_layout(&p);
	if (!rt)
		return 0;
	if (p.variant == HTTP_CRASH)
		probe_crashed(&p, rt);
	g = goroutine_here(&p);
	if (!g || g->frames[0].kind != RECORD_HTTP_SERVER)
		return 0;
	server = g->frames[0].object[SERVER_WHICH];
	if (p.variant != HTTP_CRASH && (server != HTTP_1) != (p.variant == HTTP_STREAM_END))
		return 0;
	counts = nethttp_layout(&p);
	l = nethttp_layout_of(&p, server);
	if (!l || !counts)
		return 0;
	response = g->frames[0].object[SERVER_RESPONSE];
	if (p.variant == HTTP_STREAM_END || (p.variant == HTTP_CRASH && server != HTTP_1))
		flags = nethttp_unwinding(&p, rt, &panic_type);
	else if (p.variant == HTTP_CONNECTION_END || p.variant == HTTP_CRASH)
		flags = nethttp_abort(&p, l, rt, response, &panic_type);
	else if (p.variant == HTTP_FINISH_REQUEST && response != GO_REG0(ctx))
		return 0; /* "Expectation failed" finishes what never began */
	if (p.variant == HTTP_CRASH)
		flags |= SPAN_ABORTED | SPAN_CRASHED;
	panicked = panicked_of(g);
	/* By way of the map: read back they are any numbers to the verifier, which else
	 * follows all that comes for each way to get here. */
	g->frames[0].object[SERVER_PANIC] = panic_type;
	g->frames[0].flags |= flags;
	panic_type = *(volatile u64 *)&g->frames[0].object[SERVER_PANIC];
	flags = *(volatile u32 *)&g->frames[0].flags;
	nethttp_end(&p, l, counts, rt, g, flags, panic_type);
	if (flags & (SPAN_PANIC | SPAN_CRASHED))
		panicked_add(&p, &panicked);
	return 0;
}
