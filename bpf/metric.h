/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * metric.h: duration histograms, aggregated here. Every operation is measured,
 * sampled or not, and costs no event.
 */
#ifndef AGENT_METRIC_H
#define AGENT_METRIC_H

#include "fold.h"
#include "span.h"

#define MS 1000000ULL

/* Boundaries of the semantic conventions. A value that equals one belongs below it. */
static const u64 http_bounds[] = { 5 * MS,   10 * MS,  25 * MS,	  50 * MS,   75 * MS,
				   100 * MS, 250 * MS, 500 * MS,  750 * MS,  1000 * MS,
				   2500 * MS, 5000 * MS, 7500 * MS, 10000 * MS };
static const u64 db_bounds[] = { 1 * MS,   5 * MS,   10 * MS,	50 * MS,   100 * MS,
				 500 * MS, 1000 * MS, 5000 * MS, 10000 * MS };

static const struct series no_series;

static __always_inline void histogram_add(struct histogram *h, u64 ns, const u64 *bounds, u32 n)
{
	u32 bucket = 0;

	for (u32 i = 0; i < n; i++)
		bucket += ns > bounds[i];
	__sync_fetch_and_add(&h->counts[bucket & (MAX_BUCKETS - 1)], 1);
	__sync_fetch_and_add(&h->sum_ns, ns);
}

/* A hash of the first len bytes at text, eight at a time; what follows len up to the
 * next multiple of eight must be zero. Never 0. */
static __always_inline u64 text_hash(const u8 *text, u64 len)
{
	u64 hash = len * 0x9e3779b97f4a7c15ULL;

	/* Else the compiler, which may know len's bound, drops the loop's own. Linux 5.10
	 * forgets len's where it is spilled, and then knows none. */
	barrier_var(len);
	for (u32 i = 0; i < SERIES_TEXT_MAX / 8; i++) {
		if (i * 8 >= len)
			break;
		hash = (hash ^ ((const u64 *)text)[i]) * 0x9fb21c651e98df25ULL;
		hash ^= hash >> 32;
	}
	return hash ? hash : 1;
}

/* Zeroes the bytes behind len up to the next multiple of eight. */
static __always_inline void text_pad(u8 *text, u64 len)
{
	if (len & 7)
		((u64 *)text)[(len / 8) & (SERIES_TEXT_MAX / 8 - 1)] &=
			(1ULL << ((len & 7) * 8)) - 1;
}

/* The series of a key; NULL: use the overflow histogram. text is at least
 * SERIES_TEXT_MAX bytes of map memory, of which text_len count. SQL may have its literals
 * in it, without end: where three quarters of the series are taken, the key becomes that
 * of all texts that differ in nothing else. Its text is the goroutine's scratch. unread says
 * where in the target the text is if it has not been read; 0: it has. */
static __always_inline struct series *series_of(const struct probe *p, struct process *process,
						u32 metric, bool sql, struct series_key *key,
						void *text, u64 text_len, u64 unread, u64 extra)
{
	struct series *s = bpf_map_lookup_elem(&all_series, key);
	struct settings *settings;
	u32 zero = 0, max;
	u64 n = text_len;

	if (s)
		return s;
	settings = bpf_map_lookup_elem(&agent_settings, &zero);
	if (!settings)
		return NULL;
	if (unread && bpf_probe_read_user(text, at_most(n, SERIES_TEXT_MAX), (void *)unread)) {
		count_in(process, COUNT_BAD_READ, 1);
		key->text = text_len = n = 0;
		s = bpf_map_lookup_elem(&all_series, key);
		if (s)
			return s;
	}
	max = settings->max_series;
	if (sql && text_len && process->series[metric] >= max - max / 4) {
		key->text = fold_hash(p->goroutine, p->tgid, n);
		s = bpf_map_lookup_elem(&all_series, key);
		if (s)
			return s;
	}
	if (process->series[metric] >= max)
		return NULL;
	if (!bpf_map_update_elem(&all_series, key, &no_series, BPF_NOEXIST))
		__sync_fetch_and_add(&process->series[metric], 1);
	s = bpf_map_lookup_elem(&all_series, key);
	if (!s)
		return NULL;
	/* Another CPU may have made it at the same time: both write the same. */
	s->binary = p->binary;
	s->id = random_id();
	s->extra = extra;
	if (n && !bpf_probe_read_kernel(s->text, at_most(n, SERIES_TEXT_MAX), text))
		s->text_len = text_len;
	return s;
}

/* Adds one duration to the histogram of its series and returns the series' id; 0 when it
 * went to the overflow. */
static __always_inline u64 measure_in(const struct probe *p, struct process *process, u32 metric,
				      bool sql, struct series_key *key, void *text, u64 text_len,
				      u64 unread, u64 extra, u64 ns, const u64 *bounds, u32 n)
{
	struct series *s = series_of(p, process, metric, sql, key, text, text_len, unread, extra);

	if (s) {
		histogram_add(&s->histogram, ns, bounds, n);
		return s->id;
	}
	count_in(process, COUNT_SERIES_FULL, 1);
	histogram_add(&process->overflow[metric], ns, bounds, n);
	return 0;
}

static __always_inline u64 measure(const struct probe *p, struct process *process, u32 metric,
				   struct series_key *key, void *text, u64 text_len, u64 unread,
				   u64 extra, u64 ns, const u64 *bounds, u32 n)
{
	return measure_in(p, process, metric, false, key, text, text_len, unread, extra, ns, bounds, n);
}

/* measure, of a text that is SQL. */
static __always_inline u64 measure_sql(const struct probe *p, struct process *process, u32 metric,
				       struct series_key *key, void *text, u64 text_len, u64 unread,
				       u64 extra, u64 ns, const u64 *bounds, u32 n)
{
	return measure_in(p, process, metric, true, key, text, text_len, unread, extra, ns, bounds, n);
}

#endif
