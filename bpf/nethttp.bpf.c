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
#include "nethttp.h"

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

	if (!probe_begin(ctx, &p))
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
