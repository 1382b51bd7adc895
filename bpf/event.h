/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * event.h: THE contract between the kernel and Go. Every struct that both sides
 * see is here or in the file of its library; the Go side is generated from it
 * (bpf2go -type), so the layout exists once. Padding is explicit: -Wpadded.
 */
#ifndef AGENT_EVENT_H
#define AGENT_EVENT_H

#include "goabi.h"

/* What a ring record is. A library adds its own kinds in its own file, in its own
 * block of sixteen: RECORD_LIBRARY(n) + i. */
enum record_kind {
	RECORD_NONE,
	RECORD_EXEC, /* a process called execve; header only */
};

#define RECORD_LIBRARY(n) (16 * (n))

enum span_flags {
	SPAN_REMOTE_PARENT = 1 << 0, /* parent_id came over the wire */
	SPAN_ABORTED = 1 << 1, /* ended without reaching its regular end */
	SPAN_PANIC = 1 << 2,
	SPAN_GOEXIT = 1 << 3,
	SPAN_HIJACKED = 1 << 4,
	SPAN_TLS = 1 << 5,
	SPAN_TRUNCATED = 1 << 6, /* a text was longer than its bound */
	SPAN_KEPT_ERROR = 1 << 7, /* not sampled, kept because its local root failed */
	SPAN_KEPT_SLOW = 1 << 8, /* likewise, because that took long */
	SPAN_KEPT_LIMITED = 1 << 9, /* others like it were not kept, for there were too many */
	SPAN_RANDOM = 1 << 10, /* the trace id is random: the W3C flag */
	SPAN_CRASHED = 1 << 11, /* the process died of what its goroutine did */
	SPAN_REMOTE_LIMITED = 1 << 12, /* other traces of callers were not sampled, for there were too many */
	SPAN_CUT_OFF = 1 << 13, /* open for too long: as it stood then */
	SPAN_FOREIGN = 1 << 14, /* of the trace that its frame names, not the goroutine's */
	SPAN_FOREIGN_SAMPLED = 1 << 15,
	SPAN_STOOD_DOWN = 1 << 16, /* the program's own SDK has a span of the same */
	SPAN_HTTP2_X = 1 << 17, /* a call that golang.org/x/net/http2 was asked for itself */
};

/* Begins every ring record. Times are CLOCK_MONOTONIC in ns. Ids are bytes in the
 * order in which they stand on the wire. */
struct record_header {
	u32 kind; /* enum record_kind */
	u32 tgid;
	u32 flags; /* enum span_flags */
	u32 binary; /* index of the binary whose probe fired */
	u64 start_ns;
	u64 end_ns;
	u8 trace_id[16];
	u8 span_id[8];
	u8 parent_id[8]; /* zero: root */
	u64 series; /* the series that measured it, for exemplars; 0: none */
};

/* Where each span went, by process; user space adds its own reasons. What fired is
 * the sum of these and of what is still open, so beginning a span counts nothing. */
enum counter {
	COUNT_SAMPLED_OUT,
	COUNT_EMITTED, /* records given to the ring */
	COUNT_LOST_RING_FULL,
	COUNT_LOST_GOROUTINES_FULL, /* more open spans than the map holds */
	COUNT_LOST_STACK_FULL, /* spans nested deeper than a goroutine's stack of spans */
	COUNT_LOST_UNFINISHED, /* begun, but its end was never seen */
	COUNT_LOST_EXITED, /* open when their process ended; user space counts these */
	COUNT_LOST_STASH_FULL, /* children of a kept trace, more than are remembered */
	COUNT_LOST_BACKED_OFF, /* spans were given up: the probes cost the app too much */
	COUNT_STOOD_DOWN, /* the program's own SDK has a span of the same */
	COUNT_LOST_MAX_DURATION, /* open for too long: user space counts */
	COUNT_LOST_UNKNOWN_PROCESS, /* begun before user space knew the process: Linux before 5.15 */
	COUNT_DROPPED_BY_RULE, /* no spans of this request are wanted; it is measured */
	COUNT_REMOTE_LIMITED, /* not sampled though its caller's trace id says so: too many such */
	COUNT_BAD_READ, /* the span was kept, a text of it could not be read */
	COUNT_CONTEXTS_FULL, /* children on other goroutines cannot find this parent */
	COUNT_LOGS_DROPPED, /* writes to standard error, for any of the reasons that follow */
	COUNT_LOGS_RING_FULL,
	COUNT_LOGS_RATE_LIMITED,
	COUNT_SERIES_FULL, /* measured in the overflow series: too many series */
	COUNTERS,
};

/* A histogram is cumulative and never reset here: user space takes differences. Its
 * count is the sum of its buckets, so a torn read heals itself. */
#define MAX_BUCKETS 16

struct histogram {
	u64 counts[MAX_BUCKETS];
	u64 sum_ns;
};

/* What tells one series from another. Texts are hashed by content. */
struct series_key {
	u32 tgid;
	u32 kind; /* enum record_kind of the spans that it measures */
	u64 text; /* hash of the route or the query; 0: none */
	u64 error_type; /* as linked; 0: none */
	u64 detail[2]; /* of the library */
};

#define SERIES_TEXT_MAX 512

struct series {
	struct histogram histogram;
	u64 id; /* names it in records */
	u64 extra; /* of the library; follows from the key */
	u32 binary;
	u32 text_len; /* before it was cut */
	char text[SERIES_TEXT_MAX];
};

/* Histograms of what has no series of its own, one for each kind of span. */
#define METRICS 5

/* What user space tells the programs about one process. */
struct process {
	u64 bias; /* where it was loaded, minus where it was linked */
	u32 binary;
	u32 sdk_server; /* its own SDK has spans of requests */
	u32 series[METRICS]; /* how many there are; METRICS is odd */
	u32 pad;
	u64 log_next_ns; /* of the limit of log lines: when the next one is due */
	u64 panicked; /* handlers whose panic the server has recovered */
	u64 keep_next_ns; /* of the limit of kept traces: when the next one is due */
	u64 keep_refused_ns; /* when one was refused last */
	u64 remote_next_ns; /* the same of the limit of sampled traces that callers began */
	u64 remote_refused_ns;
	u64 counters[COUNTERS];
	struct histogram overflow[METRICS];
};

enum sampler {
	SAMPLER_RATIO, /* by the trace id alone */
	SAMPLER_PARENT_RATIO, /* as a remote parent has decided, else by the trace id */
	SAMPLER_PROBABILITY, /* OpenTelemetry's consistent sampling */
};

/* Agent-wide settings, changed while programs run. */
struct settings {
	u64 sample_threshold; /* of the sampler's number, see sample() */
	u32 sample_all; /* rate 1.0 */
	u32 sampler; /* enum sampler */
	u64 keep_slower_ns; /* keep traces whose local root took longer; 0: no */
	u64 keep_interval_ns; /* between kept traces of a process, on average */
	u64 keep_burst_ns; /* how far ahead of the average they may come */
	u64 log_interval_ns; /* between lines of a process, on average; 0: no limit */
	u64 log_burst_ns; /* how far ahead of the average they may come */
	u64 remote_interval_ns; /* between sampled traces of a process that callers began */
	u64 remote_burst_ns; /* how far ahead of the average they may come */
	u32 keep_errors; /* keep traces whose local root failed */
	u32 max_series; /* of one metric and process */
	u32 drop_rules; /* how many there are */
	u32 pad;
	/* Offsets in structs of the kernel, from its BTF; 0: unknown */
	u32 task_nsproxy;
	u32 nsproxy_net;
};

/* A request whose spans are not wanted: the first bytes of its path and of its user
 * agent, a bit of the masks for each that counts. */
#define DROP_RULES 16
#define DROP_TEXT 64

struct drop_rule {
	u64 path[DROP_TEXT / 8];
	u64 path_mask[DROP_TEXT / 8];
	u64 agent[DROP_TEXT / 8];
	u64 agent_mask[DROP_TEXT / 8];
};

/* How to get from a type to what it leads to: for a context its parent, for an
 * error its code or cause, for a connection its addresses. */
enum type_role {
	TYPE_NONE,
	TYPE_CONTEXT_INTERFACE, /* offset: a context.Context; next: a value, see TYPE_SDK_SPAN */
	TYPE_CONTEXT_POINTER, /* offset: pointer to a struct of type next */
	TYPE_CONTEXT_VALUE, /* offset: embedded struct of type next */
	TYPE_CONTEXT_INDIRECT, /* offset: pointer to a struct that holds a context.Context at next */
	TYPE_ERROR_CODE_STRING, /* offset: a string */
	TYPE_ERROR_CODE_U16, /* offset: a number */
	TYPE_ERROR_CODE_I32,
	TYPE_ERROR_INTERFACE, /* offset: the error that it wraps */
	TYPE_ERROR_NUMBER, /* offset: a word, such as a syscall.Errno */
	TYPE_ERROR_TEXT, /* offset: a string: errors.New */
	TYPE_CONN_DESCRIPTOR, /* offset: pointer to the net.netFD of a TCP connection */
	TYPE_CONN_INTERFACE, /* offset: a net.Conn */
	TYPE_CONN_POINTER, /* offset: pointer to a struct of type next */
	TYPE_CONN_VALUE, /* offset: embedded struct of type next */
	TYPE_SDK_SPAN, /* offset: its trace.SpanContext; next: its kind, 0: it has none */
	TYPE_AUTO_SPAN, /* of go.opentelemetry.io/auto/sdk: it has no ids but ours */
};

struct type_key {
	u64 type; /* address of the descriptor as linked */
	u32 binary;
	u32 pad;
};

/* What an attach cookie says, where the kernel has none: the site is looked up. */
struct site_key {
	u64 address; /* as linked */
	u32 binary;
	u32 pad;
};

struct type_info {
	u32 role; /* enum type_role */
	u32 offset;
	u64 next;
};

/* Offsets in the runtime's own structs, for each binary. */
struct runtime_layout {
	u32 g_goid;
	u32 g_m; /* 0: unknown, goroutines are not followed */
	u32 m_curg;
	u32 g_panic; /* 0: unknown */
	u32 panic_goexit;
	u32 panic_arg;
	/* http.Header, a map[string][]string; group_size 0: not readable */
	u32 swiss_map; /* 1: internal/runtime/maps.Map, 0: runtime.hmap */
	u32 map_dir_ptr; /* hmap: buckets */
	u32 map_dir_len; /* hmap: B */
	u32 table_groups; /* groups.data; lengthMask follows at +8 */
	u32 group_size; /* of a group or bucket of eight slots, at most SCRATCH_SIZE */
	u32 group_control; /* one byte a slot */
	u32 group_keys;
	u32 group_key_stride;
	u32 group_elems;
	u32 group_elem_stride;
	u32 group_overflow; /* hmap: the next bucket */
	u32 netfd_addresses; /* of net.netFD: laddr, followed by raddr; 0: not readable */
	u32 no_spans; /* traces that begin are measured only: the agent backs off */
	u32 sdk_spans; /* contexts may hold spans of OpenTelemetry's SDK */
	u64 constants; /* where the image, as linked, is not written to */
	u64 constants_size;
};

#endif
