/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0 */
/*
 * fold.h: a hash of SQL that does not see literals, so that queries that differ in
 * nothing else are one series where each cannot have its own.
 *
 * Numbers and '...' are left out, and lists of them are one. What has the same hash must
 * have the same summary, so whatever is not certain is hashed as it is: digits in names;
 * "...", `...` and [name], which may be names; and from there on, everything, after a
 * comment, a backslash, a dollar quote or Oracle's q'...', inside which quotes mean
 * something else. The table is walked without branches: the verifier sees 512 times the
 * same few instructions.
 */
#ifndef AGENT_FOLD_H
#define AGENT_FOLD_H

#include "goroutine.h"

enum fold_class {
	C_OTHER,
	C_SPACE,
	C_COMMA,
	C_LETTER, /* and _ and whatever is not ASCII */
	C_LETTER_Q,
	C_DIGIT,
	C_DOT,
	C_QUOTE,
	C_DOUBLE,
	C_TICK,
	C_OPEN,
	C_CLOSE,
	C_DOLLAR,
	C_BACKSLASH,
	C_MINUS,
	C_SLASH,
	C_STAR,
	C_HASH,
	FOLD_CLASSES = 32,
};

static const u8 fold_classes[256] = {
	['\t'] = C_SPACE, ['\n'] = C_SPACE, ['\r'] = C_SPACE, [' '] = C_SPACE,
	[','] = C_COMMA, ['.'] = C_DOT, ['\''] = C_QUOTE, ['"'] = C_DOUBLE, ['`'] = C_TICK,
	['['] = C_OPEN, [']'] = C_CLOSE, ['$'] = C_DOLLAR, ['\\'] = C_BACKSLASH,
	['-'] = C_MINUS, ['/'] = C_SLASH, ['*'] = C_STAR, ['#'] = C_HASH, ['_'] = C_LETTER,
	['0' ... '9'] = C_DIGIT, ['A' ... 'P'] = C_LETTER, ['Q'] = C_LETTER_Q,
	['R' ... 'Z'] = C_LETTER, ['a' ... 'p'] = C_LETTER, ['q'] = C_LETTER_Q,
	['r' ... 'z'] = C_LETTER, [0x80 ... 0xff] = C_LETTER,
};

enum fold_state {
	S_PLAIN,
	S_WORD, /* in a name, digits and dots in it included */
	S_WORD_Q, /* likewise, after a q */
	S_NUMBER, /* in digits of which it is not known yet whether a name follows */
	S_STRING,
	S_ENDED, /* after the quote that may have ended a string */
	S_LIST_SPACE, /* after a literal and space */
	S_LIST_COMMA, /* after a literal and a comma */
	S_LIST_NUMBER, /* these three in a further literal of a list */
	S_LIST_STRING,
	S_LIST_ENDED,
	S_DOUBLE,
	S_TICK,
	S_OPEN,
	S_BRACKET,
	S_MINUS,
	S_SLASH,
	S_DOLLAR,
	S_REST, /* as it is from here on */
	FOLD_STATES = 32,
};

/* What a step does to the hash, in this order. */
#define A_STATE 0x20 /* mix the state that is left: it stood for a literal or a list */
#define A_NUMBER 0x40 /* mix the digits: a name follows them */
#define A_RAW 0x80 /* mix the byte */
#define A_DIGITS 0x100 /* mix the byte into the digits */
#define A_NEXT 0x1f

#define RAW(state) (A_RAW | (state))
#define ALL(step) [0 ... FOLD_CLASSES - 1] = (step)

/* Where nothing is open; unless is added to each step. */
#define OUTSIDE(unless)                                                                     \
	[C_OTHER] = RAW(S_PLAIN) | (unless), [C_SPACE] = RAW(S_PLAIN) | (unless),          \
	[C_COMMA] = RAW(S_PLAIN) | (unless), [C_LETTER] = RAW(S_WORD) | (unless),          \
	[C_LETTER_Q] = RAW(S_WORD_Q) | (unless),                                           \
	[C_DIGIT] = A_DIGITS | S_NUMBER | (unless), [C_DOT] = RAW(S_PLAIN) | (unless),     \
	[C_QUOTE] = S_STRING | (unless), [C_DOUBLE] = RAW(S_DOUBLE) | (unless),            \
	[C_TICK] = RAW(S_TICK) | (unless), [C_OPEN] = RAW(S_OPEN) | (unless),              \
	[C_CLOSE] = RAW(S_PLAIN) | (unless), [C_DOLLAR] = RAW(S_DOLLAR) | (unless),        \
	[C_BACKSLASH] = RAW(S_REST) | (unless), [C_MINUS] = RAW(S_MINUS) | (unless),       \
	[C_SLASH] = RAW(S_SLASH) | (unless), [C_STAR] = RAW(S_PLAIN) | (unless),           \
	[C_HASH] = RAW(S_REST) | (unless)

/* What a state does otherwise than OUTSIDE follows it. */
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Winitializer-overrides"

static const u16 fold_steps[FOLD_STATES][FOLD_CLASSES] = {
	[S_PLAIN] = { OUTSIDE(0) },
	[S_WORD] = { OUTSIDE(0), [C_DIGIT] = RAW(S_WORD), [C_DOT] = RAW(S_WORD),
		     [C_DOLLAR] = RAW(S_WORD) },
	[S_WORD_Q] = { OUTSIDE(0), [C_DIGIT] = RAW(S_WORD), [C_DOT] = RAW(S_WORD),
		       [C_DOLLAR] = RAW(S_WORD), [C_QUOTE] = RAW(S_REST) },
	[S_NUMBER] = { OUTSIDE(A_STATE), [C_DIGIT] = A_DIGITS | S_NUMBER, [C_DOT] = A_DIGITS | S_NUMBER,
		       [C_LETTER] = A_NUMBER | RAW(S_WORD), [C_LETTER_Q] = A_NUMBER | RAW(S_WORD),
		       [C_DOLLAR] = A_NUMBER | RAW(S_REST), [C_SPACE] = A_STATE | S_LIST_SPACE,
		       [C_COMMA] = A_STATE | S_LIST_COMMA },
	[S_STRING] = { ALL(S_STRING), [C_QUOTE] = S_ENDED, [C_BACKSLASH] = RAW(S_REST) },
	[S_ENDED] = { OUTSIDE(A_STATE), [C_QUOTE] = S_STRING, [C_SPACE] = A_STATE | S_LIST_SPACE,
		      [C_COMMA] = A_STATE | S_LIST_COMMA },
	[S_LIST_SPACE] = { OUTSIDE(A_STATE), [C_SPACE] = S_LIST_SPACE, [C_COMMA] = S_LIST_COMMA },
	[S_LIST_COMMA] = { OUTSIDE(A_STATE), [C_SPACE] = S_LIST_COMMA, [C_COMMA] = S_LIST_COMMA,
			   [C_DIGIT] = A_DIGITS | S_LIST_NUMBER, [C_QUOTE] = S_LIST_STRING },
	[S_LIST_NUMBER] = { OUTSIDE(0), [C_DIGIT] = A_DIGITS | S_LIST_NUMBER,
			    [C_DOT] = A_DIGITS | S_LIST_NUMBER,
			    [C_LETTER] = A_STATE | A_NUMBER | RAW(S_WORD),
			    [C_LETTER_Q] = A_STATE | A_NUMBER | RAW(S_WORD),
			    [C_DOLLAR] = A_STATE | A_NUMBER | RAW(S_REST),
			    [C_SPACE] = S_LIST_SPACE, [C_COMMA] = S_LIST_COMMA },
	[S_LIST_STRING] = { ALL(S_LIST_STRING), [C_QUOTE] = S_LIST_ENDED,
			    [C_BACKSLASH] = RAW(S_REST) },
	[S_LIST_ENDED] = { OUTSIDE(0), [C_QUOTE] = S_LIST_STRING, [C_SPACE] = S_LIST_SPACE,
			   [C_COMMA] = S_LIST_COMMA },
	[S_DOUBLE] = { ALL(RAW(S_DOUBLE)), [C_DOUBLE] = RAW(S_PLAIN), [C_BACKSLASH] = RAW(S_REST) },
	[S_TICK] = { ALL(RAW(S_TICK)), [C_TICK] = RAW(S_PLAIN) },
	[S_OPEN] = { OUTSIDE(0), [C_LETTER] = RAW(S_BRACKET), [C_LETTER_Q] = RAW(S_BRACKET) },
	[S_BRACKET] = { ALL(RAW(S_BRACKET)), [C_CLOSE] = RAW(S_PLAIN), [C_QUOTE] = RAW(S_REST) },
	[S_MINUS] = { OUTSIDE(0), [C_MINUS] = RAW(S_REST) },
	[S_SLASH] = { OUTSIDE(0), [C_STAR] = RAW(S_REST) },
	[S_DOLLAR] = { OUTSIDE(0), [C_DIGIT] = RAW(S_WORD), [C_LETTER] = RAW(S_REST),
		       [C_LETTER_Q] = RAW(S_REST), [C_DOLLAR] = RAW(S_REST) },
	[S_REST] = { ALL(RAW(S_REST)) },
};

#pragma clang diagnostic pop

static __always_inline u64 fold_mix(u64 hash, u64 value)
{
	hash = (hash ^ value) * 0x9fb21c651e98df25ULL;
	return hash ^ hash >> 32;
}

/* y where step does what is asked, else x. The compiler must not make a branch of it. */
static __always_inline u64 fold_pick(u32 step, u32 action, u64 x, u64 y)
{
	u64 mask = -(u64)(step / action & 1);

	barrier_var(mask);
	return x ^ ((x ^ y) & mask);
}

/* The hash of the first len bytes in the scratch of a goroutine. Never 0.
 *
 * A global function, which the verifier looks at once and not on each way that leads
 * here. On Linux 5.10 such a function takes only numbers, so it finds the text itself. */
__attribute__((noinline)) u64 fold_hash(u64 goroutine, u32 tgid, u32 len)
{
	struct table_entry *e = table_find(&goroutine_table, goroutine, tgid);
	struct goroutine *g = e ? goroutine_at(e) : NULL;
	u64 hash = 0x9e3779b97f4a7c15ULL, digits = 0;
	u32 state = S_PLAIN;

	if (!g)
		return 1; /* cannot be: its query is about to end */
	for (u32 i = 0; i < SERIES_TEXT_MAX; i++) {
		u8 c = g->scratch[i];
		u32 step = fold_steps[state & (FOLD_STATES - 1)][fold_classes[c] & (FOLD_CLASSES - 1)];

		if (i >= len)
			break;
		hash = fold_pick(step, A_STATE, hash, fold_mix(hash, 0x100 | state));
		hash = fold_pick(step, A_NUMBER, hash, fold_mix(hash, digits));
		hash = fold_pick(step, A_RAW, hash, fold_mix(hash, c));
		digits = fold_pick(step, A_DIGITS, 0, fold_mix(digits, c));
		state = step & A_NEXT;
	}
	hash = fold_mix(hash, 0x100 | state);
	return hash ? hash : 1;
}

#endif
