/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * sampling.h: which traces are recorded: by their id when they begin, and by how their
 * local root has ended.
 */
#ifndef AGENT_SAMPLING_H
#define AGENT_SAMPLING_H

#include "context.h"

static __always_inline u64 random_u64(void)
{
	u64 high = bpf_get_prandom_u32();

	return (high << 32) | bpf_get_prandom_u32();
}

static __always_inline u64 random_id(void)
{
	u64 id = random_u64();

	return id ? id : 1; /* all zero is not a valid id */
}

static __always_inline struct settings *settings_get(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&agent_settings, &zero);
}

/* An id that follows from a random one and from what is not the same twice: calls for
 * random numbers are a good part of what a program costs. */
static __always_inline u64 derived_id(u64 random, u64 with)
{
	u64 id = (random ^ with * 0xd6e8feb86659fd93ULL) * 0x9e3779b97f4a7c15ULL;

	id = (id ^ id >> 29) * 0xbf58476d1ce4e5b9ULL;
	id ^= id >> 32;
	return id ? id : 1;
}

#define TRACE_FLAG_SAMPLED 1
#define TRACE_FLAG_RANDOM 2

/* Decides where a trace starts here. SAMPLER_RATIO is OpenTelemetry's TraceIdRatioBased
 * as the Python SDK has it: keep what is below the threshold. SAMPLER_PROBABILITY keeps
 * what is at or above it, of the low 56 bits: the other end of the range. */
static __always_inline bool sample(u64 trace_id_low_be, bool remote, u32 trace_flags)
{
	struct settings *s = settings_get();
	u64 number = __builtin_bswap64(trace_id_low_be);

	if (!s)
		return false;
	if (s->sampler == SAMPLER_PARENT_RATIO && remote)
		return trace_flags & TRACE_FLAG_SAMPLED;
	if (s->sample_all)
		return true;
	if (s->sampler == SAMPLER_PROBABILITY)
		return (number & ((1ULL << 56) - 1)) >= s->sample_threshold;
	return number < s->sample_threshold;
}

/* Takes the decision for a trace whose id is known. While spans are given up none is
 * sampled, so what is exported before and after consists of whole traces. */
static __always_inline void trace_decide(struct goroutine *g, const struct runtime_layout *rt,
					 bool remote, u32 trace_flags)
{
	g->backed_off = rt->no_spans ? BACKED_OFF : WANTED;
	g->sampled = !g->backed_off && sample(g->trace_id[1], remote, trace_flags);
}

static __always_inline void trace_new(struct goroutine *g, const struct runtime_layout *rt)
{
	g->trace_id[1] = random_id();
	/* What says whether it is sampled, and what W3C calls random, is the low half. */
	g->trace_id[0] = derived_id(g->trace_id[1], bpf_get_prandom_u32());
	g->random = 1;
	trace_decide(g, rt, false, 0);
}

/* For 10 s after a limit has refused a trace nobody can count on all being there. */
static __always_inline bool refused_lately(u64 refused, u64 now)
{
	return refused && now - refused < 10000000000ULL;
}

/* A limit on average and burst: a schedule of when the next one is due. CPUs that meet
 * here may each pass one too many. It is added to, not set, so that one that is held up
 * between reading and writing does not undo what the others took; only when the schedule
 * has fallen behind is it set, and then there is little to undo. */
static __always_inline bool schedule_take(u64 *next, u64 now, u64 interval, u64 burst)
{
	u64 due = *next;

	if (due > now + burst)
		return false;
	if (due < now)
		*next = now;
	__sync_fetch_and_add(next, interval);
	return true;
}

/* Whoever can reach a service can send it trace ids that are always sampled, or flags
 * that say so: a process samples only so many traces a second that callers began. Where
 * all are sampled anyway, nothing is limited. Called after trace_decide. */
static __always_inline void trace_limit_remote(const struct probe *p, struct goroutine *g)
{
	struct settings *s = settings_get();
	struct process *process;
	u64 now;

	if (!g->sampled || !s || s->sample_all)
		return;
	process = process_of(p);
	if (!process)
		return;
	now = bpf_ktime_get_ns();
	if (!schedule_take(&process->remote_next_ns, now, s->remote_interval_ns,
			   s->remote_burst_ns)) {
		process->remote_refused_ns = now;
		g->remote_limited = REMOTE_REFUSED;
		g->sampled = 0;
	} else if (refused_lately(process->remote_refused_ns, now)) {
		g->remote_limited = REMOTE_PASSED;
	}
}

/* The flags that all spans of a trace have. */
static __always_inline u32 trace_flags(const struct goroutine *g)
{
	return (g->random ? SPAN_RANDOM : 0) |
	       (g->remote_limited == REMOTE_PASSED ? SPAN_REMOTE_LIMITED : 0);
}

static __always_inline u32 keep_limited(const struct process *process, u64 now)
{
	return refused_lately(process->keep_refused_ns, now) ? SPAN_KEPT_LIMITED : 0;
}

/* Whether a trace that is not sampled is kept all the same, by how its local root
 * ended: the flag that says why, or 0. */
static __always_inline u32 keep_reason(struct process *process, const struct goroutine *g,
				       bool failed, u64 ns)
{
	struct settings *s = settings_get();
	u64 now;
	u32 flag = 0;

	if (!s || g->backed_off)
		return 0;
	if (failed && s->keep_errors)
		flag = SPAN_KEPT_ERROR;
	else if (s->keep_slower_ns && ns > s->keep_slower_ns)
		flag = SPAN_KEPT_SLOW;
	if (!flag)
		return 0;
	now = bpf_ktime_get_ns();
	if (!schedule_take(&process->keep_next_ns, now, s->keep_interval_ns, s->keep_burst_ns)) {
		process->keep_refused_ns = now;
		return 0;
	}
	return flag | keep_limited(process, now);
}

static __always_inline bool keep_possible(void)
{
	struct settings *s = settings_get();

	return s && (s->keep_errors || s->keep_slower_ns);
}

#endif
