// Package sqltext turns the text of a SQL statement into what a span may show
// of it: the text without its literals (db.query.text), a short name that many
// statements share (db.query.summary), and the first operation.
//
// What counts as data, and is replaced by "?":
//
//   - every literal: strings in all the forms of the dialect, numbers, booleans,
//     binary and dollar-quoted text. NULL stays. The password of
//     IDENTIFIED BY goes too, quoted or not;
//   - the content of comments: libraries put user names and trace ids there. A
//     block comment becomes /*?*/, a line comment --?. The one exception is the
//     name that sqlc writes above a statement ("-- name: GetUser :one");
//   - whatever the end of the text leaves open.
//
// Placeholders ($1, ?, :name, @p1) and identifiers stay. A text that holds
// nothing to replace is returned as it is, byte for byte. A list of literals
// after IN becomes one "?", and so do more than 32 placeholders there; rows of
// literals after VALUES become one row.
//
// Quoting is where literals leak from: one string whose end is misread turns
// the rest of the text inside out. So strings, comments and quoted identifiers
// are found by the rules of each dialect here, and only what lies between them
// is handed to the lexer library. Where a dialect is not known and the end of
// a string is in doubt, the text ends there.
package sqltext

import (
	"strings"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

const (
	// maxText bounds the work for one statement; what is longer is cut and
	// treated as truncated.
	maxText = 32 << 10
	// bytesPerEntry bounds the memory of a cache with its number of entries:
	// ordinary statements have a few hundred bytes.
	bytesPerEntry = 1 << 10
	// entryOverhead stands for the map, list and header words of one entry.
	entryOverhead = 256
)

// Query is what may be shown of a statement. All fields are valid UTF-8 and
// hold no literal of it.
type Query struct {
	Text    string // db.query.text
	Summary string // db.query.summary, at most 255 bytes; "" if no operation is recognised
	// Operation is the first operation of the summary, in the statement's own
	// case: db.operation.name.
	Operation string
}

// Cache remembers the result for the texts seen last. It is safe for
// concurrent use. A hit allocates nothing.
type Cache struct {
	mu       sync.Mutex
	lru      *simplelru.LRU[key, Query]
	bytes    int
	maxBytes int
}

// key has the dialect in place of the system: a pointer is hashed faster.
type key struct {
	text      string
	dialect   *dialect
	truncated bool
}

// New returns a cache of at most size statements, and at most size KiB.
func New(size int) *Cache {
	size = max(size, 1)
	c := &Cache{maxBytes: size * bytesPerEntry}
	// NewLRU fails only for a size under one.
	c.lru, _ = simplelru.NewLRU(size, func(k key, q Query) { c.bytes -= cost(k, q) })
	return c
}

// Query returns what may be shown of text, a statement for the given
// db.system.name. Truncated says that text is only the beginning of the
// statement. The cache keeps its own copy of text, which may be a part of a
// larger buffer.
func (c *Cache) Query(text string, truncated bool, system string) Query {
	if len(text) > maxText {
		text, truncated = text[:maxText], true
	}
	k := key{text: text, dialect: dialectOf(system), truncated: truncated}
	c.mu.Lock()
	q, ok := c.lru.Get(k)
	c.mu.Unlock()
	if ok {
		return q
	}
	k.text = strings.Clone(text)
	q = clean(k.text, truncated, k.dialect)
	size := cost(k, q)
	if size > c.maxBytes {
		return q
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lru.Contains(k) { // another goroutine was faster
		return q
	}
	c.lru.Add(k, q)
	c.bytes += size
	for c.bytes > c.maxBytes {
		if _, _, ok := c.lru.RemoveOldest(); !ok {
			break
		}
	}
	return q
}

// Len returns the number of statements held and the bytes that they take.
func (c *Cache) Len() (entries, bytes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lru.Len(), c.bytes
}

func cost(k key, q Query) int {
	n := entryOverhead + len(k.text) + len(q.Summary)
	if q.Text != k.text { // else both share their bytes
		n += len(q.Text)
	}
	return n
}

// Sanitize does the work of [Cache.Query] without a cache. The result may
// share memory with text.
func Sanitize(text string, truncated bool, system string) Query {
	if len(text) > maxText {
		text, truncated = text[:maxText], true
	}
	return clean(text, truncated, dialectOf(system))
}

func clean(text string, truncated bool, d *dialect) Query {
	if truncated {
		text = trimPartialRune(text)
	}
	tokens := scan(text, d)
	out, changed := sanitize(tokens, d)
	if !changed {
		out = text
	}
	summary, operation := summarize(tokens)
	return Query{
		Text:      strings.ToValidUTF8(out, "\uFFFD"),
		Summary:   strings.ToValidUTF8(summary, "\uFFFD"),
		Operation: strings.ToValidUTF8(operation, "\uFFFD"),
	}
}

// trimPartialRune drops a last character that was cut in its middle.
func trimPartialRune(s string) string {
	for i := 1; i <= 3 && i <= len(s); i++ {
		b := s[len(s)-i]
		if b < 0x80 {
			return s
		}
		if b >= 0xC0 { // first byte of a character of 2 to 4 bytes
			want := 2
			if b >= 0xF0 {
				want = 4
			} else if b >= 0xE0 {
				want = 3
			}
			if i < want {
				return s[:len(s)-i]
			}
			return s
		}
	}
	return s
}
