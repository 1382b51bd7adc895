//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Puts a traceparent into requests of net/http's client. Nothing of this file is loaded
 * unless it is asked for.
 *
 *   propagate_request  (*persistConn).roundTrip: the request has a connection, and the
 *                      span is open. Decides whether a header may be added, and notes it,
 *                      here or for propagate_write.bpf.c.
 *   propagate_dial     (*Transport).dialConn: this process has clients of HTTP
 *   propagate_connect  a socket of such a process is connected, to whom ids may be told:
 *                      what is sent there passes propagate_send from now on
 *   propagate_send     the first message of the request: puts it behind the request line
 *
 * A socket that was connected before is added by user space, when its first request is
 * seen; one that turns out to carry something else is taken out again.
 */
#include "propagate.h"

#define AF_INET 2
#define AF_INET6 10

enum propagate_state {
	PROPAGATE_FRESH, /* nothing was sent yet */
	PROPAGATE_HTTP,
	PROPAGATE_OTHER, /* not HTTP/1.x: left alone for good */
	PROPAGATE_ASKED, /* user space is about to add it */
};

/* What is known of a connection, by its ends and process. LRU: one that is evicted is
 * asked for once more. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, u64);
	__type(value, u32); /* enum propagate_state */
} propagate_conns SEC(".maps");

/* The same with the socket, which takes it along when it is closed. */
struct propagate_socket {
	u64 cookie;
	u32 tgid;
	u32 state; /* enum propagate_state */
	u64 at; /* where the header goes: by way of the map any number to the verifier */
	u8 tracestate[TRACESTATE_MAX + 2]; /* that goes with it */
};

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct propagate_socket);
} propagate_sockets SEC(".maps");

/* Sockets whose messages pass propagate_send, by cookie. A socket leaves it when it is
 * closed, and all do when the agent ends, however it ends. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 65536);
	__type(key, u64);
	__type(value, u64);
} propagate_connected SEC(".maps");

/* What user space is asked for. */
struct propagate_event {
	struct conn_ends ends;
	u64 cookie; /* leave: of the socket */
	u32 tgid;
	u32 leave; /* take it out, else add it */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 16);
} propagate_ring SEC(".maps");

static __always_inline u64 propagate_key(const struct conn_ends *ends, u32 tgid)
{
	return join_key(&ends->local, &ends->remote, tgid, 0);
}

static __always_inline void propagate_tell(const struct conn_ends *ends, u64 cookie, u32 tgid,
					   u32 leave)
{
	struct propagate_event *event = bpf_ringbuf_reserve(&propagate_ring, sizeof(*event), 0);

	if (!event)
		return; /* full: the connection stays as it is */
	event->ends = *ends;
	event->cookie = cookie;
	event->tgid = tgid;
	event->leave = leave;
	bpf_ringbuf_submit(event, 0);
}

/* The connection is unknown: asks user space, once. */
static __always_inline void propagate_ask(const struct conn_ends *ends, u64 key, u32 tgid)
{
	u32 asked = PROPAGATE_ASKED;

	if (bpf_map_lookup_elem(&propagate_conns, &key))
		return;
	propagate_count(PROPAGATE_NEW);
	bpf_map_update_elem(&propagate_conns, &key, &asked, BPF_ANY);
	propagate_tell(ends, 0, tgid, 0);
}

/* Whether this destination may be told, and can be. */
static __always_inline bool propagate_allowed(const struct propagate_layout *l, u64 pc, u64 host,
					      const struct conn_address *remote)
{
	if (go_string(pc + l->conn_proxy).len) {
		propagate_count(PROPAGATE_PROXIED);
		return false;
	}
	if (!(host & HOST_ALLOWED) && !propagate_to_address(remote)) {
		propagate_count(PROPAGATE_NOT_ALLOWED);
		return false;
	}
	if (!propagate_writes && go_string(pc + l->conn_scheme).len != 4) {
		propagate_count(PROPAGATE_TLS);
		return false;
	}
	return true;
}

/* The addresses of a connection, into the note. */
static __always_inline bool propagate_ends(const struct probe *p, struct go_iface conn,
					   struct propagate_note *note)
{
	struct runtime_layout *rt = runtime_layout(p);
	struct conn_addresses addresses;

	if (rt && conn_addresses(p, rt, conn, &addresses) &&
	    conn_address(addresses.local.data, &note->client.ends.local) &&
	    conn_address(addresses.remote.data, &note->client.ends.remote))
		return true;
	propagate_count(PROPAGATE_UNREADABLE);
	return false;
}

/* Removes whatever an earlier request on the connection has left. */
static __always_inline u64 propagate_clear(const struct probe *p, const struct conn_ends *ends)
{
	u64 key = propagate_key(ends, p->tgid);

	bpf_map_delete_elem(&propagate_notes, &key);
	return key;
}

/* (pc *persistConn, req *transportRequest) */
SEC("uprobe")
int propagate_request(struct pt_regs *ctx)
{
	struct propagate_write_key written = { .object = GO_REG0(ctx) };
	u64 pc = GO_REG0(ctx), key = 0, request, host;
	struct propagate_note *note;
	struct propagate_layout *l;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	bool may_add;

	if (!probe_enter(ctx, &p))
		return 0;
	written.tgid = p.tgid;
	if (propagate_writes)
		bpf_map_delete_elem(&propagate_pending, &written);
	g = goroutine_here(&p);
	f = g ? span_innermost(g) : NULL;
	barrier_var(f);
	l = propagate_layout(&p);
	if (!f || f->kind != RECORD_HTTP_CLIENT || !l)
		return 0;
	/* These two use the scratch, where the note is made afterwards. */
	request = go_word(GO_REG1(ctx) + l->treq_request);
	may_add = request && propagate_may_add(&p, go_word(request + l->request_header));
	host = propagate_host_of(&p, go_string(pc + l->conn_addr));

	note = (struct propagate_note *)g->scratch;
	__builtin_memset(note, 0, sizeof(*note));
	if (!propagate_ends(&p, go_iface(pc + l->conn), note))
		return 0;
	if (!propagate_writes)
		key = propagate_clear(&p, &note->client.ends);
	if (!may_add || !propagate_allowed(l, pc, host, &note->client.ends.remote))
		return 0;
	if (propagate_writes) {
		propagate_put(&p, &written, g, f, 0, true);
		return 0;
	}
	propagate_ask(&note->client.ends, key, p.tgid);
	note->client.goroutine = p.goroutine;
	note->client.span_id = f->span_id;
	note->client.tgid = p.tgid;
	note->state = propagate_tracestate_of(&p, g, f);
	propagate_text(note->text, g, f);
	bpf_map_update_elem(&propagate_notes, &key, note, BPF_ANY);
	return 0;
}

/* (t *Transport, ctx, cm): cm begins with the URL of the proxy. */
SEC("uprobe")
int propagate_dial(struct pt_regs *ctx)
{
	u32 kind = GO_REG3(ctx) ? PROPAGATE_BEHIND_PROXY : PROPAGATE_CLIENT;
	struct probe p;

	/* A proxy once seen is not forgotten. */
	if (probe_enter(ctx, &p))
		bpf_map_update_elem(&propagate_processes, &p.tgid, &kind,
				    kind == PROPAGATE_CLIENT ? BPF_NOEXIST : BPF_ANY);
	return 0;
}

/* --- into what is about to be sent --- */

static __always_inline void address_of_v4(struct conn_address *a, u32 ip, u32 port)
{
	a->ip[0] = 0;
	a->ip[1] = 0xffff0000ULL | (u64)ip << 32;
	a->port = port;
	a->pad = 0;
}

/* Words of the context, each loaded by itself: the compiler would make one of two. */
#define ADDRESS_OF_V6(a, words, number)                                                    \
	do {                                                                               \
		u32 w0 = (words)[0], w1, w2, w3;                                           \
                                                                                           \
		barrier_var(w0);                                                           \
		w1 = (words)[1];                                                           \
		barrier_var(w1);                                                           \
		w2 = (words)[2];                                                           \
		barrier_var(w2);                                                           \
		w3 = (words)[3];                                                           \
		barrier_var(w3);                                                           \
		(a)->ip[0] = w0 | (u64)w1 << 32;                                           \
		(a)->ip[1] = w2 | (u64)w3 << 32;                                           \
		(a)->port = number;                                                        \
		(a)->pad = 0;                                                              \
	} while (0)

/* The same fields in both contexts. */
#define ENDS_OF(ctx, ends)                                                                 \
	do {                                                                               \
		u32 near = (ctx)->local_port;                                              \
		u32 far = __builtin_bswap32((ctx)->remote_port);                           \
                                                                                           \
		if ((ctx)->family == AF_INET) {                                            \
			address_of_v4(&(ends)->local, (ctx)->local_ip4, near);             \
			address_of_v4(&(ends)->remote, (ctx)->remote_ip4, far);            \
		} else {                                                                   \
			ADDRESS_OF_V6(&(ends)->local, (ctx)->local_ip6, near);             \
			ADDRESS_OF_V6(&(ends)->remote, (ctx)->remote_ip6, far);            \
		}                                                                          \
	} while (0)

/* The process is about to connect: this runs on its thread. */
static __always_inline void propagate_connecting(struct bpf_sock_ops *ops)
{
	u64 task = bpf_get_current_task();
	struct propagate_socket *s;
	struct conn_ends ends;
	struct bpf_sock *sk;
	u32 tgid = 0;

	bpf_probe_read_kernel(&tgid, sizeof(tgid), (void *)(task + propagate_tgid));
	if (!bpf_map_lookup_elem(&propagate_processes, &tgid))
		return;
	ENDS_OF(ops, &ends);
	if (!propagate_to_address(&ends.remote))
		return;
	sk = ops->sk;
	if (!sk)
		return;
	s = bpf_sk_storage_get(&propagate_sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return;
	s->tgid = tgid;
	s->cookie = bpf_get_socket_cookie(ops);
}

static __always_inline void propagate_established(struct bpf_sock_ops *ops)
{
	struct propagate_socket *s;
	struct conn_ends ends;
	struct bpf_sock *sk = ops->sk;
	u32 state = PROPAGATE_FRESH;
	u64 key, cookie;

	s = sk ? bpf_sk_storage_get(&propagate_sockets, sk, NULL, 0) : NULL;
	if (!s)
		return;
	cookie = s->cookie;
	if (bpf_sock_hash_update(ops, &propagate_connected, &cookie, BPF_ANY)) {
		propagate_count(PROPAGATE_FAILED);
		return;
	}
	ENDS_OF(ops, &ends);
	key = propagate_key(&ends, s->tgid);
	bpf_map_update_elem(&propagate_conns, &key, &state, BPF_ANY);
}

SEC("sockops")
int propagate_connect(struct bpf_sock_ops *ops)
{
	if (ops->family != AF_INET && ops->family != AF_INET6)
		return 1;
	if (ops->op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		propagate_connecting(ops);
	else if (ops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		propagate_established(ops);
	return 1;
}

/* A message that is shorter than this is no request: "GET / HTTP/1.1" and Host. */
#define MESSAGE_MIN 24
/* Of a longer request line the end is not looked for. A segment of any network has room
 * for it and the header. */
#define LINE_MAX 1000
/* A message up to this size is put into one piece again, so that it goes out as one. */
#define PIECE_MAX 4096

/* Makes the first bytes of a message readable. */
static __always_inline bool message_pull(struct sk_msg_md *msg, u32 len)
{
	void *data = msg->data, *end = msg->data_end;

	return data + len <= end || !bpf_msg_pull_data(msg, 0, len, 0);
}

/* Whether what is sent first on a connection can be a request of HTTP/1.x. */
static __always_inline bool message_is_http(struct sk_msg_md *msg)
{
	u8 *data, *end;

	if (msg->size < MESSAGE_MIN || !message_pull(msg, MESSAGE_MIN))
		return false;
	data = msg->data;
	end = msg->data_end;
	if (data + MESSAGE_MIN > end || data[0] < 'A' || data[0] > 'Z' || data[1] < 'A' || data[1] > 'Z')
		return false;
	/* The preface of HTTP/2 */
	return *(u32 *)data != ('P' | 'R' << 8 | 'I' << 16 | ' ' << 24);
}

/* Finds where the request line ends, and Host begins; 0 if that is not what there is. */
static __always_inline u32 message_line(struct sk_msg_md *msg, struct propagate_socket *s)
{
	u32 size = msg->size, len = size < LINE_MAX ? size : LINE_MAX;
	u8 *data, *end;
	u64 at;

	if (!message_is_http(msg) || !message_pull(msg, len))
		return 0;
	data = msg->data;
	end = msg->data_end;
	s->at = 0;
	for (u32 i = 0; i < LINE_MAX; i++) {
		if (data + i + 1 > end)
			return 0;
		if (data[i] == '\n') {
			s->at = i;
			break;
		}
	}
	at = *(volatile u64 *)&s->at;
	if (at < 10 || at >= LINE_MAX)
		return 0;
	at -= 10;
	barrier_var(at);
	at &= 1023; /* for the verifier */
	data += at;
	if (data + 16 > end)
		return 0;
	if (*(u64 *)data != WORD(' ', 'H', 'T', 'T', 'P', '/', '1', '.') ||
	    *(u64 *)(data + 8) != WORD('1', '\r', '\n', 'H', 'o', 's', 't', ':'))
		return 0;
	return at + 11;
}

/* Whether nothing that was sent before is still under way. If the kernel can take only a
 * part of a message, it reports that without counting what was added: where it stops
 * before the end of that, the app would send the beginning again. With nothing under way
 * there is room for the first segment, or for nothing at all. */
static __always_inline bool message_alone(struct bpf_sock *sk, struct propagate_socket *s)
{
	u32 queued = 1;

	/* Read back from the map it is a number, which may be added to. */
	*(volatile u64 *)&s->at = (u64)sk;
	bpf_probe_read_kernel(&queued, sizeof(queued),
			      (void *)(*(volatile u64 *)&s->at + propagate_queued));
	s->at = 0;
	return !queued;
}

/* Writes a tracestate as a header behind the other one; data has room for it. */
static __always_inline bool message_tracestate(u8 *data, u8 *end, const u8 *text, u32 len)
{
	if (data + STATE_NAME > end)
		return false;
	__builtin_memcpy(data, "tracestate: ", STATE_NAME);
	data += STATE_NAME;
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < TRACESTATE_MAX; i++) {
		if (data + 2 > end)
			return false;
		if (i >= len)
			break;
		*data++ = text[i];
	}
	if (data + 2 > end)
		return false;
	data[0] = '\r';
	data[1] = '\n';
	return true;
}

/* Takes the tracestate that goes with a message; returns its length, 0 if there is none. */
static __always_inline u32 message_tracestate_of(struct propagate_socket *s,
						 const struct propagate_tracestate *state)
{
	struct tracestate *kept;
	u64 len;

	kept = propagate_tracestate_find(state->goroutine, s->tgid, state->trace_low, &len);
	if (!kept || bpf_probe_read_kernel(s->tracestate, at_most(len, TRACESTATE_MAX), kept->text) ||
	    !propagate_tracestate_same(kept, state->trace_low, len))
		return 0;
	return len;
}

/* Puts the text at a place, and a tracestate of len bytes behind it; false: the message is
 * as it was, or must not be sent. */
static __always_inline int message_insert(struct sk_msg_md *msg, u32 at, const u8 *text,
					  const u8 *tracestate, u32 len)
{
	u32 added = PROPAGATE_LEN + (len ? STATE_NAME + len + 2 : 0);
	u32 size = msg->size + added;
	u8 *data, *end;

	if (bpf_msg_push_data(msg, at, added, 0)) {
		propagate_count(PROPAGATE_FAILED);
		return SK_PASS;
	}
	/* What was put in between is a piece of its own, which cannot be reached. */
	if (bpf_msg_pull_data(msg, 0, size <= PIECE_MAX ? size : at + added, 0))
		goto undo;
	data = msg->data;
	end = msg->data_end;
	data += at & 1023;
	if (data + PROPAGATE_LEN > end)
		goto undo;
	for (u32 i = 0; i < PROPAGATE_LEN; i++)
		data[i] = text[i];
	if (len && !message_tracestate(data + PROPAGATE_LEN, end, tracestate, len))
		goto undo;
	propagate_count(PROPAGATE_SENT);
	return SK_PASS;
undo:
	propagate_count(PROPAGATE_FAILED);
	/* It is taken out as a whole, which needs no memory. If that failed, the room would
	 * go out as it is, with whatever was in that memory. */
	return bpf_msg_pop_data(msg, at, added, 0) ? SK_DROP : SK_PASS;
}

/* A message of no request that is known. */
static __always_inline void propagate_unknown(struct sk_msg_md *msg, struct propagate_socket *s,
					      const struct conn_ends *ends, u64 key)
{
	u32 state = PROPAGATE_OTHER;

	if (s->state != PROPAGATE_FRESH)
		return;
	s->state = PROPAGATE_HTTP;
	if (message_is_http(msg))
		return;
	s->state = PROPAGATE_OTHER;
	bpf_map_update_elem(&propagate_conns, &key, &state, BPF_ANY);
	propagate_tell(ends, s->cookie, s->tgid, 1);
}

SEC("sk_msg")
int propagate_send(struct sk_msg_md *msg)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32, at, len;
	struct propagate_socket *s;
	struct propagate_note *note, copy;
	struct bpf_sock *sk = msg->sk;
	struct conn_ends ends;
	u64 key;

	s = sk ? bpf_sk_storage_get(&propagate_sockets, sk, NULL, 0) : NULL;
	if (!s || s->state == PROPAGATE_OTHER)
		return SK_PASS;
	ENDS_OF(msg, &ends);
	key = propagate_key(&ends, tgid);
	note = bpf_map_lookup_elem(&propagate_notes, &key);
	if (!note) {
		propagate_unknown(msg, s, &ends, key);
		return SK_PASS;
	}
	copy = *note;
	bpf_map_delete_elem(&propagate_notes, &key);
	if (copy.client.tgid != tgid || !address_equal(&copy.client.ends.local, &ends.local) ||
	    !address_equal(&copy.client.ends.remote, &ends.remote) || !join_client(&copy.client))
		return SK_PASS;
	s->state = PROPAGATE_HTTP;
	at = message_alone(sk, s) ? message_line(msg, s) : 0;
	if (!at) {
		propagate_count(PROPAGATE_UNFIT);
		return SK_PASS;
	}
	/* Together they are no longer than the longest line and a traceparent: see LINE_MAX. */
	len = at + STATE_NAME + TRACESTATE_MAX + 2 <= LINE_MAX ? message_tracestate_of(s, &copy.state) : 0;
	return message_insert(msg, at, copy.text, s->tracestate, len);
}
