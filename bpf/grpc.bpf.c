//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * google.golang.org/grpc: the server span and the client span of a call, unary or
 * streaming. Checked in the sources of 1.40 to 1.85, and with 1.33.
 *
 *   server  begin  (*Server).handleStream            on the goroutine that runs the handler
 *           end    (*http2Server).WriteStatus        writeStatus from 1.69 on; the status
 *   client  begin  newClientStream                   of every call, behind the interceptors
 *           end    (*clientStream).finish            has the error
 *                  error paths of newClientStream    calls that never had a stream
 *
 * A unary call ends on the goroutine that began it. A stream may end on any, when its
 * caller has long done something else: where newClientStreamWithParams starts the goroutine
 * that watches the stream's context, which it does for streams alone, the span moves into
 * a map of open streams. (Up to 1.35 newClientStream does all of it.)
 */
#include "grpc.h"
#include "nethttp.h"

/* Variants of grpc_client_end. */
enum grpc_end_site {
	GRPC_FINISH, /* (*clientStream).finish(cs, err) */
	GRPC_NO_STREAM, /* withRetry, or up to 1.7x waitForResolvedAddrs, returned (err) */
	GRPC_NOT_RESOLVED, /* later: (delayed bool, err) */
	GRPC_NO_CALL, /* in invoke: (stream iface, err) of newClientStream */
};

/* Variants of grpc_client_numbered. */
enum grpc_number_site {
	GRPC_NUMBER_KEY, /* where the transport enters the stream under its number */
	GRPC_NUMBER_TAKEN, /* up to 1.48: behind where it has been taken */
};

#define GRPC_CONTEXTS 8

/* The metadata that came with a call: a map, kept in one of the contexts that are wrapped
 * around the stream's. */
static __always_inline u64 grpc_metadata(const struct probe *p, const struct grpc_layout *l,
					 struct go_iface context)
{
	for (u32 i = 0; i < GRPC_CONTEXTS; i++) {
		if (go_type_of(context.tab, p->bias) != l->value_context)
			return 0;
		/* An interface{} holds the type itself, and a map needs no pointer to it. */
		if (go_word(context.data + l->value_key) - p->bias == l->incoming_key)
			return go_word(context.data + l->value_val + 8);
		context = go_iface(context.data); /* embedded first */
	}
	return 0;
}

/* handleStream(s *Server, t transport.ServerTransport, stream) */
SEC("uprobe")
int grpc_server_begin(struct pt_regs *ctx)
{
	struct runtime_layout *rt;
	struct grpc_layout *l;
	struct go_iface context;
	struct go_string method;
	struct goroutine *g;
	struct frame *f;
	struct join_request request = {};
	struct sdk_span sdk = {};
	struct probe p;
	u64 words[4], stream, parent_id;

	if (!probe_begin(ctx, &p))
		return 0;
	go_results(ctx, words);
	l = grpc_layout(&p);
	rt = runtime_layout(&p);
	if (!l || !rt || go_type_of(words[1], p.bias) != l->server_transport)
		return 0; /* behind net/http's server: its span says as much */
	stream = words[3] + l->stream_base;
	if (l->stream_indirect)
		stream = go_word(stream);
	context = go_iface(stream + l->stream_ctx);
	method = go_string(stream + l->stream_method);

	g = goroutine_here(&p);
	if (g) {
		/* A worker serves one call after the other. */
		span_unwind(&p, g, 0);
		goroutine_delete(&p, g);
	}
	if (rt->sdk_spans && !context_parent(&p, context.tab, context.data, &sdk) &&
	    sdk.kind == SDK_KIND_SERVER) {
		count(&p, COUNT_STOOD_DOWN, 1); /* a stats handler has begun its own */
		return 0;
	}
	g = goroutine_add(&p, rt);
	if (!g) {
		count(&p, COUNT_LOST_GOROUTINES_FULL, 1);
		return 0;
	}
	parent_id = nethttp_remote_parent(&p, g, grpc_metadata(&p, l, context), rt);
	if (!parent_id && joins_used && l->server_conn) {
		request.path = join_text(g->scratch, method);
		if (join_is_likely(request.path)) {
			request.stream = go_word(stream + l->stream_id);
			parent_id = join_find(&p, rt, g, go_iface(words[2] + l->server_conn), &request);
		}
	}
	if (!parent_id)
		trace_new(g, rt);
	f = span_push(&p, g, RECORD_GRPC_SERVER, parent_id);
	if (!f)
		return 0;
	if (parent_id)
		f->flags |= SPAN_REMOTE_PARENT;
	f->object[GRPC_STREAM] = words[3];
	f->object[GRPC_METHOD] = method.ptr;
	f->object[GRPC_METHOD_LEN] = method.len;
	context_register(&p, g, context.data);
	return 0;
}

static __always_inline void grpc_ending(struct grpc_ending *e, const u64 trace_id[2], u32 random,
					const struct frame *f)
{
	e->trace_id[0] = trace_id[0];
	e->trace_id[1] = trace_id[1];
	e->random = random;
	e->end_ns = bpf_ktime_get_ns();
	e->method.ptr = f->object[GRPC_METHOD];
	e->method.len = f->object[GRPC_METHOD_LEN];
}

/* Whether UNIMPLEMENTED comes from the server itself: "unknown service", "unknown method",
 * "malformed method name". */
static __always_inline u64 grpc_no_method(const struct grpc_layout *l, u64 proto)
{
	struct go_string message = go_string(proto + l->proto_message);
	u64 word = message.len > 8 ? go_word(message.ptr) : 0;

	return word == WORD('u', 'n', 'k', 'n', 'o', 'w', 'n', ' ') ||
	       word == WORD('m', 'a', 'l', 'f', 'o', 'r', 'm', 'e') ? GRPC_NO_METHOD : 0;
}

/* WriteStatus(t *http2Server, stream, status *status.Status) */
SEC("uprobe")
int grpc_server_end(struct pt_regs *ctx)
{
	struct process *process;
	struct grpc_layout *l;
	struct grpc_work *w;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 words[4], proto = 0;
	u32 code, keep = 0;

	if (!probe_enter(ctx, &p))
		return 0;
	go_results(ctx, words);
	g = goroutine_here(&p);
	if (!g || g->frames[0].kind != RECORD_GRPC_SERVER ||
	    g->frames[0].object[GRPC_STREAM] != words[1])
		return 0;
	l = grpc_layout(&p);
	process = process_of(&p);
	if (!l || !process)
		goto pop;
	f = &g->frames[0];
	span_unwind(&p, g, 1);
	if (f->flags & SPAN_STOOD_DOWN) {
		stash_settle(&p, process, g, 0);
		count_in(process, COUNT_STOOD_DOWN, 1);
		goto pop;
	}
	w = grpc_work(g);
	code = grpc_status_code(l, words[2], &proto);
	w->ending.detail = code;
	if (code == GRPC_UNIMPLEMENTED)
		w->ending.detail |= grpc_no_method(l, proto);
	grpc_ending(&w->ending, g->trace_id, g->random, f);
	w->ending.more.len = 0;
	if (g->tracestate && g->headers.value[HEADER_TRACESTATE].len <= GRPC_TEXT_MAX)
		w->ending.more = g->headers.value[HEADER_TRACESTATE]; /* a part is not valid */
	barrier();
	grpc_measure(&p, process, w, f, METRIC_GRPC_SERVER);
	code = w->ending.detail;
	if (g->sampled && grpc_server_failed(code))
		f->flags |= keep_limited(process, w->ending.end_ns);
	if (!g->sampled) {
		keep = keep_reason(process, g, grpc_server_failed(code),
				   w->ending.end_ns - f->start_ns);
		stash_settle(&p, process, g, keep);
		f->flags |= keep;
	}
	if (g->sampled || keep)
		grpc_emit(&p, process, w, f);
	else
		count_unsampled(process, g);
pop:
	span_pop(&p, g);
	return 0;
}

/* newClientStream(ctx iface, desc *StreamDesc, cc *ClientConn, method string, ...) */
SEC("uprobe")
int grpc_client_begin(struct pt_regs *ctx)
{
	struct runtime_layout *rt;
	struct goroutine *g;
	struct frame *f;
	struct probe p;

	if (!probe_begin(ctx, &p))
		return 0;
	rt = runtime_layout(&p);
	if (!rt)
		return 0;
	g = span_here(&p, rt, RECORD_GRPC_CLIENT, GO_SP(ctx));
	f = span_begin_child(&p, rt, g, RECORD_GRPC_CLIENT, GO_REG0(ctx), GO_REG1(ctx));
	if (!f)
		return 0;
	f->sp = GO_SP(ctx);
	f->object[GRPC_CONN] = GO_REG3(ctx);
	f->object[GRPC_DESC] = GO_REG2(ctx);
	f->object[GRPC_METHOD] = GO_REG4(ctx);
	f->object[GRPC_METHOD_LEN] = GO_REG5(ctx);
	f->object[GRPC_JOIN] = 0;
	f->object[GRPC_TRANSPORT] = 0;
	return 0;
}

/* The call that this goroutine has under way, NULL if none. */
static __always_inline struct frame *grpc_client_here(const struct probe *p, struct goroutine **g)
{
	struct frame *f;

	*g = goroutine_here(p);
	f = *g ? span_innermost(*g) : NULL;
	barrier_var(f);
	return f && f->kind == RECORD_GRPC_CLIENT ? f : NULL;
}

/* Whether a stats handler of the SDK has begun a span of the same call. Where there was a
 * client's span before, none was begun here. */
static __always_inline bool grpc_is_sdk_call(const struct probe *p, u64 context_tab,
					     u64 context_data)
{
	struct runtime_layout *rt = runtime_layout(p);
	struct sdk_span sdk = {};

	return rt && rt->sdk_spans && !context_parent(p, context_tab, context_data, &sdk) &&
	       sdk.span_id && sdk.kind == SDK_KIND_CLIENT;
}

/* NewStream(t *http2Client, ctx iface, ...): which connection the call takes. */
SEC("uprobe")
int grpc_client_transport(struct pt_regs *ctx)
{
	struct goroutine *g;
	struct frame *f;
	struct probe p;

	if (!probe_enter(ctx, &p))
		return 0;
	f = grpc_client_here(&p, &g);
	if (!f || !g)
		return 0;
	if (grpc_is_sdk_call(&p, GO_REG1(ctx), GO_REG2(ctx))) {
		count(&p, COUNT_STOOD_DOWN, 1);
		span_pop(&p, g);
		return 0;
	}
	f->object[GRPC_TRANSPORT] = GO_REG0(ctx);
	return 0;
}

/* The number that a call's stream has just got. Streams of a client have odd ones. */
static __always_inline u32 grpc_number(const struct probe *p, const struct grpc_layout *l,
				       u64 transport, u64 key)
{
	if (p->variant == GRPC_NUMBER_KEY)
		return key;
	return l->client_next ? (u32)go_word(transport + l->client_next) - 2 : 0;
}

/* At mapassign(type, map, key uint32), or before, on the caller's goroutine and before
 * anything is written. */
SEC("uprobe")
int grpc_client_numbered(struct pt_regs *ctx)
{
	struct go_string method;
	struct conn_addresses addresses;
	struct runtime_layout *rt;
	struct conn_ends ends = {};
	struct grpc_layout *l;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 words[4];
	u32 stream;

	if (!probe_enter(ctx, &p))
		return 0;
	go_results(ctx, words);
	f = grpc_client_here(&p, &g);
	l = grpc_layout(&p);
	rt = runtime_layout(&p);
	if (!f || !g || !l || !rt || !l->client_conn || !f->object[GRPC_TRANSPORT])
		return 0;
	stream = grpc_number(&p, l, f->object[GRPC_TRANSPORT], words[2]);
	if (!stream)
		return 0;
	if (f->object[GRPC_JOIN])
		join_forget(f->object[GRPC_JOIN], f->span_id);
	f->object[GRPC_JOIN] = 0;
	if (!conn_addresses(&p, rt, go_iface(f->object[GRPC_TRANSPORT] + l->client_conn),
			    &addresses) ||
	    !conn_address(addresses.local.data, &ends.local) ||
	    !conn_address(addresses.remote.data, &ends.remote))
		return 0;
	method.ptr = f->object[GRPC_METHOD];
	method.len = f->object[GRPC_METHOD_LEN];
	f->object[GRPC_JOIN] = join_note(&p, p.goroutine, f->span_id, &ends, stream,
					 join_text(g->scratch, method), 0);
	return 0;
}

static __always_inline bool grpc_is_stream(const struct grpc_layout *l, const struct frame *f,
					   u64 stream)
{
	return stream && go_word(stream + l->client_cc) == f->object[GRPC_CONN] &&
	       go_word(stream + l->client_desc) == f->object[GRPC_DESC];
}

/* Copies what an ending needs to know of an open call. */
static __always_inline void grpc_stream_of(const struct probe *p, struct grpc_stream *s,
					   const struct goroutine *g, const struct frame *f)
{
	bool foreign = f->flags & SPAN_FOREIGN;

	s->trace_id[0] = foreign ? f->trace_id[0] : g->trace_id[0];
	s->trace_id[1] = foreign ? f->trace_id[1] : g->trace_id[1];
	s->owner = g->owner ? g->owner : p->goroutine;
	s->root_id = foreign ? 0 : g->root_id; /* nothing waits for it */
	s->sampled = span_sampled(g, f);
	s->random = g->random;
	s->backed_off = g->backed_off;
	__builtin_memcpy(&s->frame, f, sizeof(s->frame));
}

/* At newproc(fn *funcval): a stream is open, and is one of the variables that fn holds. */
SEC("uprobe")
int grpc_stream_opened(struct pt_regs *ctx)
{
	struct grpc_stream_key key = {};
	struct grpc_stream s = {};
	struct grpc_layout *l;
	struct goroutine *g;
	struct frame *f;
	struct join *join;
	struct probe p;
	u64 words[4] = {};

	if (!probe_enter(ctx, &p))
		return 0;
	l = grpc_layout(&p);
	g = goroutine_here(&p);
	f = g ? span_innermost(g) : NULL;
	barrier_var(f);
	if (!l || !f || f->kind != RECORD_GRPC_CLIENT ||
	    bpf_probe_read_user(words, sizeof(words), (void *)(GO_REG0(ctx) + 8)))
		return 0;
	for (u32 i = 0; i < 4 && !key.stream; i++)
		if (grpc_is_stream(l, f, words[i]))
			key.stream = words[i];
	if (!key.stream)
		return 0;
	key.tgid = p.tgid;
	grpc_stream_of(&p, &s, g, f);
	if (bpf_map_update_elem(&grpc_streams, &key, &s, BPF_ANY))
		count(&p, COUNT_LOST_GOROUTINES_FULL, 1);
	if (f->object[GRPC_JOIN]) {
		join = bpf_map_lookup_elem(&joins, &f->object[GRPC_JOIN]);
		if (join && join->span_id == f->span_id)
			join->moved = key.stream;
	}
	span_pop(&p, g);
	return 0;
}

/* Gives the trace of a call that is not sampled to whoever may still keep it: its local
 * root, when that ends, or itself, if it is the local root and g still has it open. */
static __always_inline bool grpc_keep(const struct probe *p, const struct runtime_layout *rt,
				      struct process *process, struct goroutine *g,
				      struct grpc_stream *s)
{
	struct grpc_work *w = grpc_work(g);
	u32 keep;

	if (s->root_id != s->frame.span_id)
		return stash_add_to(goroutine_find(p, rt, s->owner), s->root_id, &s->frame,
				    w->ending.end_ns, &w->body);
	if (s->is_stream)
		return false;
	keep = keep_reason(process, g, (u32)w->ending.detail != GRPC_OK,
			   w->ending.end_ns - s->frame.start_ns);
	stash_settle(p, process, g, keep);
	s->frame.flags |= keep;
	if (keep)
		grpc_emit(p, process, w, &s->frame);
	return keep;
}

/* Ends a client's call; g is its goroutine's, or, for a stream, room to read into. */
static __always_inline void grpc_client_finish(const struct probe *p,
					       const struct runtime_layout *rt,
					       const struct grpc_layout *l, struct goroutine *g,
					       struct grpc_stream *s, u32 code)
{
	struct process *process = process_of(p);
	struct grpc_work *w = grpc_work(g);

	if (s->frame.object[GRPC_JOIN])
		join_forget(s->frame.object[GRPC_JOIN], s->frame.span_id);
	if (!process)
		return;
	grpc_ending(&w->ending, s->trace_id, s->random, &s->frame);
	w->ending.detail = code;
	w->ending.more = go_string(s->frame.object[GRPC_CONN] + l->conn_target);
	barrier();
	grpc_measure(p, process, w, &s->frame, METRIC_GRPC_CLIENT);
	if (s->sampled) {
		if ((u32)w->ending.detail != GRPC_OK && s->root_id == s->frame.span_id)
			s->frame.flags |= keep_limited(process, w->ending.end_ns);
		grpc_emit(p, process, w, &s->frame);
	} else if (!grpc_keep(p, rt, process, g, s)) {
		count_in(process, s->backed_off ? COUNT_LOST_BACKED_OFF : COUNT_SAMPLED_OUT, 1);
	}
}

/* Takes the stream that finish was called for out of the map; false if it is not there:
 * it is finished twice, or more. */
static __always_inline bool grpc_stream_take(const struct probe *p, u64 stream,
					     struct grpc_stream *s)
{
	struct grpc_stream_key key = { .stream = stream, .tgid = p->tgid };
	struct grpc_stream *open = bpf_map_lookup_elem(&grpc_streams, &key);

	if (!open)
		return false;
	*s = *open;
	return !bpf_map_delete_elem(&grpc_streams, &key); /* else another goroutine has it */
}

/* The error of a call that ends here, by its site; nil is no end for the error paths. */
static __always_inline void grpc_error(const struct probe *p, const u64 words[4], u64 *tab,
				       u64 *data)
{
	*tab = words[0];
	*data = words[1];
	if (p->variant == GRPC_FINISH || p->variant == GRPC_NOT_RESOLVED) {
		*tab = words[1];
		*data = words[2];
	} else if (p->variant == GRPC_NO_CALL) {
		*tab = words[2];
		*data = words[3];
	}
}

SEC("uprobe")
int grpc_client_end(struct pt_regs *ctx)
{
	struct grpc_stream s = {};
	struct runtime_layout *rt;
	struct grpc_layout *l;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 words[4], tab, data;
	bool here;
	u32 code;

	if (!probe_enter(ctx, &p))
		return 0;
	go_results(ctx, words);
	grpc_error(&p, words, &tab, &data);
	l = grpc_layout(&p);
	rt = runtime_layout(&p);
	if (!l || !rt)
		return 0;
	code = grpc_error_code(&p, l, tab, data);
	if (p.variant == GRPC_FINISH && code == GRPC_UNKNOWN && l->plain_error &&
	    go_type_of(tab, p.bias) == l->plain_error)
		code = GRPC_OK; /* io.EOF: the regular end of a stream */
	g = goroutine_here(&p);
	f = g ? span_innermost(g) : NULL;
	barrier_var(f);
	here = f && f->kind == RECORD_GRPC_CLIENT &&
	       (p.variant != GRPC_FINISH || grpc_is_stream(l, f, words[0]));
	if (f && here) {
		grpc_stream_of(&p, &s, g, f);
	} else {
		if (p.variant != GRPC_FINISH || !grpc_stream_take(&p, words[0], &s))
			return 0;
		s.is_stream = 1;
		f = NULL;
	}
	if (!g) {
		g = goroutine_add(&p, rt);
		if (!g) {
			count(&p, COUNT_LOST_GOROUTINES_FULL, 1);
			return 0;
		}
	}
	grpc_client_finish(&p, rt, l, g, &s, code);
	/* An entry that was only added to read into has no span. */
	if (!s.is_stream || !g->depth)
		span_pop(&p, g);
	return 0;
}
