//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Writes a traceparent into the buffer that a request is being put together in, before
 * anything encrypts it: of net/http's client, and of gRPC's. Nothing of this file is loaded
 * unless it is asked for, and where the kernel forbids to write to a process (lockdown,
 * no CAP_SYS_ADMIN), propagate.bpf.c changes what is sent instead.
 *
 *   HTTP/1.x  request   (*persistConn).roundTrip (propagate.bpf.c)
 *             header    in (*Request).write, where the app's headers follow: the buffer is a
 *                       bufio.Writer
 *   HTTP/2    stream    in (*ClientConn).roundTrip, on the caller's goroutine: text, host
 *             headers   (*clientStream).encodeAndWriteHeaders: connection and stream
 *             frame     in (*Framer).WriteHeaders, where endWrite is called: the frame is
 *                       complete but for its length
 *   gRPC      call      (*http2Client).NewStream, on the caller's goroutine: all but the stream
 *             numbered  where the stream gets its number
 *             frame     as above: it is the Framer of golang.org/x/net/http2
 *
 * Nothing is moved, and nothing that is there is overwritten: the text goes behind the end
 * of the buffer's content, and then the length grows. Where the buffer has no room for it,
 * the request stays as it is. Only the goroutine that runs the program uses the buffer, or
 * it holds the connection's lock.
 */
#include "propagate.h"
#include "httpclient.h"
#include "grpc.h"

/* bufio.Writer */
struct propagate_buffer_layout {
	u64 type; /* *bufio.Writer */
	u32 buf;
	u32 n;
	u32 wr;
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct propagate_buffer_layout);
} propagate_buffers SEC(".maps");

/* Of each http2_client. */
struct propagate_http2_layout {
	u32 conn_framer; /* of ClientConn; 0: the program has the Framer alone */
	u32 framer_wbuf;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, HTTP2_CLIENTS * MAX_BINARIES);
	__type(key, u32);
	__type(value, struct propagate_http2_layout);
} propagate_framers SEC(".maps");

struct propagate_grpc_layout {
	u64 value_context; /* type *context.valueCtx */
	u64 outgoing_key; /* type metadata.mdOutgoingKey */
	u32 value_key;
	u32 value_val;
	u32 raw_md; /* of metadata.rawMD */
	u32 raw_added;
	u32 transport_framer; /* of http2Client */
	u32 framer_framer; /* of that: the http2.Framer */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct propagate_grpc_layout);
} propagate_grpc SEC(".maps");

/* How a header is written. */
enum propagate_form {
	FORM_HTTP, /* name ": " value CR LF */
	FORM_HPACK, /* see FIELD_LEN */
};

/* at_most of a number that is not 0, which the verifier wants to see of what is written. */
static __always_inline u64 some_at_most(u64 n, u64 max)
{
	n--;
	barrier_var(n);
	return (n > max - 1 ? max - 1 : n) + 1;
}

/* Writes the header of a tracestate to a place of the app; returns its length, 0 if there is
 * none or no room. A global function, as those of goroutine.h. */
__noinline u64 propagate_tracestate_write(u64 goroutine, u64 trace_low, u64 tgid_form, u64 to,
					  u64 room)
{
	u8 name[16] = "tracestate: ", line_end[2] = "\r\n";
	u64 len, before = STATE_NAME, after = 2;
	struct tracestate *kept;

	kept = propagate_tracestate_find(goroutine, tgid_form, trace_low, &len);
	if (!kept)
		return 0;
	if (tgid_form >> 32 == FORM_HPACK) {
		__builtin_memcpy(name, "\x00\x0atracestate", STATE_NAME);
		/* A number that begins in seven bits */
		name[STATE_NAME] = len < 127 ? len : 127;
		name[STATE_NAME + 1] = len - 127;
		before = len < 127 ? STATE_NAME + 1 : STATE_NAME + 2;
		after = 0;
	}
	if (before + len + after > room)
		return 0;
	if (bpf_probe_write_user((void *)to, name, some_at_most(before, sizeof(name))) ||
	    bpf_probe_write_user((void *)(to + before), kept->text, some_at_most(len, TRACESTATE_MAX)))
		return 0;
	if (after && bpf_probe_write_user((void *)(to + before + len), line_end, sizeof(line_end)))
		return 0;
	return propagate_tracestate_same(kept, trace_low, len) ? before + len + after : 0;
}

/* Puts a text, and the tracestate that goes with it, behind the content of a buffer that has
 * room for it. */
static __always_inline void propagate_append(u64 buffer, u64 room, u64 len_at, u64 len,
					     const u8 *text, u64 size,
					     const struct propagate_tracestate *state, u64 tgid_form)
{
	u64 grown = len + size;

	/* A length of the target's memory may be any number. */
	if (!buffer || len > room || grown > room) {
		propagate_count(PROPAGATE_NO_ROOM);
		return;
	}
	if (bpf_probe_write_user((void *)(buffer + len), text, size)) {
		propagate_count(PROPAGATE_FAILED);
		return;
	}
	if (state->goroutine)
		grown += propagate_tracestate_write(state->goroutine, state->trace_low, tgid_form,
					       buffer + grown, room - grown);
	if (bpf_probe_write_user((void *)len_at, &grown, sizeof(grown)))
		propagate_count(PROPAGATE_FAILED);
	else
		propagate_count(PROPAGATE_SENT);
}

/* Takes what is noted under a key; false: nothing is. */
static __always_inline bool propagate_take(const struct propagate_write_key *key,
					   struct propagate_write *w)
{
	struct propagate_write *found = bpf_map_lookup_elem(&propagate_pending, key);

	if (!found)
		return false;
	*w = *found;
	bpf_map_delete_elem(&propagate_pending, key);
	return true;
}

/* --- HTTP/1.x --- */

/* In (*Request).write, at Header.writeSubset(h, w iface, ...) */
SEC("uprobe")
int propagate_header(struct pt_regs *ctx)
{
	struct propagate_write_key key = {};
	struct propagate_buffer_layout *l;
	u64 writer = GO_REG2(ctx), len;
	struct propagate_write w;
	struct go_string buf;
	struct probe p;

	if (!probe_enter(ctx, &p))
		return 0;
	l = bpf_map_lookup_elem(&propagate_buffers, &p.binary);
	if (!l || !writer || go_type_of(GO_REG1(ctx), p.bias) != l->type)
		return 0;
	/* A persistConnWriter has but a pointer, which is the interface's data. */
	key.object = go_iface(writer + l->wr).data;
	key.tgid = p.tgid;
	if (!propagate_take(&key, &w))
		return 0;
	buf = go_string(writer + l->buf);
	len = go_word(writer + l->n);
	if (len > buf.len) {
		propagate_count(PROPAGATE_UNREADABLE);
		return 0;
	}
	propagate_append(buf.ptr, buf.len, writer + l->n, len, w.text, PROPAGATE_LEN, &w.state,
			 p.tgid | (u64)FORM_HTTP << 32);
	return 0;
}

/* --- HTTP/2 --- */

static __always_inline struct propagate_http2_layout *propagate_http2(const struct probe *p)
{
	u32 at = (p->variant & 1) * MAX_BINARIES + p->binary;

	return bpf_map_lookup_elem(&propagate_framers, &at);
}

enum propagate_address {
	ADDRESS_FORBIDDEN,
	ADDRESS_ALLOWED,
	ADDRESS_UNREADABLE,
};

/* Whether the other end of a connection may be told for its address. Behind a proxy the
 * address is the proxy's: of that speaks a port that is not the URL's. A global function,
 * as those of goroutine.h. */
__noinline u64 propagate_address_rule(u64 bias, u64 tgid_binary, u64 conn_tab, u64 conn_data,
				      u64 port)
{
	struct probe p = { .bias = bias, .tgid = tgid_binary, .binary = tgid_binary >> 32 };
	struct go_iface conn = { .tab = conn_tab, .data = conn_data };
	struct runtime_layout *rt = runtime_layout(&p);
	u32 *process = bpf_map_lookup_elem(&propagate_processes, &p.tgid);
	struct conn_addresses addresses;
	struct conn_address remote = {};

	if (!rt || !conn_addresses(&p, rt, conn, &addresses) ||
	    !conn_address(addresses.remote.data, &remote))
		return ADDRESS_UNREADABLE;
	if (remote.port != port || (process && *process == PROPAGATE_BEHIND_PROXY) ||
	    !propagate_to_address(&remote))
		return ADDRESS_FORBIDDEN;
	return ADDRESS_ALLOWED;
}

static __always_inline bool propagate_by_address(const struct probe *p, struct go_iface conn,
						 u32 port)
{
	u64 answer = propagate_address_rule(p->bias, (u64)p->binary << 32 | p->tgid, conn.tab,
					    conn.data, port);

	if (answer == ADDRESS_UNREADABLE)
		propagate_count(PROPAGATE_UNREADABLE);
	else if (answer == ADDRESS_FORBIDDEN)
		propagate_count(PROPAGATE_NOT_ALLOWED);
	return answer == ADDRESS_ALLOWED;
}

/* newproc(fn *funcval), as for http2client_start */
SEC("uprobe")
int propagate_stream(struct pt_regs *ctx)
{
	struct propagate_write_key key = {};
	struct http2client_layout *stream;
	struct httpclient_layout *client;
	struct propagate_layout *l;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 request, url, host;
	u32 port;

	if (!probe_enter(ctx, &p))
		return 0;
	g = goroutine_here(&p);
	f = g ? span_innermost(g) : NULL;
	stream = http2client_layout(&p);
	client = bpf_map_lookup_elem(&httpclient_layouts, &p.binary);
	l = propagate_layout(&p);
	barrier_var(f);
	if (!f || f->kind != RECORD_HTTP_CLIENT || !stream || !client || !l)
		return 0;
	key.object = http2client_stream(&p, stream, GO_REG0(ctx));
	key.tgid = p.tgid;
	request = f->object[CLIENT_REQUEST];
	if (!key.object || !request)
		return 0;
	bpf_map_delete_elem(&propagate_pending, &key);
	if (!propagate_may_add(&p, go_word(request + l->request_header)))
		return 0;
	url = go_word(request + client->request_url);
	host = propagate_host_of(&p, go_string(url + client->url_host));
	port = HOST_PORT(host);
	if (!port)
		port = go_string(url + client->url_scheme).len == 5 ? 443 : 80;
	propagate_put(&p, &key, g, f, port, host & HOST_ALLOWED);
	return 0;
}

/* (cs *clientStream, req) */
SEC("uprobe")
int propagate_headers(struct pt_regs *ctx)
{
	struct propagate_write_key key = { .object = GO_REG0(ctx) };
	struct propagate_http2_layout *l;
	struct http2client_layout *stream;
	struct propagate_write w;
	u64 cs = GO_REG0(ctx);
	struct probe p;
	bool noted;

	if (!probe_enter(ctx, &p))
		return 0;
	stream = http2client_layout(&p);
	l = propagate_http2(&p);
	if (!stream || !l || !l->conn_framer)
		return 0;
	key.tgid = p.tgid;
	noted = propagate_take(&key, &w);
	key.object = go_word(go_word(cs + stream->stream_conn) + l->conn_framer);
	key.stream = go_word(cs + stream->stream_id);
	/* Whatever an earlier connection has left. */
	bpf_map_delete_elem(&propagate_pending, &key);
	if (!noted || !key.stream)
		return 0;
	if (!w.named && !propagate_by_address(&p, http2client_conn(stream, cs), w.port))
		return 0;
	bpf_map_update_elem(&propagate_pending, &key, &w, BPF_ANY);
	return 0;
}

#define FRAME_HEADER 9
#define FRAME_MAX 16384 /* what every peer takes */
#define FRAME_HEADERS 1
#define FRAME_END_HEADERS 0x4
#define FRAME_PADDED 0x8

/* A field of HPACK: a literal that is not indexed, with a new name; neither is coded by
 * Huffman. It leaves no trace in the tables of both ends. */
#define FIELD_NAME 13
#define FIELD_LEN (FIELD_NAME + 1 + TRACEPARENT_LEN)

struct propagate_field {
	u8 text[72]; /* FIELD_LEN */
};

static __always_inline void propagate_field_of(struct propagate_field *field,
					    const struct propagate_write *w)
{
	__builtin_memcpy(field->text, "\x00\x0btraceparent", FIELD_NAME);
	field->text[FIELD_NAME] = TRACEPARENT_LEN;
	__builtin_memcpy(field->text + FIELD_NAME + 1, w->text + PROPAGATE_NAME, TRACEPARENT_LEN);
}

/* In WriteHeaders, at endWrite(f *Framer) */
SEC("uprobe")
int propagate_frame(struct pt_regs *ctx)
{
	struct propagate_write_key key = { .object = GO_REG0(ctx) };
	struct propagate_http2_layout *l;
	struct propagate_field field = {};
	struct propagate_write w;
	struct go_string wbuf;
	u8 head[16] = {};
	u64 at, cap;
	struct probe p;

	if (!probe_enter(ctx, &p))
		return 0;
	l = propagate_http2(&p);
	if (!l)
		return 0;
	at = key.object + l->framer_wbuf;
	wbuf = go_string(at);
	cap = go_word(at + 16);
	if (wbuf.len < FRAME_HEADER ||
	    bpf_probe_read_user(head, FRAME_HEADER, (void *)wbuf.ptr))
		return 0;
	key.tgid = p.tgid;
	key.stream = head[8] | (u32)head[7] << 8 | (u32)head[6] << 16 | (u32)head[5] << 24;
	if (!key.stream || !propagate_take(&key, &w))
		return 0;
	/* A block that goes on in another frame has its end there. */
	if (head[3] != FRAME_HEADERS || !(head[4] & FRAME_END_HEADERS) ||
	    (head[4] & FRAME_PADDED) || wbuf.len > FRAME_MAX - FIELD_LEN) {
		propagate_count(PROPAGATE_UNFIT);
		return 0;
	}
	propagate_field_of(&field, &w);
	propagate_append(wbuf.ptr, cap < FRAME_MAX ? cap : FRAME_MAX, at + 8, wbuf.len, field.text,
			 FIELD_LEN, &w.state, p.tgid | (u64)FORM_HPACK << 32);
	return 0;
}

/* --- gRPC --- */

static __always_inline struct propagate_grpc_layout *propagate_grpc_of(const struct probe *p)
{
	return bpf_map_lookup_elem(&propagate_grpc, &p->binary);
}

/* The metadata that a context brings along for a call, a *rawMD; 0: there is none. */
__noinline u64 propagate_outgoing(u64 bias, u64 tgid_binary, u64 itab, u64 data)
{
	u32 binary = tgid_binary >> 32;
	struct propagate_grpc_layout *l = bpf_map_lookup_elem(&propagate_grpc, &binary);
	struct type_key type = { .type = image_type(itab, bias, tgid_binary), .binary = binary };

	if (!l)
		return 0;
	for (int i = 0; i < MAX_CONTEXT_DEPTH; i++) {
		struct type_info *info;

		if (!data || !type.type)
			return 0;
		if (type.type == l->value_context &&
		    go_word(data + l->value_key) - bias == l->outgoing_key)
			return go_word(data + l->value_val + 8);
		info = bpf_map_lookup_elem(&types, &type);
		if (!info || !context_up(info, bias, tgid_binary, &type.type, &data))
			return 0;
	}
	return 0;
}

#define ADDED_LISTS 4
#define ADDED_PAIRS 8

/* Whether a traceparent or tracestate was added to metadata, a [][]string of names and
 * values. What was not seen in full may hold one. */
__noinline u64 propagate_added(u64 lists, u64 len)
{
	for (u32 i = 0; i < ADDED_LISTS && i < len; i++) {
		struct go_string list = go_string(lists + 24 * i);

		for (u32 j = 0; j < ADDED_PAIRS && 2 * j < list.len; j++) {
			struct go_string name = go_string(list.ptr + 32 * j);

			if ((name.len == 11 && header_read(name.ptr, name.len) == HEADER_TRACEPARENT) ||
			    (name.len == 10 && header_read(name.ptr, name.len) == HEADER_TRACESTATE))
				return OWN_TRACEPARENT;
		}
		if (list.len > 2 * ADDED_PAIRS)
			return OWN_UNREADABLE;
	}
	return len > ADDED_LISTS ? OWN_UNREADABLE : OWN_NONE;
}

static __always_inline bool propagate_call_may_add(const struct probe *p,
						   const struct propagate_grpc_layout *l,
						   u64 itab, u64 data)
{
	u64 raw = propagate_outgoing(p->bias, image_owner(p->tgid, p->binary), itab, data), own;
	struct go_string added;

	if (!raw)
		return true;
	added = go_string(raw + l->raw_added);
	own = propagate_added(added.ptr, added.len);
	if (own == OWN_NONE)
		return propagate_may_add(p, go_word(raw + l->raw_md));
	propagate_count(own == OWN_TRACEPARENT ? PROPAGATE_OWN : PROPAGATE_UNREADABLE);
	return false;
}

/* Whether whom a call goes to may be told. */
static __always_inline bool propagate_call_allowed(const struct probe *p,
						   const struct grpc_layout *grpc,
						   const struct frame *f, u64 transport)
{
	u64 host = propagate_host_of(p, go_string(f->object[GRPC_CONN] + grpc->conn_target));

	if (host & HOST_ALLOWED)
		return true;
	return propagate_by_address(p, go_iface(transport + grpc->client_conn),
				    HOST_PORT(host) ? HOST_PORT(host) : 443);
}

/* NewStream(t *http2Client, ctx iface, ...) */
SEC("uprobe")
int propagate_call(struct pt_regs *ctx)
{
	struct propagate_write_key key = {};
	struct propagate_grpc_layout *l;
	struct grpc_layout *grpc;
	struct goroutine *g;
	struct frame *f;
	struct probe p;

	if (!probe_enter(ctx, &p))
		return 0;
	key.object = p.goroutine;
	key.tgid = p.tgid;
	bpf_map_delete_elem(&propagate_pending, &key);
	f = grpc_client_here(&p, &g);
	l = propagate_grpc_of(&p);
	grpc = grpc_layout(&p);
	if (!f || !g || !l || !grpc || !grpc->client_conn ||
	    !propagate_call_may_add(&p, l, GO_REG1(ctx), GO_REG2(ctx)) ||
	    !propagate_call_allowed(&p, grpc, f, GO_REG0(ctx)))
		return 0;
	propagate_put(&p, &key, g, f, 0, true);
	return 0;
}

/* As for grpc_client_numbered */
SEC("uprobe")
int propagate_numbered(struct pt_regs *ctx)
{
	struct propagate_write_key key = {};
	struct propagate_grpc_layout *l;
	struct grpc_layout *grpc;
	struct propagate_write w;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 words[4];
	bool noted;

	if (!probe_enter(ctx, &p))
		return 0;
	go_results(ctx, words);
	f = grpc_client_here(&p, &g);
	l = propagate_grpc_of(&p);
	key.object = p.goroutine;
	key.tgid = p.tgid;
	noted = propagate_take(&key, &w);
	grpc = grpc_layout(&p);
	if (!f || !l || !grpc || !f->object[GRPC_TRANSPORT])
		return 0;
	key.object = go_word(go_word(f->object[GRPC_TRANSPORT] + l->transport_framer) +
			     l->framer_framer);
	key.stream = grpc_number(&p, grpc, f->object[GRPC_TRANSPORT], words[2]);
	bpf_map_delete_elem(&propagate_pending, &key);
	if (noted && key.stream)
		bpf_map_update_elem(&propagate_pending, &key, &w, BPF_ANY);
	return 0;
}
