/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * table.h: a table of what is open now, keyed by process and address.
 *
 * It lives in an array map instead of a hash map because every request adds, finds and
 * removes several keys: a lookup in an array is inlined by the verifier, and neither
 * takes a lock nor copies a value. A key has two buckets of eight ways, and the second is
 * looked at only if the first one has overflowed; where both are full the caller counts a
 * loss.
 *
 * Only the owner of an address adds, changes or removes its entry. A free way is taken
 * by adding one to claims: whoever then reads exactly 1 has it, the others take theirs
 * back and look further. This needs no fetching atomics, which Linux 5.10 lacks.
 */
#ifndef AGENT_TABLE_H
#define AGENT_TABLE_H

#include "maps.h"

static __always_inline u32 table_hash(u64 address, u32 tgid, u32 choice)
{
	u64 hash = (address ^ ((u64)tgid << 40)) * 0x9e3779b97f4a7c15ULL;

	/* Two independent parts of the product. */
	return (choice ? hash >> 16 : hash >> 40) & (table_buckets - 1);
}

static __always_inline struct table_bucket *table_bucket(void *table, u64 address, u32 tgid,
							 u32 choice)
{
	u32 at = table_hash(address, tgid, choice);

	return bpf_map_lookup_elem(table, &at);
}

static __always_inline struct table_entry *table_find(void *table, u64 address, u32 tgid)
{
	for (u32 choice = 0; choice < 2; choice++) {
		struct table_bucket *b = table_bucket(table, address, tgid, choice);

		if (!b)
			return NULL;
		for (u32 i = 0; i < TABLE_WAYS; i++)
			if (b->entries[i].address == address && b->entries[i].tgid == tgid)
				return &b->entries[i];
		if (!choice && !b->overflow)
			return NULL;
	}
	return NULL;
}

/* Has the memory fetched that table_claim is going to need, while something else is done:
 * nothing waits for a store, as it would for a load. */
static __always_inline void table_touch(void *table, u64 address, u32 tgid)
{
	struct table_bucket *b = table_bucket(table, address, tgid, 0);

	if (b)
		*(volatile u32 *)&b->touched = 0;
}

/* Takes a free way and returns it, its address still 0: the caller prepares what the
 * entry leads to and then calls table_publish. index is the way's number in the table. */
static __always_inline struct table_entry *table_claim(void *table, u64 address, u32 tgid,
						       u32 *index)
{
	struct table_bucket *first = NULL;

	for (u32 choice = 0; choice < 2; choice++) {
		struct table_bucket *b = table_bucket(table, address, tgid, choice);

		if (!b)
			return NULL;
		for (u32 i = 0; i < TABLE_WAYS; i++) {
			struct table_entry *e = &b->entries[i];

			if (e->address || *(volatile u32 *)&e->claims)
				continue;
			__sync_fetch_and_add(&e->claims, 1);
			if (*(volatile u32 *)&e->claims == 1) {
				*index = table_hash(address, tgid, choice) * TABLE_WAYS + i;
				e->tgid = tgid;
				if (choice && first)
					__sync_fetch_and_add(&first->overflow, 1);
				return e;
			}
			__sync_fetch_and_add(&e->claims, -1);
		}
		first = b;
	}
	return NULL;
}

static __always_inline void table_publish(struct table_entry *e, u64 address)
{
	*(volatile u64 *)&e->address = address;
}

static __always_inline void table_remove(void *table, u64 address, u32 tgid)
{
	struct table_bucket *first = table_bucket(table, address, tgid, 0);
	struct table_entry *e = table_find(table, address, tgid);

	if (!first || !e)
		return;
	*(volatile u64 *)&e->address = 0;
	__sync_fetch_and_add(&e->claims, -1);
	if (first->overflow && (e < first->entries || e >= first->entries + TABLE_WAYS))
		__sync_fetch_and_add(&first->overflow, -1);
}

#endif
