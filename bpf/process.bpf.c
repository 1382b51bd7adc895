//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Processes: tells user space at once when a process starts, so that it is found
 * before its first request. A raw tracepoint: it needs neither tracefs nor kprobes.
 */
#include "span.h"

/* Wakes user space up; the records of the ring are read at an interval instead. */
struct exec_notice {
	u64 at_ns;
	u32 tgid;
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 << 10);
} execs SEC(".maps");

SEC("raw_tracepoint/sched_process_exec")
int process_exec(void *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	u64 now = bpf_ktime_get_ns();
	struct exec_notice *notice;
	struct record_header *r;
	struct process *process;

	if (without_cookies) {
		process = bpf_map_lookup_elem(&processes, &tgid);
		if (process)
			process->bias = BIAS_STALE;
	}
	/* In the order of the records: what follows is of another program. */
	r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (r) {
		__builtin_memset(r, 0, sizeof(*r));
		r->kind = RECORD_EXEC;
		r->start_ns = now;
		r->tgid = tgid;
		bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	}
	notice = bpf_ringbuf_reserve(&execs, sizeof(*notice), 0);
	if (!notice)
		return 0; /* the periodic scan finds it */
	notice->at_ns = now;
	notice->tgid = tgid;
	notice->pad = 0;
	bpf_ringbuf_submit(notice, 0);
	return 0;
}
