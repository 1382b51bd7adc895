//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * What a program writes to file descriptor 2, with the span that is current there.
 *
 *   (*os.File).Write     where package log, log/slog and every logger end
 *   syscall.Write        where it is called by others than the standard library
 *   runtime.gwrite       print, println, panics and fatal errors
 *
 * A line that a logger has just made is in memory; a literal of the program may not be
 * yet, and this program cannot fault it in: user space reads that from the executable.
 */
#include "span.h"

enum stderr_kind {
	RECORD_STDERR = RECORD_LIBRARY(14),
};

/* Variants of stderr_write. */
enum stderr_site {
	STDERR_FILE, /* (*os.File).Write(f, b []byte) */
	STDERR_SYSCALL, /* syscall.Write(fd int, b []byte), where it is called */
	STDERR_RUNTIME, /* runtime.gwrite(b []byte) */
};

struct stderr_layout {
	u32 file; /* in os.File: pointer to what follows */
	u32 sysfd; /* in os.file */
	u32 g_writebuf; /* runtime.Stack writes here and not to stderr */
	u32 g_m;
	u32 m_dying;
	u32 m_curg;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct stderr_layout);
} stderr_layouts SEC(".maps");

/* A ring of its own: whoever logs too much must not cost anybody's spans. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} log_ring SEC(".maps");

/* Processes that ask to be left alone, by tgid. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC); /* only user space writes */
	__type(key, u32);
	__type(value, u32);
} without_logs SEC(".maps");

/* A part of a write. The header's span is the one that was current, zero if none; its
 * end is not used. */
struct stderr_record {
	struct record_header header;
	u64 writer; /* goid; addresses are used again too soon. 0: no goroutine */
	u64 unread; /* address, as linked, of text that could not be read; 0: it follows */
	u64 dropped; /* writes of the process that were dropped so far, all told */
	u32 len; /* of the text that follows, or is unread */
	u32 missing; /* bytes of the write behind it that are not captured */
	u32 trace_flags; /* W3C */
	u32 pad;
};

/* As much of one write as is captured: zap's buffer, the largest that is common. */
#define STDERR_PART 65536
#define STDERR_PARTS 4

struct stderr_small {
	struct stderr_record record;
	char text[256];
};

struct stderr_large {
	struct stderr_record record;
	char text[1024];
};

struct stderr_page_large {
	struct stderr_record record;
	char text[8192];
};

struct stderr_part_large {
	struct stderr_record record;
	char text[STDERR_PART];
};

/* A write on its way into the ring. */
struct stderr_write_ending {
	struct probe *probe;
	struct process *process;
	u64 now_ns;
	u64 trace_id[2];
	u64 span_id;
	u64 writer; /* address of the g */
	u64 goid;
	u64 ptr;
	u64 len;
	u32 trace_flags;
	u32 pad;
};

/* Copies len bytes from a place in the write, max at most: the caller knows that they fit,
 * the verifier of Linux 5.10 does not know it of the copy that it has here. */
static __always_inline void stderr_fill(struct stderr_record *r, char *text, u64 max, u64 at,
					u64 len, const struct stderr_write_ending *w)
{
	u64 from = w->ptr + at;

	barrier_var(len);
	if (len > max)
		len = max;
	barrier_var(len);

	__builtin_memset(&r->header, 0, sizeof(r->header));
	r->header.kind = RECORD_STDERR;
	r->header.tgid = w->probe->tgid;
	r->header.binary = w->probe->binary;
	r->header.start_ns = w->now_ns;
	__builtin_memcpy(r->header.trace_id, w->trace_id, 16);
	__builtin_memcpy(r->header.span_id, &w->span_id, 8);
	r->writer = w->goid;
	r->unread = 0;
	r->dropped = w->process ? w->process->counters[COUNT_LOGS_DROPPED] : 0;
	r->len = len;
	r->missing = 0;
	r->trace_flags = w->trace_flags;
	r->pad = 0;
	if (bpf_probe_read_user(text, len, (void *)from))
		r->unread = from - w->probe->bias;
}

static __always_inline void stderr_lost(struct stderr_write_ending *w)
{
	count_in(w->process, COUNT_LOGS_DROPPED, 1);
	count_in(w->process, COUNT_LOGS_RING_FULL, 1);
}

/* Emits a part of a long write; false: there was no room. */
static __always_inline bool stderr_part(struct stderr_write_ending *w, u64 at)
{
	struct stderr_part_large *r = bpf_ringbuf_reserve(&log_ring, sizeof(*r), 0);
	u64 rest = w->len - at;

	if (!r)
		return false;
	stderr_fill(&r->record, r->text, sizeof(r->text), at, rest, w);
	if (at == (u64)STDERR_PART * (STDERR_PARTS - 1) && rest > STDERR_PART)
		r->record.missing = rest - STDERR_PART;
	bpf_ringbuf_submit(r, ring_wakeup(&log_ring));
	return true;
}

static __always_inline void stderr_emit(struct stderr_write_ending *w)
{
	struct stderr_small *small;
	struct stderr_large *large;
	struct stderr_page_large *page;
	u64 len = w->len;

	if (len <= sizeof(small->text)) {
		small = bpf_ringbuf_reserve(&log_ring, sizeof(*small), 0);
		if (!small)
			return stderr_lost(w);
		stderr_fill(&small->record, small->text, sizeof(small->text), 0, len, w);
		bpf_ringbuf_submit(small, ring_wakeup(&log_ring));
		return;
	}
	if (len <= sizeof(large->text)) {
		large = bpf_ringbuf_reserve(&log_ring, sizeof(*large), 0);
		if (!large)
			return stderr_lost(w);
		stderr_fill(&large->record, large->text, sizeof(large->text), 0, len, w);
		bpf_ringbuf_submit(large, ring_wakeup(&log_ring));
		return;
	}
	if (len <= sizeof(page->text)) {
		page = bpf_ringbuf_reserve(&log_ring, sizeof(*page), 0);
		if (!page)
			return stderr_lost(w);
		stderr_fill(&page->record, page->text, sizeof(page->text), 0, len, w);
		bpf_ringbuf_submit(page, ring_wakeup(&log_ring));
		return;
	}
#pragma unroll
	for (u64 i = 0; i < STDERR_PARTS; i++)
		if (len > i * STDERR_PART && !stderr_part(w, i * STDERR_PART))
			return stderr_lost(w);
}

/* The goroutine that writes. The runtime's last words come from the system stack, on
 * behalf of the goroutine that the thread was running. */
static __always_inline u64 stderr_writer(const struct probe *p, const struct stderr_layout *l)
{
	u64 m, curg;

	if (p->variant != STDERR_RUNTIME || !l->m_curg)
		return p->goroutine;
	m = go_word(p->goroutine + l->g_m);
	curg = m ? go_word(m + l->m_curg) : 0;
	return curg ? curg : p->goroutine;
}

static __always_inline void stderr_correlate(struct stderr_write_ending *w,
					     const struct runtime_layout *rt)
{
	struct goroutine *g = goroutine_find(w->probe, rt, w->writer);
	struct panicked *panicked;
	struct frame *f;

	if (g) {
		f = span_innermost(g);
		if (!f)
			return;
		w->span_id = f->span_id;
		w->trace_id[0] = g->trace_id[0];
		w->trace_id[1] = g->trace_id[1];
		w->trace_flags = g->sampled | (g->random ? TRACE_FLAG_RANDOM : 0);
		return;
	}
	panicked = panicked_find(w->probe, w->process, rt, w->writer);
	if (!panicked)
		return;
	w->span_id = panicked->span_id;
	w->trace_id[0] = panicked->trace_id[0];
	w->trace_id[1] = panicked->trace_id[1];
	w->trace_flags = panicked->trace_flags;
}

/* Whether a line may pass the limit. Lines are told by their end: what comes in pieces
 * is not torn, and the runtime's last words end a process but once. */
static __always_inline bool stderr_allowed(struct stderr_write_ending *w, u32 variant)
{
	struct settings *s = settings_get();
	struct process *process = w->process;
	u64 due;

	if (!s || !process || !s->log_interval_ns || variant == STDERR_RUNTIME)
		return true;
	due = process->log_next_ns;
	if (due <= w->now_ns + s->log_burst_ns) {
		process->log_next_ns = (due > w->now_ns ? due : w->now_ns) + s->log_interval_ns;
		return true;
	}
	if (go_byte(w->ptr + w->len - 1) != '\n')
		return true;
	count_in(process, COUNT_LOGS_DROPPED, 1);
	count_in(process, COUNT_LOGS_RATE_LIMITED, 1);
	return false;
}

/* Takes the arguments; false if this is no write to standard error. */
static __always_inline bool stderr_arguments(struct pt_regs *ctx, const struct probe *p,
					     const struct stderr_layout *l,
					     struct stderr_write_ending *w)
{
	u64 words[4], file, m;

	go_results(ctx, words);
	if (p->variant == STDERR_RUNTIME) {
		w->ptr = words[0];
		w->len = words[1];
		if (!go_word(p->goroutine + l->g_writebuf))
			return true;
		m = go_word(p->goroutine + l->g_m);
		return m && (u32)go_word(m + l->m_dying);
	}
	w->ptr = words[1];
	w->len = words[2];
	if (p->variant == STDERR_SYSCALL)
		return words[0] == 2;
	file = words[0] ? go_word(words[0] + l->file) : 0;
	return file && go_word(file + l->sysfd) == 2;
}

SEC("uprobe")
int stderr_write(struct pt_regs *ctx)
{
	struct stderr_write_ending w = {};
	struct runtime_layout *rt;
	struct stderr_layout *l;
	struct probe p;

	if (!probe_enter(ctx, &p))
		return 0;
	l = bpf_map_lookup_elem(&stderr_layouts, &p.binary);
	rt = runtime_layout(&p);
	if (!l || !rt || !stderr_arguments(ctx, &p, l, &w) || !w.len)
		return 0;
	w.probe = &p;
	w.process = process_of(&p);
	if (bpf_map_lookup_elem(&without_logs, &p.tgid))
		return 0;
	w.now_ns = bpf_ktime_get_ns();
	if (!stderr_allowed(&w, p.variant))
		return 0;
	w.writer = stderr_writer(&p, l);
	w.goid = go_word(w.writer + rt->g_goid);
	stderr_correlate(&w, rt);
	stderr_emit(&w);
	return 0;
}
