//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * Processes: tells user space at once when a process starts, so that it is found
 * before its first request. A raw tracepoint: it needs neither tracefs nor kprobes.
 */
#include "span.h"

SEC("raw_tracepoint/sched_process_exec")
int process_exec(void *ctx)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct record_header *r;
	struct process *process;

	if (without_cookies) {
		process = bpf_map_lookup_elem(&processes, &tgid);
		if (process)
			process->bias = BIAS_STALE;
	}
	r = bpf_ringbuf_reserve(&ring, sizeof(*r), 0);
	if (!r)
		return 0; /* the periodic scan finds it */
	__builtin_memset(r, 0, sizeof(*r));
	r->kind = RECORD_EXEC;
	r->start_ns = bpf_ktime_get_ns();
	r->tgid = tgid;
	bpf_ringbuf_submit(r, BPF_RB_NO_WAKEUP);
	return 0;
}
