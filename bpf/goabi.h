/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * goabi.h: how Go code looks from a uprobe: registers of ABIInternal, strings,
 * interfaces, and the goroutine.
 *
 * ABIInternal passes arguments and results in the same registers and in the same
 * order (go.dev/s/regabi; amd64 since Go 1.17, arm64 since 1.18, so always here).
 */
#ifndef AGENT_GOABI_H
#define AGENT_GOABI_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;

/* The registers as the kernel hands them to a uprobe program. These layouts are
 * kernel ABI and spelled out so that one machine can build for both. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	u64 r15, r14, r13, r12, bp, bx;
	u64 r11, r10, r9, r8, ax, cx, dx, si, di;
	u64 orig_ax, ip, cs, flags, sp, ss;
};

#define GO_G(ctx) ((ctx)->r14)
#define GO_IP(ctx) ((ctx)->ip)
#define GO_SP(ctx) ((ctx)->sp)
/* Where the prologue has put the frame pointer, BP holds the address of the saved BP,
 * behind which come the return address and the argument registers' home slots. */
#define GO_HOME_SLOT(ctx, n) ((ctx)->bp + 16 + 8 * (n))
#define GO_REG0(ctx) ((ctx)->ax)
#define GO_REG1(ctx) ((ctx)->bx)
#define GO_REG2(ctx) ((ctx)->cx)
#define GO_REG3(ctx) ((ctx)->di)
#define GO_REG4(ctx) ((ctx)->si)
#define GO_REG5(ctx) ((ctx)->r8)

/* JBE, the branch of the stack check, is taken when CF or ZF is set. */
#define X86_FLAG_CF (1 << 0)
#define X86_FLAG_ZF (1 << 6)
#define GO_STACK_CHECK_TAKEN(ctx) ((ctx)->flags & (X86_FLAG_CF | X86_FLAG_ZF))

#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	u64 regs[31];
	u64 sp;
	u64 pc;
	u64 pstate;
};

#define GO_G(ctx) ((ctx)->regs[28])
#define GO_IP(ctx) ((ctx)->pc)
#define GO_SP(ctx) ((ctx)->sp)
/* R29 holds the address of the caller's R29, which is one word below its stack; there
 * the caller's own return address comes first, and then the home slots. */
#define GO_HOME_SLOT(ctx, n) (go_word((ctx)->regs[29]) + 16 + 8 * (n))
#define GO_REG0(ctx) ((ctx)->regs[0])
#define GO_REG1(ctx) ((ctx)->regs[1])
#define GO_REG2(ctx) ((ctx)->regs[2])
#define GO_REG3(ctx) ((ctx)->regs[3])
#define GO_REG4(ctx) ((ctx)->regs[4])
#define GO_REG5(ctx) ((ctx)->regs[5])

/* B.LS, the branch of the stack check, is taken when C is clear or Z is set. */
#define ARM64_FLAG_C (1UL << 29)
#define ARM64_FLAG_Z (1UL << 30)
#define GO_STACK_CHECK_TAKEN(ctx) \
	(!((ctx)->pstate & ARM64_FLAG_C) || ((ctx)->pstate & ARM64_FLAG_Z))
#else
#error "unsupported architecture"
#endif

/* The first words of arguments or results. The barriers keep the compiler from loading
 * one of them by a variable offset into ctx, which the verifier refuses. */
static __always_inline void go_results(struct pt_regs *ctx, u64 words[4])
{
	words[0] = GO_REG0(ctx);
	barrier_var(words[0]);
	words[1] = GO_REG1(ctx);
	barrier_var(words[1]);
	words[2] = GO_REG2(ctx);
	barrier_var(words[2]);
	words[3] = GO_REG3(ctx);
	barrier_var(words[3]);
}

/* struct runtime.iface: an itab whose second word is the dynamic type. */
struct go_iface {
	u64 tab;
	u64 data;
};

struct go_string {
	u64 ptr;
	u64 len;
};

#define GO_ITAB_TYPE 8
#define G_STACK_HI 8 /* runtime.g begins with its stack's bounds; assembly relies on it */

/* Reads a word of the target; 0 when it cannot be read, which every caller
 * treats like a nil pointer. */
static __always_inline u64 go_word(u64 addr)
{
	u64 v = 0;

	bpf_probe_read_user(&v, sizeof(v), (void *)addr);
	return v;
}

static __always_inline u8 go_byte(u64 addr)
{
	u8 v = 0;

	bpf_probe_read_user(&v, sizeof(v), (void *)addr);
	return v;
}

static __always_inline struct go_string go_string(u64 addr)
{
	struct go_string s = {};

	bpf_probe_read_user(&s, sizeof(s), (void *)addr);
	return s;
}

static __always_inline struct go_iface go_iface(u64 addr)
{
	struct go_iface i = {};

	bpf_probe_read_user(&i, sizeof(i), (void *)addr);
	return i;
}

/* The type descriptor's address as the linker knew it, 0 for a nil interface. */
static __always_inline u64 go_type_of(u64 itab, u64 bias)
{
	u64 type;

	if (!itab)
		return 0;
	type = go_word(itab + GO_ITAB_TYPE);
	return type ? type - bias : 0;
}

#endif
