//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * net/http: the client span of a request; each redirect is one of its own.
 *
 *   begin    (*Transport).roundTrip, under which all requests pass
 *   connect  (*persistConn).roundTrip   it has a connection of HTTP/1.x, and writes next
 *   end      in (*Transport).roundTrip, where its results are still in registers:
 *              after (*persistConn).roundTrip, or that of HTTP/2   a response came
 *              after alternateRoundTripper's RoundTrip             likewise; it may decline
 *              the RETs that neither leads to                      an error
 *
 * golang.org/x/net/http2 has a transport of its own, which programs use without net/http's
 * above it, for HTTP/2 without TLS before all:
 *
 *   begin    (*Transport).RoundTripOpt, from x/net 0.56 on roundTripViaPool
 *   end      after (*ClientConn).RoundTrip; the RETs that only errors lead to
 *
 * Where net/http's has handed the request on, these do nothing.
 *
 * A response has come when its headers are there; reading the body is not part of the
 * span. What fails on a connection that was kept too long is tried again by roundTrip
 * itself, and is one span. Texts are read at the end.
 */
#include "httpclient.h"

/* Whether net/http's transport has a span of what golang.org/x/net/http2's is asked for. */
static __always_inline bool httpclient_handed_on(const struct probe *p,
						 const struct runtime_layout *rt)
{
	/* Not goroutine_here: what a dead goroutine left would silence the next one. */
	struct goroutine *g = goroutine_find(p, rt, p->goroutine);
	struct frame *f = g ? span_innermost(g) : NULL;

	barrier_var(f);
	return f && f->kind == RECORD_HTTP_CLIENT && !(f->flags & SPAN_HTTP2_X);
}

/* (t *Transport, req *Request) */
SEC("uprobe")
int httpclient_begin(struct pt_regs *ctx)
{
	struct go_iface context;
	struct httpclient_layout *l;
	struct runtime_layout *rt;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 request = GO_REG1(ctx);

	if (!probe_begin(ctx, &p))
		return 0;
	l = httpclient_layout(&p);
	rt = runtime_layout(&p);
	if (!l || !rt || (p.variant == CLIENT_HTTP2_X && httpclient_handed_on(&p, rt)))
		return 0;
	g = span_here(&p, rt, RECORD_HTTP_CLIENT, GO_SP(ctx));
	context = go_iface(request + l->request_ctx);
	f = span_begin_child(&p, rt, g, RECORD_HTTP_CLIENT, context.tab, context.data);
	if (!f)
		return 0;
	if (p.variant == CLIENT_HTTP2_X)
		f->flags |= SPAN_HTTP2_X;
	f->sp = GO_SP(ctx);
	f->object[CLIENT_REQUEST] = request;
	f->object[CLIENT_PEER] = 0;
	f->object[CLIENT_PEER + 1] = 0;
	f->object[CLIENT_PEER_PORT] = 0;
	f->object[CLIENT_JOIN] = 0;
	f->object[CLIENT_STREAM] = 0;
	return 0;
}

/* (pc *persistConn, req *transportRequest). A second time in a span: the first
 * connection was of no use. */
SEC("uprobe")
int httpclient_connect(struct pt_regs *ctx)
{
	struct conn_addresses addresses;
	struct httpclient_layout *l;
	struct runtime_layout *rt;
	struct conn_ends ends = {};
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 path, host;

	if (!probe_enter(ctx, &p))
		return 0;
	g = goroutine_here(&p);
	f = g ? span_innermost(g) : NULL;
	if (!f || f->kind != RECORD_HTTP_CLIENT)
		return 0;
	l = httpclient_layout(&p);
	rt = runtime_layout(&p);
	if (!l || !rt)
		return 0;
	httpclient_unjoin(&p, f);
	if (!conn_addresses(&p, rt, go_iface(GO_REG0(ctx) + l->conn), &addresses) ||
	    !conn_address(addresses.local.data, &ends.local) ||
	    !conn_address(addresses.remote.data, &ends.remote))
		return 0; /* a Unix socket, or a connection of an unknown kind */
	httpclient_peer(f, &ends.remote);
	httpclient_target(l, g, f, &path, &host);
	f->object[CLIENT_JOIN] = join_note(&p, p.goroutine, f->span_id, &ends, 0, path, host);
	return 0;
}

/* What is known at the end of a request is kept in map memory, its texts in g->headers:
 * on the stack every combination of outcomes would be a state for the verifier. */
#define CLIENT_ERROR_TYPE CLIENT_JOIN /* as linked; 0: none */
#define CLIENT_CODE 5 /* the error's number, CLIENT_CANCELED, or 0 */
#define CLIENT_DETAIL CLIENT_REQUEST /* HTTP_DETAIL */
#define CLIENT_PEER_FLAGS CLIENT_PEER_PORT

#define PEER_FLAG(flag) ((u64)(flag) << 16) /* httpclient_body.flags */
#define PEER_RESEND(n) ((u64)(n) << 24) /* httpclient_body.resend_count */

_Static_assert((int)CLIENT_TEXTS == (int)HEADERS, "g->headers has room for the texts");

#define MAX_ERROR_DEPTH 4

#define TEXT_SKIP_LEN 33 /* "net/http: skip alternate protocol" */

/* What a text of errors.New says; the texts are the same from Go 1.18 to 1.27. */
enum error_text {
	ERROR_OTHER,
	ERROR_CANCELED, /* "context canceled", "net/http: request canceled..." */
	ERROR_SKIP, /* of http.ErrSkipAltProtocol */
};

static __always_inline u32 error_text(struct go_string s)
{
	u64 word[4] = {};

	if (s.len < 16 || s.len > 64 ||
	    bpf_probe_read_user(word, s.len < sizeof(word) ? s.len : sizeof(word), (void *)s.ptr))
		return ERROR_OTHER;
	if (s.len == 16 && word[0] == WORD('c', 'o', 'n', 't', 'e', 'x', 't', ' ') &&
	    word[1] == WORD('c', 'a', 'n', 'c', 'e', 'l', 'e', 'd'))
		return ERROR_CANCELED;
	if (word[0] != WORD('n', 'e', 't', '/', 'h', 't', 't', 'p'))
		return ERROR_OTHER;
	if (word[1] == WORD(':', ' ', 'r', 'e', 'q', 'u', 'e', 's') &&
	    word[2] == WORD('t', ' ', 'c', 'a', 'n', 'c', 'e', 'l'))
		return ERROR_CANCELED;
	if (s.len == TEXT_SKIP_LEN && word[1] == WORD(':', ' ', 's', 'k', 'i', 'p', ' ', 'a'))
		return ERROR_SKIP;
	return ERROR_OTHER;
}

/* Follows an error to its cause. Being canceled by the caller is no error. */
static __always_inline void httpclient_error(struct frame *f, const struct probe *p,
					     struct go_iface error)
{
	struct type_key key = { .type = go_type_of(error.tab, p->bias), .binary = p->binary };
	u64 data = error.data;

	f->object[CLIENT_ERROR_TYPE] = key.type;
	f->object[CLIENT_CODE] = 0;
	for (int i = 0; i < MAX_ERROR_DEPTH; i++) {
		struct type_info *info;

		if (!key.type || !data)
			return;
		info = bpf_map_lookup_elem(&types, &key);
		if (!info)
			return;
		if (info->role == TYPE_ERROR_NUMBER) {
			f->object[CLIENT_CODE] = go_word(data + info->offset) & 0xffffffff;
			return;
		}
		if (info->role == TYPE_ERROR_TEXT) {
			if (error_text(go_string(data + info->offset)) == ERROR_CANCELED) {
				f->object[CLIENT_CODE] = CLIENT_CANCELED;
				f->object[CLIENT_ERROR_TYPE] = 0;
			}
			return;
		}
		if (info->role != TYPE_ERROR_INTERFACE)
			return;
		error = go_iface(data + info->offset);
		key.type = go_type_of(error.tab, p->bias);
		data = error.data;
		if (key.type)
			f->object[CLIENT_ERROR_TYPE] = key.type;
	}
}

#define MAX_REDIRECTS 10 /* of http.Client */

/* How many redirects led here: each request knows the response that it follows. */
static __always_inline u32 httpclient_redirects(const struct httpclient_layout *l, u64 response)
{
	u32 n = 0;

	for (u32 i = 0; i < MAX_REDIRECTS && response; i++) {
		u64 request = go_word(response + l->response_request);

		n++;
		response = request ? go_word(request + l->request_response) : 0;
	}
	return n;
}

static __always_inline void httpclient_texts_of(const struct httpclient_layout *l,
						struct goroutine *g, struct frame *f)
{
	struct go_string *text = g->headers.value;
	u64 flags = 0;

	/* g->scratch holds the URL. */
	if (request_string(g->scratch, l->url_scheme).len == 5)
		flags |= PEER_FLAG(CLIENT_HTTPS);
	if (*(u64 *)&g->scratch[l->url_user & (SCRATCH_SIZE - 8)])
		flags |= PEER_FLAG(CLIENT_USER);
	f->object[CLIENT_PEER_FLAGS] |= flags;
	text[CLIENT_TEXT_HOST] = request_string(g->scratch, l->url_host);
	text[CLIENT_TEXT_PATH] = request_string(g->scratch, l->url_path);
	text[CLIENT_TEXT_QUERY] = request_string(g->scratch, l->url_raw_query);
	if (request_string(g->scratch, l->url_opaque).len) {
		text[CLIENT_TEXT_PATH] = request_string(g->scratch, l->url_opaque);
		f->object[CLIENT_PEER_FLAGS] |= PEER_FLAG(CLIENT_OPAQUE);
	} else if (request_string(g->scratch, l->url_raw_path).len) {
		text[CLIENT_TEXT_PATH] = request_string(g->scratch, l->url_raw_path);
		f->object[CLIENT_PEER_FLAGS] |= PEER_FLAG(CLIENT_ENCODED);
	}
}

/* Finds out what Request, URL and Response say; response is 0 after an error. */
static __always_inline void httpclient_describe(const struct probe *p,
						const struct httpclient_layout *l,
						struct goroutine *g, struct frame *f, u64 response)
{
	u64 url, cause, status = 0, detail;
	u8 major = 0, minor = 0;

	httpclient_read(g, f->object[CLIENT_REQUEST], l->request_size);
	g->headers.value[CLIENT_TEXT_METHOD] = request_string(g->scratch, l->request_method);
	url = request_string(g->scratch, l->request_url).ptr;
	cause = *(u64 *)&g->scratch[l->request_response & (SCRATCH_SIZE - 8)];
	if (cause)
		f->object[CLIENT_PEER_FLAGS] |= PEER_RESEND(httpclient_redirects(l, cause));
	if (!httpclient_read(g, url, l->url_size))
		count(p, COUNT_BAD_READ, 1);
	httpclient_texts_of(l, g, f);
	if (httpclient_read(g, response, l->response_size)) {
		status = *(u64 *)&g->scratch[l->response_status & (SCRATCH_SIZE - 8)];
		major = g->scratch[l->response_proto_major & (SCRATCH_SIZE - 1)];
		minor = g->scratch[l->response_proto_minor & (SCRATCH_SIZE - 1)];
	}
	detail = HTTP_DETAIL(status & 0xffff, 0, major, minor,
			     (f->object[CLIENT_PEER_FLAGS] >> 16) & CLIENT_HTTPS, 0);
	f->object[CLIENT_DETAIL] = detail;
	f->object[CLIENT_DETAIL] |= (u64)http_method(g->headers.value[CLIENT_TEXT_METHOD]) << 16;
	if ((f->object[CLIENT_DETAIL] >> 16) & 0xff)
		g->headers.value[CLIENT_TEXT_METHOD].len = 0; /* the number says it */
}

static __always_inline bool httpclient_failed(const struct frame *f)
{
	return f->object[CLIENT_ERROR_TYPE] || (f->object[CLIENT_DETAIL] & 0xffff) >= 400;
}

#define METRIC_HTTP_CLIENT 2
#define CLIENT_HOST_MAX 256

/* Names what is needed to measure and to emit. */
struct httpclient_ending {
	struct process *process;
	u64 end_ns;
	u64 series;
	struct httpclient_body body;
};

static __always_inline void httpclient_measure(const struct probe *p, struct goroutine *g,
					       const struct frame *f, struct httpclient_ending *e)
{
	struct go_string host = g->headers.value[CLIENT_TEXT_HOST];
	struct series_key *key = &e->body.key;
	u64 len = host.len < CLIENT_HOST_MAX ? host.len : CLIENT_HOST_MAX;

	key->tgid = p->tgid;
	key->kind = RECORD_HTTP_CLIENT;
	key->error_type = f->object[CLIENT_ERROR_TYPE];
	key->detail[0] = f->object[CLIENT_DETAIL];
	key->detail[1] = f->object[CLIENT_CODE];
	e->body.peer[0] = f->object[CLIENT_PEER];
	e->body.peer[1] = f->object[CLIENT_PEER + 1];
	*(u64 *)&e->body.peer_port = f->object[CLIENT_PEER_FLAGS];
	if (len && bpf_probe_read_user(g->scratch, len, (void *)host.ptr))
		len = 0;
	text_pad(g->scratch, len);
	key->text = text_hash(g->scratch, len);
	e->body.text_len[CLIENT_TEXT_HOST] = len;
	e->series = measure(p, e->process, METRIC_HTTP_CLIENT, key, g->scratch, len, 0, 0,
			    e->end_ns - f->start_ns, http_bounds, sizeof(http_bounds) / sizeof(u64));
}

static __always_inline u32 httpclient_text_max(u32 which)
{
	if (which == CLIENT_TEXT_HOST)
		return CLIENT_HOST_MAX;
	return which == CLIENT_TEXT_METHOD ? 32 : CLIENT_TEXT_MAX;
}

/* Copies the texts behind the record; max is room that the verifier knows to be free
 * behind each begin. nethttp_texts says why the lengths are kept in the record. */
static __always_inline void httpclient_texts(struct process *process, struct httpclient_record *r,
					     char *text, u32 room, u32 max,
					     const struct goroutine *g)
{
	r->body.text_end = 0;
	for (u32 i = 0; i < CLIENT_TEXTS; i++) {
		u64 at = r->body.text_end, len = g->headers.value[i].len;
		u32 limit = httpclient_text_max(i) < max ? httpclient_text_max(i) : max;

		r->body.text_len[i] = 0;
		barrier_var(at);
		if (at > room)
			continue;
		if (len > limit) {
			len = limit;
			r->header.flags |= SPAN_TRUNCATED;
		}
		barrier_var(len);
		if (bpf_probe_read_user(text + at, len, (void *)g->headers.value[i].ptr)) {
			len = 0;
			count_in(process, COUNT_BAD_READ, 1);
		}
		r->body.text_len[i] = len;
		r->body.text_end += len;
	}
}

static __always_inline void httpclient_emit(const struct probe *p, struct goroutine *g,
					    const struct frame *f, const struct httpclient_ending *e)
{
	struct httpclient_small *small;
	struct httpclient_large *large;
	u64 total = 0;

	for (u32 i = 0; i < CLIENT_TEXTS; i++)
		total += g->headers.value[i].len;
	if (total <= CLIENT_SMALL) {
		small = bpf_ringbuf_reserve(&ring, sizeof(*small), 0);
		if (!small)
			goto full;
		record_fill(&small->record.header, p, g, f, e->end_ns, e->series);
		small->record.body = e->body;
		httpclient_texts(e->process, &small->record, small->text, CLIENT_SMALL,
				 CLIENT_SMALL, g);
		record_submit(e->process, small);
		return;
	}
	large = bpf_ringbuf_reserve(&ring, sizeof(*large), 0);
	if (!large)
		goto full;
	record_fill(&large->record.header, p, g, f, e->end_ns, e->series);
	large->record.body = e->body;
	httpclient_texts(e->process, &large->record, large->text, CLIENT_LARGE, CLIENT_TEXT_MAX, g);
	record_submit(e->process, large);
	return;
full:
	count_in(e->process, COUNT_LOST_RING_FULL, 1);
}

static __always_inline void httpclient_finish(const struct probe *p,
					      const struct httpclient_layout *l,
					      const struct runtime_layout *rt, struct goroutine *g,
					      struct frame *f, u64 response, struct go_iface error)
{
	struct httpclient_ending e = {};
	u32 keep = 0;

	httpclient_unjoin(p, f);
	e.end_ns = bpf_ktime_get_ns();
	e.process = process_of(p);
	if (!e.process)
		goto pop;
	httpclient_error(f, p, error);
	httpclient_describe(p, l, g, f, error.tab ? 0 : response);
	httpclient_measure(p, g, f, &e);
	if (span_sampled(g, f)) {
		if (httpclient_failed(f) && span_is_local_root(g, f))
			f->flags |= keep_limited(e.process, e.end_ns);
	} else if (f->flags & SPAN_FOREIGN) {
		count_in(e.process, COUNT_SAMPLED_OUT, 1);
		goto pop;
	} else if (span_is_local_root(g, f)) {
		/* The trace is not sampled: how its local root ends may still keep it. */
		keep = keep_reason(e.process, g, httpclient_failed(f), e.end_ns - f->start_ns);
		stash_settle(p, e.process, g, keep);
		f->flags |= keep;
	} else {
		e.body.flags |= CLIENT_HOST_ONLY;
		if (stash_add(p, rt, g, f, e.end_ns, &e.body))
			goto pop;
	}
	if (span_sampled(g, f) || keep)
		httpclient_emit(p, g, f, &e);
	else
		count_unsampled(e.process, g);
pop:
	span_pop(p, g);
}

/* Whether an alternate protocol has declined the request, which then goes on. */
static __always_inline bool httpclient_declined(const struct probe *p,
						const struct httpclient_layout *l,
						struct go_iface error)
{
	return error.tab && go_type_of(error.tab, p->bias) == l->error_text_type &&
	       error_text(go_string(error.data)) == ERROR_SKIP;
}

SEC("uprobe")
int httpclient_end(struct pt_regs *ctx)
{
	struct httpclient_layout *l;
	struct runtime_layout *rt;
	struct go_iface error;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 words[4];
	bool x;

	if (!probe_enter(ctx, &p))
		return 0;
	go_results(ctx, words);
	error.tab = words[1];
	error.data = words[2];
	if ((p.variant == CLIENT_RESPONSE || p.variant == CLIENT_RESPONSE_X) && error.tab)
		return 0; /* tried again, or returned */
	x = p.variant == CLIENT_RESPONSE_X || p.variant == CLIENT_RETURN_X;
	l = httpclient_layout(&p);
	rt = runtime_layout(&p);
	if (!l || !rt)
		return 0;
	if (p.variant == CLIENT_ALTERNATE && httpclient_declined(&p, l, error))
		return 0;
	g = goroutine_here(&p);
	f = g ? span_innermost(g) : NULL;
	if (!f || f->kind != RECORD_HTTP_CLIENT || !(f->flags & SPAN_HTTP2_X) == x)
		return 0;
	httpclient_finish(&p, l, rt, g, f, words[0], error);
	return 0;
}
