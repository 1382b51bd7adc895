package logtext

import (
	"fmt"
	"regexp"
	"strings"

	"go.opentelemetry.io/otel/attribute"

	"github.com/plainframework/agent/internal/probes/event"
)

// Redacted stands in place of what was hidden.
const Redacted = "[redacted]"

// maxPatterns bounds the patterns of the configuration.
const maxPatterns = 64

// Redactor hides secrets in log records: in bodies, and in the text of
// attributes of any depth. By itself it knows
//
//   - credentials after "Bearer" and "Basic";
//   - tokens with a well-known beginning: AWS access keys, GitHub, GitLab,
//     Slack, Google, Stripe, npm, and JSON Web Tokens;
//   - PEM private keys;
//   - payment card numbers: the length and beginning of a known brand, in
//     groups or not, and a valid check digit;
//   - the value after the name of a secret, as in password=…, "api_key": "…";
//     an attribute of such a name loses its whole value;
//   - the password in scheme://user:password@host.
//
// It is safe for concurrent use.
type Redactor struct {
	builtin  bool
	patterns []*regexp.Regexp
}

// NewRedactor returns a redactor with the patterns above, if builtin is set,
// and with regular expressions of the configuration. Of an expression with a
// group, only the first group is hidden.
func NewRedactor(builtin bool, patterns []string) (*Redactor, error) {
	if len(patterns) > maxPatterns {
		return nil, fmt.Errorf("redaction: %d patterns, at most %d", len(patterns), maxPatterns)
	}
	r := &Redactor{builtin: builtin}
	for i, p := range patterns {
		re, err := regexp.Compile(p)
		if err != nil {
			return nil, fmt.Errorf("redaction pattern %d: %w", i+1, err)
		}
		if re.MatchString("") {
			return nil, fmt.Errorf("redaction pattern %d matches the empty text", i+1)
		}
		r.patterns = append(r.patterns, re)
	}
	return r, nil
}

func (r *Redactor) log(l *event.Log) {
	l.Body = r.Text(l.Body)
	r.attributes(l.Attributes)
}

// Text returns s with all secrets hidden.
func (r *Redactor) Text(s string) string {
	if r.builtin {
		s = redactBuiltin(s)
	}
	for _, re := range r.patterns {
		s = redactPattern(s, re)
	}
	return s
}

func redactPattern(s string, re *regexp.Regexp) string {
	var b strings.Builder
	end := 0
	for _, m := range re.FindAllStringSubmatchIndex(s, -1) {
		from, to := m[0], m[1]
		if len(m) >= 4 && m[2] >= 0 {
			from, to = m[2], m[3]
		}
		if from < end || from == to {
			continue
		}
		b.WriteString(s[end:from])
		b.WriteString(Redacted)
		end = to
	}
	if end == 0 {
		return s
	}
	b.WriteString(s[end:])
	return b.String()
}

func (r *Redactor) attributes(kvs []attribute.KeyValue) {
	for i := range kvs {
		kv := &kvs[i]
		if r.builtin && secretName(string(kv.Key)) && hidable(kv.Value) {
			kv.Value = attribute.StringValue(Redacted)
		} else if v, changed := r.value(&kv.Value); changed {
			kv.Value = v
		}
	}
}

// hidable tells whether a value can be a secret: "token": true is none.
func hidable(v attribute.Value) bool {
	switch v.Type() {
	case attribute.BOOL, attribute.EMPTY, attribute.FLOAT64:
		return false
	case attribute.STRING:
		return v.AsString() != ""
	}
	return true
}

// value returns v without secrets, if it has any.
func (r *Redactor) value(v *attribute.Value) (hidden attribute.Value, changed bool) {
	switch v.Type() {
	case attribute.STRING:
		s := v.AsString()
		t := r.Text(s)
		return attribute.StringValue(t), len(t) != len(s) || t != s
	case attribute.INT64:
		if n := v.AsInt64(); r.builtin && n > 1e12 {
			if s := v.String(); redactBuiltin(s) != s { // a card number
				return attribute.StringValue(Redacted), true
			}
		}
	case attribute.MAP:
		kvs := v.AsMap()
		r.attributes(kvs)
		return attribute.MapValue(kvs...), true
	case attribute.SLICE:
		values := v.AsSlice()
		for i := range values {
			if w, changed := r.value(&values[i]); changed {
				values[i] = w
			}
		}
		return attribute.SliceValue(values...), true
	}
	return attribute.Value{}, false
}
