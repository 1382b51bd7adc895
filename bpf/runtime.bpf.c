//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * runtime: which goroutine started which, while a request is open.
 *
 * A trap on every go statement is too dear for a busy service, and lineage that has no
 * end joins what does not belong together. So this is attached only to binaries whose
 * libraries leave no other way (internal/probes/runtime.go says which), and a link
 * holds only while the very span is open below which the goroutine was started.
 */
#include "span.h"

SEC("uprobe")
int runtime_newproc(struct pt_regs *ctx)
{
	struct runtime_layout *rt;
	struct lineage *inherited, link = {};
	struct goroutine_key key = {};
	struct goroutine *g;
	struct probe p;
	u64 child = GO_REG1(ctx);

	/* In newproc's closure on the system stack, at runqput(pp, newg, next). */
	if (!probe_enter(ctx, &p))
		return 0;
	rt = runtime_layout(&p);
	if (!rt || !rt->g_m)
		return 0;
	p.goroutine = go_word(go_word(p.goroutine + rt->g_m) + rt->m_curg);
	if (!p.goroutine)
		return 0;
	key.tgid = p.tgid;
	key.address = p.goroutine;
	g = goroutine_find(&p, rt, p.goroutine);
	if (g && g->depth) {
		link.owner = p.goroutine;
		link.span_id = g->frames[0].span_id;
	} else {
		inherited = bpf_map_lookup_elem(&lineages, &key);
		if (!inherited || inherited->goid != go_word(p.goroutine + rt->g_goid))
			return 0;
		link = *inherited;
	}
	key.address = child;
	link.goid = go_word(child + rt->g_goid);
	bpf_map_update_elem(&lineages, &key, &link, BPF_ANY);
	return 0;
}
