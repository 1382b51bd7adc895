package logtext

import (
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
)

// maxDepth is how deep nested fields become maps; deeper ones stay text.
const maxDepth = 8

// jsonReader reads one JSON object from a line, in one pass and without
// reflection. Strings without escapes share the memory of the line.
type jsonReader struct {
	s string
	i int
	// values counts what was read, to bound the memory of nested fields.
	values int
}

// maxValues bounds the values in one record, nested ones included.
const maxValues = 2048

// jsonValue is a value as text and as an attribute.
type jsonValue struct {
	raw string // of a string: its content; else the JSON text
	str bool
	val attribute.Value // empty for null
}

func (r *jsonReader) space() {
	for r.i < len(r.s) && (r.s[r.i] == ' ' || r.s[r.i] == '\t' || r.s[r.i] == '\n' || r.s[r.i] == '\r') {
		r.i++
	}
}

func (r *jsonReader) accept(c byte) bool {
	r.space()
	if r.i < len(r.s) && r.s[r.i] == c {
		r.i++
		return true
	}
	return false
}

// object reads an object and calls field for each member. It returns false if
// the text is no JSON; field may have been called by then.
func (r *jsonReader) object(depth int, field func(key string, v jsonValue)) bool {
	if !r.accept('{') {
		return false
	}
	if r.accept('}') {
		return true
	}
	for {
		r.space()
		key, ok := r.text()
		if !ok || !r.accept(':') {
			return false
		}
		v, ok := r.value(depth)
		if !ok {
			return false
		}
		field(key, v)
		if r.accept('}') {
			return true
		}
		if !r.accept(',') {
			return false
		}
	}
}

func (r *jsonReader) value(depth int) (jsonValue, bool) {
	r.space()
	if r.values++; r.i >= len(r.s) || r.values > maxValues {
		return jsonValue{}, false
	}
	start := r.i
	switch c := r.s[r.i]; {
	case c == '"':
		s, ok := r.text()
		return jsonValue{raw: s, str: true, val: attribute.StringValue(s)}, ok
	case c == '{' || c == '[':
		if depth >= maxDepth {
			ok := r.skip()
			text := r.s[start:r.i]
			return jsonValue{raw: text, val: attribute.StringValue(text)}, ok
		}
		before := r.values
		v, ok := r.nested(c, depth+1)
		if depth == 0 && r.values > maxValues { // too much to keep apart: as text
			r.i, r.values = start, before
			ok = r.skip()
			v = attribute.StringValue(r.s[start:r.i])
		}
		return jsonValue{raw: r.s[start:r.i], val: v}, ok
	case c == '-' || isDigit(c):
		return r.number()
	case r.word("true"):
		return jsonValue{raw: "true", val: attribute.BoolValue(true)}, true
	case r.word("false"):
		return jsonValue{raw: "false", val: attribute.BoolValue(false)}, true
	case r.word("null"):
		return jsonValue{raw: "null"}, true
	}
	return jsonValue{}, false
}

func (r *jsonReader) nested(open byte, depth int) (attribute.Value, bool) {
	if open == '{' {
		var kvs []attribute.KeyValue
		ok := r.object(depth, func(key string, v jsonValue) {
			if v.val.Type() != attribute.EMPTY {
				kvs = putLast(kvs, attribute.KeyValue{Key: attribute.Key(key), Value: v.val})
			}
		})
		return attribute.MapValue(kvs...), ok
	}
	r.i++
	var values []attribute.Value
	if r.accept(']') {
		return attribute.SliceValue(), true
	}
	for {
		v, ok := r.value(depth)
		if !ok {
			return attribute.Value{}, false
		}
		if v.val.Type() != attribute.EMPTY {
			values = append(values, v.val)
		}
		if r.accept(']') {
			return attribute.SliceValue(values...), true
		}
		if !r.accept(',') {
			return attribute.Value{}, false
		}
	}
}

// putLast adds kv, or replaces the one with its key: of equal keys the last
// counts.
func putLast(kvs []attribute.KeyValue, kv attribute.KeyValue) []attribute.KeyValue {
	for i := range kvs {
		if kvs[i].Key == kv.Key {
			kvs[i] = kv
			return kvs
		}
	}
	if len(kvs) >= maxAttributes {
		return kvs
	}
	return append(kvs, kv)
}

// skip passes over an object or array of any depth without looking into it.
func (r *jsonReader) skip() bool {
	depth := 0
	for r.i < len(r.s) {
		switch r.s[r.i] {
		case '"':
			if _, ok := r.text(); !ok {
				return false
			}
			continue
		case '{', '[':
			depth++
		case '}', ']':
			depth--
		}
		r.i++
		if depth == 0 {
			return true
		}
	}
	return false
}

func (r *jsonReader) word(w string) bool {
	if strings.HasPrefix(r.s[r.i:], w) {
		r.i += len(w)
		return true
	}
	return false
}

// number reads an integer as such where it fits, else as a float, and as text
// where that would lose digits.
func (r *jsonReader) number() (jsonValue, bool) {
	start := r.i
	for r.i < len(r.s) && (isDigit(r.s[r.i]) || strings.IndexByte("+-.eE", r.s[r.i]) >= 0) {
		r.i++
	}
	raw := r.s[start:r.i]
	v, ok := numberValue(raw)
	return jsonValue{raw: raw, val: v}, ok
}

func numberValue(raw string) (attribute.Value, bool) {
	// Looked at first, because the errors of strconv are dear.
	float := false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case isDigit(c) || c == '-' && i == 0:
		case c == '.' || c == 'e' || c == 'E' || (c == '+' || c == '-') && i > 0 && raw[i-1]|0x20 == 'e':
			float = true
		default:
			return attribute.Value{}, false
		}
	}
	if raw == "" || raw == "-" {
		return attribute.Value{}, false
	}
	if float {
		f, ok := parseFloat(raw)
		return attribute.Float64Value(f), ok
	}
	if len(raw) <= 20 { // else it does not fit
		if n, err := strconv.ParseInt(raw, 10, 64); err == nil {
			return attribute.Int64Value(n), true
		}
	}
	return attribute.StringValue(raw), true
}

func parseFloat(s string) (float64, bool) {
	if len(s) > 64 {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil
}

// text reads a string.
func (r *jsonReader) text() (string, bool) {
	if r.i >= len(r.s) || r.s[r.i] != '"' {
		return "", false
	}
	start := r.i + 1
	for j := start; j < len(r.s); j++ {
		switch c := r.s[j]; {
		case c == '"':
			r.i = j + 1
			return r.s[start:j], true
		case c == '\\':
			return r.escaped(start, j)
		case c < ' ' && c != '\t':
			return "", false
		}
	}
	return "", false
}

// escaped reads a string whose first backslash is at j.
func (r *jsonReader) escaped(start, j int) (string, bool) {
	b := make([]byte, 0, len(r.s[start:j])+64)
	b = append(b, r.s[start:j]...)
	for j < len(r.s) {
		c := r.s[j]
		switch {
		case c == '"':
			r.i = j + 1
			return string(b), true
		case c < ' ' && c != '\t':
			return "", false
		case c != '\\':
			b = append(b, c)
			j++
			continue
		}
		if j+1 >= len(r.s) {
			return "", false
		}
		j++
		switch c = r.s[j]; c {
		case '"', '\\', '/':
			b = append(b, c)
		case 'n':
			b = append(b, '\n')
		case 't':
			b = append(b, '\t')
		case 'r':
			b = append(b, '\r')
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'u':
			u := hex4(r.s, j+1)
			if u < 0 {
				return "", false
			}
			j += 4
			if utf16.IsSurrogate(u) && j+2 < len(r.s) && r.s[j+1] == '\\' && r.s[j+2] == 'u' {
				if pair := utf16.DecodeRune(u, hex4(r.s, j+3)); pair != utf8.RuneError {
					u = pair
					j += 6
				}
			}
			if u == 0 {
				b = append(b, nulSign...)
			} else {
				b = utf8.AppendRune(b, u) // half a pair becomes U+FFFD
			}
		default:
			return "", false
		}
		j++
	}
	return "", false
}

func hex4(s string, i int) rune {
	if i+4 > len(s) {
		return -1
	}
	u, err := strconv.ParseUint(s[i:i+4], 16, 32)
	if err != nil {
		return -1
	}
	return rune(u)
}
