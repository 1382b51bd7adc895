/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * maps.h: every map that more than one library uses, once. Sizes that depend on
 * the node are set by user space before loading.
 */
#ifndef AGENT_MAPS_H
#define AGENT_MAPS_H

#include "event.h"

#define MAX_BINARIES 1024
#define MAX_FRAMES 4
#define ROUTE_MAX 128
#define ROUTE_OF_ROUTER 1
#define SCRATCH_SIZE 512

/* Request headers that spans are made from. */
enum header {
	HEADER_TRACEPARENT,
	HEADER_TRACESTATE,
	HEADER_USER_AGENT,
	HEADER_FORWARDED_FOR,
	HEADERS,
};

struct header_values {
	struct go_string value[HEADERS]; /* first value of each */
	u64 seen; /* keys that were looked at */
	u64 bias; /* of the image that constant keys are in */
	u64 owner; /* image_owner; 0: none are remembered */
};

/* The head of a Go map; which word is what says the layout. */
struct map_header {
	u64 words[8];
};

/* An open span. */
struct frame {
	u64 start_ns;
	u64 span_id;
	u64 parent_id;
	u64 trace_id[2]; /* with SPAN_FOREIGN */
	u64 sp;
	u64 object[6]; /* of the library that began it */
	u32 kind; /* enum record_kind of the record to come */
	u32 flags; /* enum span_flags */
};

/* An open span that a program has made by hand with go.opentelemetry.io/auto/sdk. In the
 * program it has no ids; it is known by its address. */
struct auto_span {
	u64 trace_id[2];
	u64 owner; /* g that holds the local root; 0: nobody does */
	u64 root_id;
	u32 sampled;
	u32 random;
	u32 backed_off; /* enum unwanted */
	u32 remote_limited; /* enum remote_limited */
	struct frame frame;
};

struct auto_span_key {
	u64 span; /* its address */
	u32 tgid;
	u32 pad;
};

/* An ended child of a local root that is not sampled, remembered in case that the root
 * fails. Its record is rebuilt from this and, for the text, from its series: the body of
 * every record begins with the key of its series. */
#define MAX_STASHED 8
#define STASH_BODY 9 /* words */

struct stashed {
	u64 root_id; /* span_id of the local root */
	u64 start_ns;
	u64 end_ns;
	u64 span_id;
	u64 parent_id;
	u32 kind;
	u32 flags;
	u64 body[STASH_BODY];
};

/* What the limit of traces that callers began makes of a trace. */
enum remote_limited {
	REMOTE_FREE,
	REMOTE_REFUSED, /* not sampled because of it */
	REMOTE_PASSED, /* sampled, while others like it are not */
};

/* Why nothing of a trace is wanted, whatever its id says and however it ends. */
enum unwanted {
	WANTED,
	BACKED_OFF, /* spans are given up */
	DROPPED_BY_RULE, /* a rule names the request */
};

/* The open spans of one goroutine, innermost last. All belong to one trace. */
struct goroutine {
	u64 goid; /* a g struct is used again for other goroutines */
	u64 trace_id[2];
	u64 context; /* registered in contexts by the server span */
	u64 owner; /* g that holds the local root, 0: this one does */
	u64 root_id; /* span_id of the local root */
	u64 route_at; /* where in the target the route was; ROUTE_OF_ROUTER: not ServeMux's */
	u32 depth;
	u32 sampled;
	u32 tracestate; /* the incoming request had one */
	u32 route_len;
	u32 random; /* the trace id is random */
	u32 stash_missed; /* children for which there was no room */
	u32 backed_off; /* enum unwanted */
	u32 remote_limited; /* enum remote_limited */
	u32 route_depth; /* of the router's frame: how deep in the stack it is */
	/* Of the end of a request, and here because what is read back from a map is any number
	 * to the verifier, which else follows all that comes for each way to get there. */
	u32 route_method; /* enum http_method that the route is for; 0: not known */
	u64 route_hash; /* 0: of what is in route */
	u64 route_unread; /* where it is in the target, if not in route */
	u32 stash_claims[MAX_STASHED]; /* taken as in table.h: children may be elsewhere */
	struct frame frames[MAX_FRAMES];
	struct stashed stash[MAX_STASHED];
	struct header_values headers; /* found last */
	struct map_header map; /* of the header map */
	char route[ROUTE_MAX];
	/* Room to read into: a program may be preempted, so per-CPU memory will
	 * not do. Only the goroutine itself runs programs on its own entry. */
	u8 scratch[SCRATCH_SIZE];
};

/* A table from address and process to a number, in an array map; table.h says why it
 * is no hash map. */
#define TABLE_WAYS 8

struct table_entry {
	u64 address; /* of a g, or of a context's data word; 0: free */
	u32 tgid;
	u32 claims; /* 1: taken; more for a moment while several reach for it */
	u64 value;
};

/* As many whole cache lines as it takes: which bucket is next is as good as random, and most
 * have one entry at a time. */
struct table_bucket {
	u32 overflow; /* entries of keys that belong here, and are in their second bucket */
	u32 touched; /* says nothing: see table_touch */
	struct table_entry entries[TABLE_WAYS];
	u64 line[7];
};

_Static_assert(sizeof(struct table_bucket) == 256, "a bucket is a number of cache lines");

/* Buckets of each table, a power of two, and eight times as many goroutines. Set by
 * user space before loading. */
const volatile u32 table_buckets = 2048;

/* Set by user space before loading where the kernel has no attach cookies (before 5.15):
 * a program then finds in sites what its cookie would say. The verifier drops the branch
 * that is not taken, and with it the helper that such a kernel does not know. */
const volatile u32 without_cookies = 0;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} ring SEC(".maps");

/* The reader looks into the rings now and then: to wake it up costs the app an interrupt.
 * Only where a ring fills up so fast that it might be full by then, it is woken, and
 * after that not again before it has had time to look. */
#define RING_WAKE 8 /* of a ring so many parts, one of them waiting */
#define RING_WAKE_INTERVAL (2 * 1000000ULL) /* ns */

u64 ring_woken_ns;

/* The flags to submit a record with. */
static __always_inline u64 ring_wakeup(void *which)
{
	u64 now;

	if (bpf_ringbuf_query(which, BPF_RB_AVAIL_DATA) <
	    bpf_ringbuf_query(which, BPF_RB_RING_SIZE) / RING_WAKE)
		return BPF_RB_NO_WAKEUP;
	now = bpf_ktime_get_ns();
	if (now - ring_woken_ns < RING_WAKE_INTERVAL)
		return BPF_RB_NO_WAKEUP;
	ring_woken_ns = now;
	return BPF_RB_FORCE_WAKEUP;
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct settings);
} agent_settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, DROP_RULES);
	__type(key, u32);
	__type(value, struct drop_rule);
} drop_rules SEC(".maps");

/* Added by the first probe that fires in a process, without cookies by user space when it
 * finds the process; deleted by user space when the process is gone. Process 0 stands for
 * those that are not known. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, u32);
	__type(value, struct process);
} processes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC); /* only user space writes, without cookies */
	__type(key, struct site_key);
	__type(value, u64); /* the cookie */
} sites SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct runtime_layout);
} runtime_layouts SEC(".maps");

/* Goroutines with open spans: address of the g -> index of goroutines. Mapped by user
 * space, which frees what a dead process left. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct table_bucket);
} goroutine_table SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048 * TABLE_WAYS);
	__type(key, u32);
	__type(value, struct goroutine);
} goroutines SEC(".maps");

/* context.Context of a server span -> address of the g that holds the span. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2048);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct table_bucket);
} context_table SEC(".maps");

struct goroutine_key {
	u64 address; /* of the g */
	u32 tgid;
	u32 pad;
};

/* The tracestate that a request has brought along, for the calls made within it. What is
 * longer is not passed on, as W3C allows. Kept only where calls are told of their trace. */
#define TRACESTATE_MAX 254

struct tracestate {
	u64 trace_low; /* of the trace that it belongs to: the entry outlives its request */
	u32 len;
	u8 text[TRACESTATE_MAX + 2];
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1); /* more where they are kept */
	__type(key, struct goroutine_key);
	__type(value, struct tracestate);
} tracestates SEC(".maps");

/* Set by user space before loading. */
const volatile u32 tracestates_kept = 0;

/* Which open span a goroutine was started below. */
struct lineage {
	u64 goid;
	u64 owner; /* address of the g that holds the span */
	u64 span_id;
};

/* The span that a panic has ended. The server logs the panic after that, from the same
 * goroutine. LRU: an entry that is evicted only leaves a log record without its span. */
struct panicked {
	u64 goid;
	u64 trace_id[2];
	u64 span_id;
	u32 trace_flags;
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, struct goroutine_key);
	__type(value, struct panicked);
} panics SEC(".maps");

struct grpc_stream_key {
	u64 stream; /* address of the clientStream */
	u32 tgid;
	u32 pad;
};

/* A stream of gRPC's client that is open. */
struct grpc_stream {
	u64 trace_id[2];
	u64 owner; /* g that holds the local root */
	u64 root_id;
	u32 sampled;
	u32 random;
	u32 backed_off;
	u32 is_stream; /* not on the goroutine any more */
	struct frame frame;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct grpc_stream_key);
	__type(value, struct grpc_stream);
} grpc_streams SEC(".maps");

/* One that never ends is freed by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct auto_span_key);
	__type(value, struct auto_span);
} auto_spans SEC(".maps");

/* LRU: an entry that is evicted only leaves a span without its parent. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, struct goroutine_key);
	__type(value, struct lineage);
} lineages SEC(".maps");

/* One for all CPUs, updated atomically: a copy for each of 128 CPUs would be 128
 * times the memory for histograms of which most are updated now and then. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct series_key);
	__type(value, struct series);
} all_series SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC); /* only user space writes */
	__type(key, struct type_key);
	__type(value, struct type_info);
} types SEC(".maps");

#endif
