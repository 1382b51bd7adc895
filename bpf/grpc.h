/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * grpc.h: what calls of gRPC have in common on both sides: layouts, status, record, and
 * how they are measured.
 */
#ifndef AGENT_GRPC_H
#define AGENT_GRPC_H

#include "goheader.h"
#include "stash.h"

enum grpc_kind {
	RECORD_GRPC_SERVER = RECORD_LIBRARY(4),
	RECORD_GRPC_CLIENT,
};

struct grpc_layout {
	u64 server_transport; /* type *transport.http2Server */
	u64 value_context; /* type *context.valueCtx */
	u64 incoming_key; /* type metadata.mdIncomingKey */
	u64 status_error; /* type *status.Error */
	u64 plain_error; /* type *errors.errorString, that of io.EOF; 0: none */
	u32 stream_base; /* of transport.Stream in what a handler is given */
	u32 stream_indirect; /* that is a pointer to it */
	u32 stream_method;
	u32 stream_ctx;
	u32 value_key;
	u32 value_val;
	u32 error_status;
	u32 status_proto;
	u32 proto_code;
	u32 proto_message;
	u32 client_cc;
	u32 client_desc;
	u32 conn_target;
	u32 error_is_proto; /* a *status.Error points to what a *status.Status does (up to 1.3x) */
	u32 stream_id; /* of transport.Stream */
	u32 server_conn; /* of http2Server: the net.Conn; 0: calls are not joined */
	u32 client_conn; /* of http2Client; 0: likewise */
	u32 client_next; /* of http2Client: the number of the next stream */
};

#define METRIC_GRPC_SERVER 3
#define METRIC_GRPC_CLIENT 4

#define GRPC_TEXT_MAX 160 /* of each of the two texts */

/* Behind the header of a record, and all of it that a stash keeps. The record's text is
 * the method, as "/service/method", and then the target that a client has dialed, or the
 * tracestate that a server was sent. */
struct grpc_body {
	struct series_key key; /* detail: the code, GRPC_NO_METHOD */
	u32 method_len;
	u32 more_len;
	u64 pad[3];
};

_Static_assert(sizeof(struct grpc_body) == STASH_BODY * 8, "a stash holds a body");

struct grpc_record {
	struct record_header header;
	struct grpc_body body;
};

struct grpc_large {
	struct grpc_record record;
	char text[2 * GRPC_TEXT_MAX];
};

/* Codes of google.golang.org/grpc/codes that say what happened here. */
#define GRPC_OK 0
#define GRPC_UNKNOWN 2
#define GRPC_DEADLINE_EXCEEDED 4
#define GRPC_UNIMPLEMENTED 12
#define GRPC_INTERNAL 13
#define GRPC_UNAVAILABLE 14
#define GRPC_DATA_LOSS 15

/* series_key.detail[0] */
#define GRPC_NO_METHOD (1ULL << 32) /* the server has no such method: clients make it up */


struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct grpc_layout);
} grpc_layouts SEC(".maps");

/* frame.object of a call */
#define GRPC_STREAM 0 /* server: the stream */
#define GRPC_CONN 0 /* client: the ClientConn */
#define GRPC_DESC 1 /* client: the StreamDesc */
#define GRPC_METHOD 2
#define GRPC_METHOD_LEN 3
#define GRPC_JOIN 4 /* client: the key of its note */
#define GRPC_TRANSPORT 5 /* client: the http2Client */

static __always_inline struct grpc_layout *grpc_layout(const struct probe *p)
{
	return bpf_map_lookup_elem(&grpc_layouts, &p->binary);
}

/* A call that ends: what was open, and how it ended. */
struct grpc_ending {
	u64 trace_id[2];
	u64 end_ns;
	u64 series;
	u64 detail;
	struct go_string method;
	struct go_string more;
	u32 random;
	u32 pad;
};

/* What is worked on at an end, in the scratch of a goroutine: read back from there a value is
 * any number to the verifier, so that it need not follow each way on which one came about. */
struct grpc_work {
	char text[2 * GRPC_TEXT_MAX];
	struct grpc_ending ending;
	struct grpc_body body;
};

_Static_assert(sizeof(struct grpc_work) <= SCRATCH_SIZE, "scratch holds the work");

static __always_inline struct grpc_work *grpc_work(struct goroutine *g)
{
	return (struct grpc_work *)g->scratch;
}

static __always_inline u32 grpc_proto_code(const struct grpc_layout *l, u64 proto)
{
	u32 code = 0;

	if (proto)
		bpf_probe_read_user(&code, sizeof(code), (void *)(proto + l->proto_code));
	return code;
}

/* The code in a *status.Status; a nil one is OK. */
static __always_inline u32 grpc_status_code(const struct grpc_layout *l, u64 status, u64 *proto)
{
	*proto = status ? go_word(status + l->status_proto) : 0;
	return grpc_proto_code(l, *proto);
}

/* The code of an error, as status.Code has it. */
static __always_inline u32 grpc_error_code(const struct probe *p, const struct grpc_layout *l,
					   u64 tab, u64 data)
{
	u64 proto;

	if (!tab)
		return GRPC_OK;
	if (go_type_of(tab, p->bias) != l->status_error)
		return GRPC_UNKNOWN;
	if (l->error_is_proto)
		return grpc_proto_code(l, go_word(data + l->error_status));
	return grpc_status_code(l, go_word(data + l->error_status), &proto);
}

static __always_inline bool grpc_server_failed(u32 code)
{
	return code == GRPC_UNKNOWN || code == GRPC_DEADLINE_EXCEEDED ||
	       (code >= GRPC_UNIMPLEMENTED && code <= GRPC_DATA_LOSS);
}

/* Reads a text to w->text + at, and returns how much of it there is. */
static __always_inline u32 grpc_text(struct process *process, struct grpc_work *w, u32 at,
				     const struct go_string *s)
{
	u64 len = s->len;

	if (len > GRPC_TEXT_MAX)
		len = GRPC_TEXT_MAX;
	barrier_var(len);
	if (at > GRPC_TEXT_MAX || !len)
		return 0;
	if (bpf_probe_read_user(w->text + at, len, (void *)s->ptr)) {
		count_in(process, COUNT_BAD_READ, 1);
		return 0;
	}
	return len;
}

/* Measures a call, and leaves its body and the text of it in w. */
static __always_inline void grpc_measure(const struct probe *p, struct process *process,
					 struct grpc_work *w, const struct frame *f, u32 metric)
{
	struct grpc_ending *e = &w->ending;
	struct grpc_body *b = &w->body;
	u64 len;

	__builtin_memset(b, 0, sizeof(*b));
	b->method_len = grpc_text(process, w, 0, &e->method);
	if (metric == METRIC_GRPC_CLIENT)
		b->more_len = grpc_text(process, w, b->method_len, &e->more);
	b->key.tgid = p->tgid;
	b->key.kind = f->kind;
	b->key.detail[0] = e->detail;
	barrier();
	len = e->detail & GRPC_NO_METHOD ? 0 : b->method_len + b->more_len;
	if (len > sizeof(w->text))
		len = sizeof(w->text);
	if (len) {
		text_pad((u8 *)w, len);
		b->key.text = text_hash((u8 *)w, len);
	}
	e->series = measure(p, process, metric, &b->key, w->text, len, 0, b->method_len,
			    e->end_ns - f->start_ns, http_bounds, sizeof(http_bounds) / sizeof(u64));
	if (metric == METRIC_GRPC_SERVER)
		b->more_len = grpc_text(process, w, b->method_len, &e->more);
	barrier();
}

static __always_inline void grpc_emit(const struct probe *p, struct process *process,
				      const struct grpc_work *w, const struct frame *f)
{
	struct grpc_large *r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	const struct grpc_ending *e = &w->ending;

	if (!r) {
		count_in(process, COUNT_LOST_RING_FULL, 1);
		return;
	}
	r->record.header.kind = f->kind;
	r->record.header.tgid = p->tgid;
	r->record.header.flags = f->flags | (e->random ? SPAN_RANDOM : 0);
	r->record.header.binary = p->binary;
	r->record.header.start_ns = f->start_ns;
	r->record.header.end_ns = e->end_ns;
	__builtin_memcpy(r->record.header.trace_id, e->trace_id, 16);
	__builtin_memcpy(r->record.header.span_id, &f->span_id, 8);
	__builtin_memcpy(r->record.header.parent_id, &f->parent_id, 8);
	r->record.header.series = e->series;
	r->record.body = w->body;
	bpf_probe_read_kernel(r->text, sizeof(r->text), w->text);
	record_submit(process, r);
}

#endif
