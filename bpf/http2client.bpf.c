//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * net/http: which stream of which connection a request of HTTP/2 is sent on, for the server
 * at the other end (join.h). Its span is that of httpclient.bpf.c.
 *
 *   start    in (*ClientConn).roundTrip, where the goroutine starts that writes the
 *            request: the stream is among the variables of that closure
 *   headers  (*clientStream).encodeAndWriteHeaders   on that goroutine: the stream has its
 *            number, and nothing of it is written yet
 *
 * The client is bundled into net/http up to Go 1.26, is net/http/internal/http2 from 1.27
 * on, and may be golang.org/x/net/http2 before. Checked in Go 1.18 to 1.27.
 */
#include "httpclient.h"

/* newproc(fn *funcval) */
SEC("uprobe")
int http2client_start(struct pt_regs *ctx)
{
	struct http2_call_key key = {};
	struct http2client_layout *l;
	struct httpclient_layout *request;
	struct http2_call call = {};
	struct goroutine *g;
	struct frame *f;
	struct probe p;

	if (!probe_enter(ctx, &p))
		return 0;
	g = goroutine_here(&p);
	f = g ? span_innermost(g) : NULL;
	l = http2client_layout(&p);
	request = bpf_map_lookup_elem(&httpclient_layouts, &p.binary);
	barrier_var(f);
	if (!f || f->kind != RECORD_HTTP_CLIENT || !l || !request)
		return 0;
	key.stream = http2client_stream(&p, l, GO_REG0(ctx));
	if (!key.stream)
		return 0;
	key.tgid = p.tgid;
	httpclient_unjoin(&p, f); /* of a try before this one */
	httpclient_target(request, g, f, &call.path, &call.host);
	call.goroutine = p.goroutine;
	call.span_id = f->span_id;
	f->object[CLIENT_STREAM] = key.stream;
	bpf_map_update_elem(&http2_calls, &key, &call, BPF_ANY);
	return 0;
}

/* (cs *clientStream, req). The frame is another goroutine's, and not written to here. */
SEC("uprobe")
int http2client_headers(struct pt_regs *ctx)
{
	struct http2_call_key key = { .stream = GO_REG0(ctx) };
	struct conn_addresses addresses;
	struct http2client_layout *l;
	struct runtime_layout *rt;
	struct conn_ends ends = {};
	struct http2_call *call;
	struct probe p;
	u32 stream;

	if (!probe_enter(ctx, &p))
		return 0;
	key.tgid = p.tgid;
	call = bpf_map_lookup_elem(&http2_calls, &key);
	l = http2client_layout(&p);
	rt = runtime_layout(&p);
	if (!call || !l || !rt)
		return 0;
	stream = go_word(key.stream + l->stream_id);
	if (!stream ||
	    !conn_addresses(&p, rt, http2client_conn(l, key.stream), &addresses) ||
	    !conn_address(addresses.local.data, &ends.local) ||
	    !conn_address(addresses.remote.data, &ends.remote))
		return 0;
	call->peer = ends.remote;
	call->join = join_note(&p, call->goroutine, call->span_id, &ends, stream, call->path,
			       call->host);
	return 0;
}
