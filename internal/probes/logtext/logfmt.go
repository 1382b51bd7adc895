package logtext

import (
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
)

// pair is one key=value of a line.
type pair struct {
	key, value string
	quoted     bool // the value stood in quotes, so it is text
}

// nextPair reads the pair at the start of s and returns the rest, without the
// white space between. ok is false if there is none.
func nextPair(s string) (p pair, rest string, ok bool) {
	i := 0
	for i < len(s) && isKeyByte(s[i]) {
		i++
	}
	if i == 0 || i >= len(s) || s[i] != '=' {
		if i == 0 && strings.HasPrefix(s, `"`) {
			return quotedKey(s)
		}
		return p, s, false
	}
	p.key = s[:i]
	return pairValue(p, s[i+1:])
}

// quotedKey reads a pair whose key log/slog had to quote.
func quotedKey(s string) (p pair, rest string, ok bool) {
	key, n := quotedText(s)
	if n == 0 || n >= len(s) || s[n] != '=' {
		return p, s, false
	}
	p.key = key
	return pairValue(p, s[n+1:])
}

func pairValue(p pair, s string) (pair, string, bool) {
	if strings.HasPrefix(s, `"`) {
		v, n := quotedText(s)
		if n == 0 || n < len(s) && s[n] != ' ' {
			return p, s, false
		}
		p.value, p.quoted = v, true
		return p, strings.TrimLeft(s[n:], " "), true
	}
	n := strings.IndexByte(s, ' ')
	if n < 0 {
		n = len(s)
	}
	p.value = s[:n]
	return p, strings.TrimLeft(s[n:], " "), true
}

// quotedText reads a string in Go's quotes at the start of s; n is 0 if it is
// not one.
func quotedText(s string) (text string, n int) {
	escaped := false
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			if !escaped {
				return s[1:i], i + 1
			}
			if text, err := strconv.Unquote(s[:i+1]); err == nil {
				return text, i + 1
			}
			// Not Go's escapes, yet quoted: as it stands.
			return s[1:i], i + 1
		}
	}
	return "", 0
}

// isKeyByte tells whether c can be in a key: no space, quote, "=" or control.
func isKeyByte(c byte) bool {
	return c > ' ' && c != '=' && c != '"' && c != 0x7f && c != '{' && c != '}' && c != '[' && c != '|' && c != ','
}

// typed turns the text of an unquoted value into a typed one.
func (p pair) typed() attribute.Value {
	if p.quoted || p.value == "" {
		return attribute.StringValue(p.value)
	}
	switch c := p.value[0]; {
	case isDigit(c) || c == '-':
		if v, ok := numberValue(p.value); ok && plainNumber(p.value) {
			return v
		}
	case p.value == "true":
		return attribute.BoolValue(true)
	case p.value == "false":
		return attribute.BoolValue(false)
	}
	return attribute.StringValue(p.value)
}

// plainNumber tells whether the number survives as one: "007" and "1e5" are
// more likely text.
func plainNumber(s string) bool {
	s = strings.TrimPrefix(s, "-")
	if strings.ContainsAny(s, "eE") {
		return strings.Contains(s, "e+") || strings.Contains(s, "e-")
	}
	return s != "" && isDigit(s[0]) && (len(s) == 1 || s[0] != '0' || s[1] == '.')
}

// trailingPairs splits "message key=value key=value" where the pairs begin:
// at the first place from which on there is nothing else.
func trailingPairs(s string) (message, pairs string) {
	for i := 0; i < len(s); {
		rest := s[i:]
		n := 0
		for rest != "" {
			_, after, ok := nextPair(rest)
			if !ok {
				break
			}
			n++
			rest = after
		}
		if rest == "" && n > 0 {
			return strings.TrimRight(s[:i], " "), s[i:]
		}
		// What was read as pairs is part of the message, and so is the word
		// after it.
		i = len(s) - len(rest)
		next := strings.IndexByte(s[i:], ' ')
		if next < 0 {
			break
		}
		for i += next; i < len(s) && s[i] == ' '; i++ {
		}
	}
	return s, ""
}
