/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * image.h: what was once read from a process's image and cannot change there: the type of an
 * itab, and what a constant string says. To read from the target costs ten times as much as
 * to look here.
 *
 * Only what the linker has laid out is remembered, and strings only where nothing is written.
 * What a process does to its own image misleads only itself: the entries are by process.
 */
#ifndef AGENT_IMAGE_H
#define AGENT_IMAGE_H

#include "maps.h"

#define IMAGES 8192 /* a power of two */
#define IMAGE_MAX (1ULL << 32) /* no image is larger, and no heap as near to it */

enum image_kind {
	IMAGE_ITAB, /* -> its type, as linked */
	IMAGE_TEXT, /* -> text_hash */
	IMAGE_METHOD, /* route and length of a method -> enum http_method + 1 */
	IMAGE_HEADER, /* -> enum header + 2, 1: another */
};

/* Any CPU overwrites it at any time: check tells an entry that is half another's. */
struct image_entry {
	u64 key; /* image_key */
	u64 owner; /* image_owner */
	u64 value;
	u64 check;
};

/* Emptied by user space before the number of a binary is given to another one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, IMAGES);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, u32);
	__type(value, struct image_entry);
} images SEC(".maps");

static __always_inline u64 image_key(enum image_kind kind, u64 linked, u64 len)
{
	return (u64)kind << 60 | (len & 0xfffffff) << 32 | linked;
}

static __always_inline u64 image_owner(u32 tgid, u32 binary)
{
	return (u64)binary << 32 | tgid;
}

/* The key of a constant string, 0 if it is not one. len is what counts of it. */
static __always_inline u64 image_text(enum image_kind kind, const struct runtime_layout *rt,
				      u64 bias, u64 ptr, u64 len)
{
	u64 linked = ptr - bias, at = linked - rt->constants;

	if (at >= rt->constants_size || len > rt->constants_size - at)
		return 0;
	return image_key(kind, linked, len);
}

static __always_inline struct image_entry *image_at(u64 key, u64 owner)
{
	u32 at = ((key ^ owner * 0x9e3779b97f4a7c15ULL) * 0x9fb21c651e98df25ULL >> 40) & (IMAGES - 1);

	return bpf_map_lookup_elem(&images, &at);
}

static __always_inline u64 image_check(u64 key, u64 owner, u64 value)
{
	u64 check = (key ^ owner) * 0x9e3779b97f4a7c15ULL;

	return (check ^ check >> 32 ^ value) * 0x9fb21c651e98df25ULL;
}

/* These are global functions, as those of goroutine.h. image_get returns 0 for what is not
 * remembered. */
__noinline u64 image_get(u64 key, u64 owner)
{
	struct image_entry *e = image_at(key, owner);
	u64 value;

	if (!e)
		return 0;
	value = *(volatile u64 *)&e->value;
	if (e->key != key || e->owner != owner ||
	    *(volatile u64 *)&e->check != image_check(key, owner, value))
		return 0;
	return value;
}

__noinline u64 image_put(u64 key, u64 owner, u64 value)
{
	struct image_entry *e = image_at(key, owner);

	if (!e)
		return 0;
	e->key = key;
	e->owner = owner;
	*(volatile u64 *)&e->value = value;
	*(volatile u64 *)&e->check = image_check(key, owner, value);
	return 0;
}

/* go_type_of, by way of what is remembered. */
__noinline u64 image_type(u64 itab, u64 bias, u64 owner)
{
	u64 linked = itab - bias, key = image_key(IMAGE_ITAB, linked, 0), type;

	if (!itab)
		return 0;
	if (linked >= IMAGE_MAX) /* the runtime has made it */
		return go_type_of(itab, bias);
	type = image_get(key, owner);
	if (type)
		return type;
	type = go_type_of(itab, bias);
	if (type) /* else it is not there, or its page is not */
		image_put(key, owner, type);
	return type;
}

#endif
