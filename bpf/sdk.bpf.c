//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * sdk: programs that make spans of their own with OpenTelemetry's SDK. What they have a
 * span of is not to be a second one of ours.
 *
 *   (*recordingSpan).End   a server span that ends within a request of ours: an instrumented
 *                          handler (otelhttp, otelgin, ...), so ours stands down; likewise a
 *                          client span of an instrumented driver within a query
 *
 * It is the SDK's own span that is looked at, not whether an instrumentation is linked: one
 * that records nothing takes nothing away. Checked in go.opentelemetry.io/otel/sdk 1.0 to 1.47.
 */
#include "nethttp.h"

struct sdk_layout {
	u32 span_kind;
	u32 span_tracer;
	u32 tracer_name; /* of the instrumentation's scope, a string */
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct sdk_layout);
} sdk_layouts SEC(".maps");

/* Instrumentations of drivers: github.com/XSAM/otelsql, go.nhat.io/otelsql and others. Any
 * other client span within a query is that of something the driver uses. */
static __always_inline bool sdk_scope_is_sql(const struct sdk_layout *l, u64 span)
{
	struct go_string name = go_string(go_word(span + l->span_tracer) + l->tracer_name);
	u32 end = 0;

	if (name.len < 4)
		return false;
	bpf_probe_read_user(&end, 3, (void *)(name.ptr + name.len - 3));
	return end == ('s' | 'q' << 8 | 'l' << 16);
}

SEC("uprobe")
int sdk_span_end(struct pt_regs *ctx)
{
	struct process *process;
	struct sdk_layout *l;
	struct goroutine *g;
	struct frame *f;
	struct probe p;
	u64 span = GO_REG0(ctx);
	u32 kind;

	if (!probe_enter(ctx, &p))
		return 0;
	g = goroutine_here(&p);
	f = g ? span_innermost(g) : NULL;
	l = bpf_map_lookup_elem(&sdk_layouts, &p.binary);
	if (!f || !l)
		return 0;
	kind = go_word(span + l->span_kind);
	if (f->kind == RECORD_HTTP_SERVER || f->kind == RECORD_GRPC_SERVER) {
		if (kind != SDK_KIND_SERVER)
			return 0;
		f->flags |= SPAN_STOOD_DOWN;
		process = process_of(&p);
		if (process)
			process->sdk_server = 1;
	} else if (kind == SDK_KIND_CLIENT && sdk_scope_is_sql(l, span)) {
		f->flags |= SPAN_STOOD_DOWN;
	}
	return 0;
}
