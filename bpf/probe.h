/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * probe.h: who fired: binary, process, goroutine; and what is counted of that process.
 */
#ifndef AGENT_PROBE_H
#define AGENT_PROBE_H

#include "image.h"

/* The smaller of two, for use at once as the size of a read: Linux 5.10 forgets what it
 * knows of a number that has been on the stack in between. */
static __always_inline u64 at_most(u64 n, u64 max)
{
	barrier_var(n);
	return n > max ? max : n;
}

/* Reads an object of the app into SCRATCH_SIZE bytes. A page that the app has never touched
 * is not there, and is zero: an object that reaches into one is the page's before it, and
 * zeros. Any page ends at a multiple of 4096, and no object here is longer. False if it
 * cannot be read, and all is zero then: user space has checked the size. */
static __always_inline bool read_object(u8 *to, u64 size, u64 address)
{
	u64 first = 4096 - (address & 4095);

	if (size > SCRATCH_SIZE)
		return false;
	if (!bpf_probe_read_user(to, at_most(size, SCRATCH_SIZE), (void *)address))
		return true;
	__builtin_memset(to, 0, SCRATCH_SIZE);
	return first < size &&
	       !bpf_probe_read_user(to, at_most(first, SCRATCH_SIZE), (void *)address);
}

/* An attach cookie says which site of which binary fired:
 * binary (16 bits), flags (8 bits), address of the site as linked (40 bits). */
#define COOKIE_STACK_CHECK (1ULL << 40) /* the site is the branch of the stack check */
#define COOKIE_ADDRESS ((1ULL << 40) - 1)
#define COOKIE_VARIANT(cookie) (((cookie) >> 44) & 0xf)

struct probe {
	u64 bias;
	u64 goroutine;
	u32 tgid;
	u32 binary;
	u32 variant; /* tells sites of one program apart */
	u32 pad;
};

static const struct process no_process;

static __always_inline void count_in(struct process *process, enum counter c, u64 n)
{
	if (process && n)
		__sync_fetch_and_add(&process->counters[c], n);
}

/* A bias that no process has: it has called execve, and user space has not looked at what
 * it runs now. */
#define BIAS_STALE (1ULL << 63)

/* The cookie of the site that fired; false without cookies in a process that user space
 * does not know yet. What it runs, and where it was loaded, cannot be told. */
static __always_inline bool probe_cookie(struct pt_regs *ctx, u64 *cookie)
{
	struct site_key key = {};
	struct process *process;
	u64 *found;
	u32 tgid;

	if (!without_cookies) {
		*cookie = bpf_get_attach_cookie(ctx);
		return true;
	}
	tgid = bpf_get_current_pid_tgid() >> 32;
	process = bpf_map_lookup_elem(&processes, &tgid);
	if (!process)
		return false;
	key.address = GO_IP(ctx) - process->bias;
	key.binary = process->binary;
	found = bpf_map_lookup_elem(&sites, &key);
	if (!found)
		return false;
	*cookie = *found;
	return true;
}

static __always_inline bool probe_from(struct pt_regs *ctx, struct probe *p, bool begins)
{
	u32 nobody = 0;
	u64 cookie = 0;

	if (!probe_cookie(ctx, &cookie)) {
		if (begins)
			count_in(bpf_map_lookup_elem(&processes, &nobody),
				 COUNT_LOST_UNKNOWN_PROCESS, 1);
		return false;
	}
	if ((cookie & COOKIE_STACK_CHECK) && GO_STACK_CHECK_TAKEN(ctx))
		return false;
	p->tgid = bpf_get_current_pid_tgid() >> 32;
	p->binary = cookie >> 48;
	p->variant = COOKIE_VARIANT(cookie);
	p->bias = GO_IP(ctx) - (cookie & COOKIE_ADDRESS);
	p->goroutine = GO_G(ctx);
	p->pad = 0;
	return true;
}

/* The type of an interface's value, as linked; 0: a nil interface. */
static __always_inline u64 probe_type(const struct probe *p, u64 itab)
{
	return image_type(itab, p->bias, image_owner(p->tgid, p->binary));
}

/* False when the function has not begun: its stack grows, and it starts again. */
static __always_inline bool probe_enter(struct pt_regs *ctx, struct probe *p)
{
	return probe_from(ctx, p, false);
}

/* The same for programs that begin spans: what begins in an unknown process is counted. */
static __always_inline bool probe_begin(struct pt_regs *ctx, struct probe *p)
{
	return probe_from(ctx, p, true);
}

static __always_inline struct process *process_of(const struct probe *p)
{
	struct process *process = bpf_map_lookup_elem(&processes, &p->tgid);

	if (process)
		return process;
	/* A process of a probed binary that user space has not found yet. */
	bpf_map_update_elem(&processes, &p->tgid, &no_process, BPF_NOEXIST);
	process = bpf_map_lookup_elem(&processes, &p->tgid);
	if (process) {
		process->binary = p->binary;
		process->bias = p->bias;
	}
	return process;
}

/* For what happens rarely: looks the process up. */
static __always_inline void count(const struct probe *p, enum counter c, u64 n)
{
	if (n)
		count_in(process_of(p), c, n);
}

static __always_inline struct runtime_layout *runtime_layout(const struct probe *p)
{
	return bpf_map_lookup_elem(&runtime_layouts, &p->binary);
}

/* Makes p speak of the goroutine that brings the process down. The runtime's last acts
 * run on the system stack, on behalf of the goroutine that the thread was running. */
static __always_inline void probe_crashed(struct probe *p, const struct runtime_layout *rt)
{
	u64 m = rt->g_m ? go_word(p->goroutine + rt->g_m) : 0;
	u64 curg = m ? go_word(m + rt->m_curg) : 0;

	if (curg)
		p->goroutine = curg;
}

#endif
