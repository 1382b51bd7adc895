/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * goheader.h: looks up a few keys of an http.Header, a map[string][]string, in the
 * memory of the target. Both layouts of Go maps are walked slot by slot (no hash is
 * computed: the seed and the hash function are the runtime's own business).
 */
#ifndef AGENT_GOHEADER_H
#define AGENT_GOHEADER_H

#include "span.h"

#define GO_GROUP_SLOTS 8
/* Eight groups hold at least 28 keys whatever the load; a request with more may
 * lose its parent, never gains a wrong one. */
#define MAX_GROUPS 8
#define HMAP_MIN_TOPHASH 5

/* A key as two words, so that a comparison is one branch for the verifier. */
#define WORD(a, b, c, d, e, f, g, h)                                                       \
	((u64)(a) | (u64)(b) << 8 | (u64)(c) << 16 | (u64)(d) << 24 | (u64)(e) << 32 |     \
	 (u64)(f) << 40 | (u64)(g) << 48 | (u64)(h) << 56)

/* Sets the bit that tells lower from upper case; a dash has it. */
#define LOWER 0x2020202020202020ULL

#define HEADER_UNREADABLE (-2)

/* Keys are "Traceparent" in an http.Header, "traceparent" in metadata of gRPC. */
static __always_inline int header_read(u64 key_ptr, u64 key_len)
{
	u64 key[2] = {};

	if (bpf_probe_read_user(key, key_len & 15, (void *)key_ptr))
		return HEADER_UNREADABLE;
	key[0] |= LOWER;
	key[1] |= LOWER;
	if (!((key[0] ^ WORD('t', 'r', 'a', 'c', 'e', 'p', 'a', 'r')) |
	      (key[1] ^ WORD('e', 'n', 't', ' ', ' ', ' ', ' ', ' '))))
		return HEADER_TRACEPARENT;
	if (!((key[0] ^ WORD('t', 'r', 'a', 'c', 'e', 's', 't', 'a')) |
	      (key[1] ^ WORD('t', 'e', ' ', ' ', ' ', ' ', ' ', ' '))))
		return HEADER_TRACESTATE;
	if (!((key[0] ^ WORD('u', 's', 'e', 'r', '-', 'a', 'g', 'e')) |
	      (key[1] ^ WORD('n', 't', ' ', ' ', ' ', ' ', ' ', ' '))))
		return HEADER_USER_AGENT;
	if (!((key[0] ^ WORD('x', '-', 'f', 'o', 'r', 'w', 'a', 'r')) |
	      (key[1] ^ WORD('d', 'e', 'd', '-', 'f', 'o', 'r', ' '))))
		return HEADER_FORWARDED_FOR;
	return -1;
}

/* The same. net/textproto has constants for the usual keys. */
static __always_inline int header_of(u64 ptr, u64 len, const struct runtime_layout *rt,
				     const struct header_values *out)
{
	u64 constant = 0, known;
	int which;

	if (out->owner)
		constant = image_text(IMAGE_HEADER, rt, out->bias, ptr, len);
	known = constant ? image_get(constant, out->owner) : 0;
	if (known)
		return (int)known - 2;
	which = header_read(ptr, len);
	if (constant && which != HEADER_UNREADABLE)
		image_put(constant, out->owner, which + 2);
	return which;
}

/* A word of the group; the mask tells the verifier what user space has checked. */
static __always_inline u64 group_word(const u8 *scratch, u32 at)
{
	return *(const u64 *)&scratch[at & (SCRATCH_SIZE - 8)];
}

/* Reads one group into scratch and takes the wanted values out of it. */
static __noinline int group_find(u64 group, u8 *scratch, const struct runtime_layout *rt,
				 struct header_values *out)
{
	u32 size = rt->group_size;
	u64 control;

	if (!read_object(scratch, size, group))
		return -1;
	control = group_word(scratch, rt->group_control);
	for (u32 i = 0; i < GO_GROUP_SLOTS; i++, control >>= 8) {
		u32 key_at = rt->group_keys + i * rt->group_key_stride;
		u32 elem_at = rt->group_elems + i * rt->group_elem_stride;
		u64 key = group_word(scratch, key_at), len = group_word(scratch, key_at + 8);
		int which = -1;

		if (rt->swiss_map ? (control & 0x80) : ((control & 0xff) < HMAP_MIN_TOPHASH))
			continue;
		if (len == 10 || len == 11 || len == 15)
			which = header_of(key, len, rt, out);
		/* What could not be read is not seen: a key in a page that is not there. */
		if (!key || which == HEADER_UNREADABLE)
			continue;
		out->seen++;
		if (which >= 0 && group_word(scratch, elem_at + 8))
			out->value[which & (HEADERS - 1)] =
				go_string(group_word(scratch, elem_at));
	}
	return 0;
}

static __always_inline u64 map_word(const struct map_header *map, u32 at)
{
	return map->words[(at / 8) & 7];
}

static __always_inline int hmap_find(const struct map_header *map, u8 *scratch,
				     const struct runtime_layout *rt, struct header_values *out)
{
	u64 buckets = map_word(map, rt->map_dir_ptr);
	u8 log2 = map_word(map, rt->map_dir_len) >> (8 * (rt->map_dir_len & 7));
	u64 bucket;

	if (!buckets)
		return 0;
	for (u32 i = 0; i < MAX_GROUPS; i++) {
		if (i >> (log2 & 31))
			break;
		bucket = buckets + i * rt->group_size;
		if (group_find(bucket, scratch, rt, out))
			return -1;
		/* One overflow bucket is common, a second one is rare. */
		bucket = group_word(scratch, rt->group_overflow);
		if (bucket && group_find(bucket, scratch, rt, out))
			return -1;
	}
	return 0;
}

static __always_inline int swiss_find(const struct map_header *map, u8 *scratch,
				      const struct runtime_layout *rt, struct header_values *out)
{
	u64 dir = map_word(map, rt->map_dir_ptr);
	u64 tables = map_word(map, rt->map_dir_len);
	u64 groups[2] = {}; /* data, lengthMask */

	if (!dir)
		return 0;
	if (!tables) /* up to 8 keys: no directory, one group */
		return group_find(dir, scratch, rt, out);
	if (tables != 1) /* over 896 keys: not a request that means well */
		return 0;
	bpf_probe_read_user(groups, sizeof(groups), (void *)(go_word(dir) + rt->table_groups));
	for (u32 i = 0; i < MAX_GROUPS; i++) {
		if (i > groups[1])
			break;
		if (group_find(groups[0] + i * rt->group_size, scratch, rt, out))
			return -1;
	}
	return 0;
}

/* Finds the wanted headers of the map at this address, into g->headers: on the stack
 * every combination of found and not found would be a state for the verifier. p is NULL
 * where it is not known whose they are. */
static __always_inline bool headers_find(const struct probe *p, u64 map, struct goroutine *g,
					 const struct runtime_layout *rt)
{
	struct header_values *out = &g->headers;
	u8 *scratch = g->scratch;

	__builtin_memset(out, 0, sizeof(*out));
	if (p) {
		out->bias = p->bias;
		out->owner = image_owner(p->tgid, p->binary);
	}
	if (!map || !rt->group_size)
		return true;
	if (!read_object(scratch, sizeof(g->map), map))
		return false;
	__builtin_memcpy(&g->map, scratch, sizeof(g->map));
	if (!g->map.words[0]) /* both kinds begin with the number of keys */
		return true;
	return !(rt->swiss_map ? swiss_find(&g->map, scratch, rt, out) :
				 hmap_find(&g->map, scratch, rt, out));
}

/* --- W3C traceparent: 00-<32 hex>-<16 hex>-<2 hex> --- */

#define TRACEPARENT_LEN 55

static __always_inline int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

/* Version ff is forbidden; a version above 00 may go on after a further dash. */
static __always_inline bool traceparent_parse(const char *s, u64 len, u64 trace_id[2],
					      u64 *parent_id, u32 *flags)
{
	u8 id[26] = {}; /* version, 16 + 8 bytes of ids, flags */
	u32 at = 0;

	for (u32 i = 0; i < 26; i++) {
		int high = hex_digit(s[at]), low = hex_digit(s[at + 1]);

		if (high < 0 || low < 0)
			return false;
		id[i] = high << 4 | low;
		at += 2;
		if (i == 0 || i == 16 || i == 24) {
			if (s[at] != '-')
				return false;
			at++;
		}
	}
	if (id[0] == 0xff || (id[0] == 0 && len != TRACEPARENT_LEN))
		return false;
	__builtin_memcpy(trace_id, &id[1], 16);
	__builtin_memcpy(parent_id, &id[17], 8);
	*flags = id[25];
	return (trace_id[0] || trace_id[1]) && *parent_id;
}

#endif
