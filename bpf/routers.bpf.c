//go:build ignore

// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0
/*
 * routers: the route of server spans where a router other than ServeMux has matched it.
 *
 *   gin         (*Engine).handleHTTPRequest calls (*Context).Next   c.fullPath
 *   gorilla/mux requestWithRoute, setCurrentRoute                   route.regexp.path.template
 *   httprouter  (*Router).ServeHTTP, after getValue                 the path, parameters named
 *   chi         (*Mux).ServeHTTP calls (*sync.Pool).Put             rctx.RoutePatterns, joined
 *   echo        (*Echo).ServeHTTP calls (*sync.Pool).Put            c.path; echo 5 defers it
 *
 * The last two have the route on a struct that no call after the match is handed, so it is
 * read where the struct is given back, when the handler has returned: but for echo 5, a panic
 * that no middleware of theirs recovers leaves the span without a route.
 *
 * Checked in the sources of gin 1.5 to 1.12, gorilla/mux 1.6 to 1.8, httprouter 1.2 and 1.3,
 * chi 4 and 5, echo 3 to 5.
 */
#include "nethttp.h"

/* Variants of router_route: whose struct it is, and which register points to it. */
enum router_site {
	ROUTER_GIN, /* (c *Context) */
	ROUTER_GIN_POOL, /* (pool, x any), as those below: where Next was inlined */
	ROUTER_ECHO3,
	ROUTER_ECHO4,
	ROUTER_ECHO5,
	ROUTER_CHI4,
	ROUTER_CHI5,
	ROUTER_MUX, /* (r *Request, route *Route) */
	ROUTER_MUX_ANY, /* (r, key any, val any): up to 1.7 */
	ROUTER_SITES,
};

/* Variants of router_httprouter: how getValue returns parameters. */
enum httprouter_site {
	HTTPROUTER_SLICE, /* (handle, ps Params, tsr bool) */
	HTTPROUTER_POINTER, /* (handle, ps *Params, tsr bool): not in a release yet */
};

/* Of the struct that a site has. */
struct router_fields {
	u32 route; /* a string; of chi, a slice of strings */
	u32 request; /* the *http.Request; of chi, its context, or 0 where it has none */
};

#define MAX_ROUTER_SITES 16

struct router_layout {
	struct router_fields fields[MAX_ROUTER_SITES]; /* by enum router_site */
	u32 mux_regexp; /* in Route: a routeRegexpGroup, or from 1.7 on its path */
	u32 mux_regexp_pointer; /* 1: a pointer to the group, up to 1.6 */
	u32 mux_group_path;
	u32 mux_template;
	u32 param_key;
	u32 param_value;
	u32 param_size;
	u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_BINARIES);
	__type(key, u32);
	__type(value, struct router_layout);
} router_layouts SEC(".maps");

/* What a router's probe found. */
struct router_match {
	u64 object; /* gin's, echo's or chi's context, mux's Route */
	u64 request; /* the *http.Request that was routed; 0: unknown */
	struct go_iface context; /* of the request */
	struct go_string route; /* all but chi */
};

/* Sub-routers, one below the other, of which chi notes a pattern each; parameters of one
 * route of httprouter. A request with more has no route. */
#define MAX_CHI_PATTERNS 8
#define MAX_PARAMS 8

static __always_inline bool router_read(struct pt_regs *ctx, const struct probe *p,
					const struct router_layout *l, struct router_match *m)
{
	const struct router_fields *f = &l->fields[p->variant & (MAX_ROUTER_SITES - 1)];
	u64 words[4], at;

	go_results(ctx, words);
	m->object = p->variant == ROUTER_GIN ? words[0] : words[2];
	switch (p->variant) {
	case ROUTER_CHI4:
	case ROUTER_CHI5:
		if (f->request)
			m->context = go_iface(m->object + f->request);
		return m->object;
	case ROUTER_MUX:
	case ROUTER_MUX_ANY:
		m->object = p->variant == ROUTER_MUX ? words[1] : GO_REG4(ctx);
		m->request = words[0];
		at = m->object + l->mux_regexp;
		if (l->mux_regexp_pointer)
			at = go_word(at);
		at = go_word(at + l->mux_group_path);
		m->route = go_string(at + l->mux_template);
		break;
	default:
		m->request = go_word(m->object + f->request);
		m->route = go_string(m->object + f->route);
	}
	return m->object && m->route.len;
}

/* The goroutine that holds the server span of what was routed: this one, or where a
 * middleware runs the handler on another, the one that its context leads to. */
static __always_inline struct goroutine *router_owner(const struct probe *p,
						      const struct router_match *m,
						      struct goroutine *here)
{
	struct runtime_layout *rt = runtime_layout(p);
	struct goroutine *g = here;
	u64 owner;

	if (!g) {
		owner = context_owner(p, m->context.tab, m->context.data);
		g = owner && rt ? goroutine_find(p, rt, owner) : NULL;
	}
	return g && g->frames[0].kind == RECORD_HTTP_SERVER ? g : NULL;
}

/* echo up to 4.1 has the request's path for a route where nothing has matched. */
static __always_inline bool router_is_path(const struct nethttp_layout *http,
					   const struct router_match *m)
{
	u64 url = go_word(m->request + http->request_url);

	return m->route.ptr == go_word(url + http->url_path) ||
	       m->route.ptr == go_word(url + http->url_raw_path);
}

static __always_inline void route_done(struct goroutine *g, u32 len, u32 depth)
{
	text_pad((u8 *)g->route, len);
	g->route_len = len;
	g->route_at = ROUTE_OF_ROUTER;
	g->route_depth = depth;
}

/* Joins the patterns as chi's RoutePattern does: a wildcard that another pattern follows
 * is left out, and so is a slash at the end. Returns the length, 0 if there is none. */
static __always_inline u32 chi_join(struct goroutine *g, u64 patterns)
{
	struct go_string slice = go_string(patterns), s;
	u32 at = 0;

	if (!slice.len || slice.len > MAX_CHI_PATTERNS)
		return 0;
	for (u32 i = 0; i < MAX_CHI_PATTERNS; i++) {
		u32 len;

		if (i >= slice.len)
			break;
		s = go_string(slice.ptr + 16 * i);
		if (s.len >= ROUTE_MAX)
			return 0;
		len = s.len;
		barrier_var(at);
		if (at >= 2 && g->route[(at - 1) & (ROUTE_MAX - 1)] == '*' &&
		    g->route[(at - 2) & (ROUTE_MAX - 1)] == '/')
			at -= 2;
		barrier_var(at);
		if (at > ROUTE_MAX || at + len > ROUTE_MAX)
			return 0;
		barrier_var(len);
		/* Behind the route is room of the same entry, as the verifier sees. */
		if (bpf_probe_read_user(&g->route[at & (ROUTE_MAX - 1)], len & (ROUTE_MAX - 1),
					(void *)s.ptr))
			return 0;
		at += len;
	}
	for (u32 i = 0; i < 2; i++)
		if (at > 1 && g->route[(at - 1) & (ROUTE_MAX - 1)] == '/')
			at--;
	return at;
}

SEC("uprobe")
int router_route(struct pt_regs *ctx)
{
	struct router_match m = {};
	struct nethttp_layout *http;
	struct router_layout *l;
	struct goroutine *g, *here;
	struct probe p;
	u32 depth, len;

	if (!probe_enter(ctx, &p))
		return 0;
	http = nethttp_layout(&p);
	l = bpf_map_lookup_elem(&router_layouts, &p.binary);
	if (!http || !l || !router_read(ctx, &p, l, &m))
		return 0;
	here = goroutine_here(&p);
	if (m.request && !here)
		m.context = go_iface(m.request + http->request_ctx);
	g = router_owner(&p, &m, here);
	if (!g || (m.request && router_is_path(http, &m)))
		return 0;
	depth = route_depth(ctx, &p, here != NULL);
	if (g->route_len && g->route_depth > depth)
		return 0; /* a router inside this one */
	if (p.variant == ROUTER_CHI4 || p.variant == ROUTER_CHI5) {
		len = chi_join(g, m.object + l->fields[p.variant].route);
	} else {
		len = m.route.len < ROUTE_MAX ? m.route.len : ROUTE_MAX;
		if (bpf_probe_read_user(g->route, len, (void *)m.route.ptr)) {
			count(&p, COUNT_BAD_READ, 1);
			len = 0;
		}
	}
	route_done(g, len, depth);
	return 0;
}

/* Appends bytes of the target to the route; false if there is no room. */
static __always_inline bool route_append(struct goroutine *g, u32 *end, u64 ptr, u64 len)
{
	u32 at = *end;

	barrier_var(at);
	if (at > ROUTE_MAX || len >= ROUTE_MAX || at + len > ROUTE_MAX)
		return false;
	barrier_var(len);
	if (bpf_probe_read_user(&g->route[at & (ROUTE_MAX - 1)], len & (ROUTE_MAX - 1), (void *)ptr))
		return false;
	*end = at + len;
	return true;
}

static __always_inline void route_append_byte(struct goroutine *g, u32 *end, char c)
{
	g->route[*end & (ROUTE_MAX - 1)] = c;
	(*end)++;
}

/* httprouter forgets the pattern, but a parameter's value is a part of the path itself:
 * where it lies says which part to replace by the name. A catch-all's value, unlike
 * others, begins with a slash. */
static __noinline u32 httprouter_pattern(struct goroutine *g, const struct router_layout *l,
					 const struct go_string *path, const struct go_string *params)
{
	struct go_string key, value;
	u64 from, to;
	u32 at = 0;

	if (!g || !l || !path || !params)
		return 0;
	from = path->ptr;
	to = path->ptr + path->len;
	if (params->len > MAX_PARAMS)
		return 0;
	for (u32 i = 0; i < MAX_PARAMS; i++) {
		u64 param = params->ptr + i * l->param_size;

		if (i >= params->len)
			break;
		key = go_string(param + l->param_key);
		value = go_string(param + l->param_value);
		if (value.ptr < from || value.len > to - value.ptr || value.ptr > to)
			return 0;
		if (!route_append(g, &at, from, value.ptr - from))
			return 0;
		if (go_byte(value.ptr) == '/') {
			route_append_byte(g, &at, '/');
			route_append_byte(g, &at, '*');
		} else {
			route_append_byte(g, &at, ':');
		}
		if (!route_append(g, &at, key.ptr, key.len))
			return 0;
		from = value.ptr + value.len;
	}
	return route_append(g, &at, from, to - from) ? at : 0;
}

/* At the branch on the handle that getValue has returned. */
SEC("uprobe")
int router_httprouter(struct pt_regs *ctx)
{
	struct router_match m = {};
	struct go_string path, params = {};
	struct nethttp_layout *http;
	struct router_layout *l;
	struct runtime_layout *rt;
	struct goroutine *g;
	struct probe p;
	u64 words[4], url;
	u32 depth;

	if (!probe_enter(ctx, &p))
		return 0;
	rt = runtime_layout(&p);
	http = nethttp_layout(&p);
	l = bpf_map_lookup_elem(&router_layouts, &p.binary);
	go_results(ctx, words);
	if (!rt || !http || !l || !words[0] || !GO_HOME_SLOT(ctx, 3))
		return 0;
	/* (*Router).ServeHTTP(r, w iface, req): req is needed after the call, so it has been
	 * spilled. Its context proves it: one that leads nowhere gives no route. */
	m.request = go_word(GO_HOME_SLOT(ctx, 3));
	m.context = go_iface(m.request + http->request_ctx);
	g = router_owner(&p, &m, NULL);
	if (!g)
		return 0;
	depth = route_depth(ctx, &p, g->goid == go_word(p.goroutine + rt->g_goid));
	if (g->route_len && g->route_depth > depth)
		return 0;
	url = go_word(m.request + http->request_url);
	path = go_string(url + http->url_path);
	if (p.variant == HTTPROUTER_POINTER && words[1]) {
		params = go_string(words[1]);
	} else if (p.variant == HTTPROUTER_SLICE) {
		params.ptr = words[1];
		params.len = words[2];
	}
	route_done(g, httprouter_pattern(g, l, &path, &params), depth);
	return 0;
}
