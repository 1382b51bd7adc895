package logtext

import (
	"encoding/hex"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"
)

// maxAttributes bounds the fields of one record that become attributes.
const maxAttributes = 128

// record is what is understood of the text of one log record.
type record struct {
	observed int64

	time    int64
	sev     log.Severity
	sevText string
	body    string
	hasBody bool
	millis  bool // the time is milliseconds with a fraction, as klog writes it
	std     bool // written by package log, with date and time and nothing else
	attrs   []attribute.KeyValue
	traceID trace.TraceID
	spanID  trace.SpanID

	err, errType, stack string
	file, function      string
	line                int64
}

// parse understands text, one line or several, in whichever format it is. What
// is in none is a body without severity. Cut says that its end is missing.
func (r *record) parse(text string, cut bool) {
	first, rest, _ := strings.Cut(text, "\n")
	switch classify(first) {
	case formatJSON:
		if r.json(text, cut) {
			r.finish()
			return
		}
	case formatKlog:
		r.klog(first, rest)
	case formatStdlog:
		r.stdlog(first, rest)
	case formatISO:
		r.console(first, rest)
	case formatPairs:
		if !r.pairs(first) {
			break
		}
		r.more(rest)
	case formatShort:
		r.short(first, rest)
	}
	if !r.hasBody && r.sev == 0 && r.time == 0 && len(r.attrs) == 0 {
		r.body = text
		if stack := stackStart(text); stack >= 0 {
			r.body, r.stack = strings.TrimRight(text[:stack], "\n"), text[stack:]
			if stack == 0 {
				r.body, _, _ = strings.Cut(text, "\n")
			}
		}
	}
	r.finish()
}

// finish adds what was found under names of its own.
func (r *record) finish() {
	if strings.IndexByte(r.body, '\n') >= 0 && r.stack == "" {
		body := r.body
		r.body = ""
		r.more(body)
		r.body = strings.TrimPrefix(r.body, "\n")
	}
	r.servedPanic()
	if r.file != "" {
		r.put(semconv.CodeFilePath(r.file))
		if r.line > 0 {
			r.put(semconv.CodeLineNumberKey.Int64(r.line))
		}
	}
	if r.function != "" {
		r.put(semconv.CodeFunctionName(r.function))
	}
	if r.errType != "" {
		r.put(semconv.ExceptionType(r.errType))
	}
	if r.err != "" {
		r.put(semconv.ExceptionMessage(r.err))
	}
	if r.stack != "" {
		// Without an error it is the stack of the log call.
		if r.err != "" || r.errType != "" || strings.HasPrefix(r.stack, "goroutine ") {
			r.put(semconv.ExceptionStacktrace(r.stack))
		} else {
			r.put(semconv.CodeStacktrace(r.stack))
		}
	}
}

func (r *record) put(kv attribute.KeyValue) {
	if kv.Key != "" {
		r.attrs = putLast(r.attrs, kv)
	}
}

// message sets the body.
func (r *record) message(s string) {
	r.body, r.hasBody = s, true
}

// json reads a record that is one JSON object. It is none of a logger's if it
// has neither message nor level nor time; then nothing is kept of it. Of one
// whose end is missing, the fields before that are.
func (r *record) json(text string, cut bool) bool {
	j := jsonReader{s: text}
	ok := j.object(0, r.field)
	j.space()
	if (ok && j.i == len(text) || cut) && (r.hasBody || r.sev != 0 || r.time != 0) {
		if r.sev == 0 && r.sevText == "" {
			r.klogJSON()
		}
		return true
	}
	*r = record{observed: r.observed, attrs: r.attrs[:0]}
	return false
}

// klogJSON gives records of klog's JSON format the severity that klog means:
// it writes no level, but the time as milliseconds with a fraction, the place,
// and for all but errors the verbosity.
func (r *record) klogJSON() {
	if !r.millis || !r.hasBody || r.file == "" {
		return
	}
	r.sev = log.SeverityError1
	for _, kv := range r.attrs {
		if kv.Key == "v" && kv.Value.Type() == attribute.INT64 {
			r.sev = log.SeverityInfo1
			if kv.Value.AsInt64() > 3 { // from 4 on it is for debugging, by Kubernetes' convention
				r.sev = log.SeverityDebug1
			}
		}
	}
}

// field takes one field of a record: by its name it is part of the record
// itself, or an attribute. The first field of a kind counts.
func (r *record) field(key string, v jsonValue) {
	if key == "" || v.val.Type() == attribute.EMPTY {
		return
	}
	if r.own(key, v) {
		return
	}
	r.put(attribute.KeyValue{Key: attribute.Key(key), Value: v.val})
}

func (r *record) own(key string, v jsonValue) bool {
	switch strings.TrimPrefix(key, "@") {
	case "msg", "message":
		if !r.hasBody && v.str {
			r.message(plainText(v.raw))
			return true
		}
	case "level", "lvl", "severity", "log.level", "levelname":
		// A number is a level of bunyan, pino or the program itself: nobody
		// can say which.
		if r.sevText == "" && v.str && v.raw != "" {
			r.sevText = plainText(v.raw)
			r.sev = severityOf(r.sevText)
			return true
		}
	case "time", "ts", "timestamp", "t", "datetime":
		if t := timeValue(v.raw, r.observed); r.time == 0 && t != 0 {
			r.time = t
			r.millis = !v.str && key == "ts" && strings.IndexByte(v.raw, '.') == 13
			return true
		}
	case "caller", "source", "file", "func", "function":
		return r.code(key, v)
	case "error", "err", "exception.message":
		if r.err == "" && v.str && v.raw != "" {
			r.err = v.raw
			return true
		}
	case "exception.type", "error.type":
		if r.errType == "" && v.str && key == "exception.type" {
			r.errType = v.raw
			return true
		}
	case "stacktrace", "stack", "stack_trace", "exception.stacktrace":
		if r.stack == "" && v.raw != "" && (v.str || v.raw[0] == '[') {
			r.stack = v.raw
			return true
		}
	case "trace_id", "traceid", "traceId", "traceID", "TraceID", "trace.id":
		return v.str && decodeID(r.traceID[:], v.raw)
	case "span_id", "spanid", "spanId", "spanID", "SpanID", "span.id":
		return v.str && decodeID(r.spanID[:], v.raw)
	}
	return false
}

// plainText drops colours that a logger escaped.
func plainText(s string) string {
	if strings.IndexByte(s, 0x1b) >= 0 {
		return withoutColour(s)
	}
	return s
}

// decodeID reads a hexadecimal id of the right length that is not zero.
func decodeID(id []byte, s string) bool {
	if len(s) != 2*len(id) || strings.Trim(s, "0") == "" {
		return false
	}
	var buf [16]byte
	if _, err := hex.Decode(buf[:len(id)], []byte(s)); err != nil {
		return false
	}
	copy(id, buf[:len(id)])
	return true
}

// code takes the place in the program that a field names.
func (r *record) code(key string, v jsonValue) bool {
	if !v.str {
		return key == "source" && r.codeObject(v)
	}
	if key == "func" || key == "function" {
		if r.function == "" && strings.ContainsAny(v.raw, "./") {
			r.function = v.raw
			return true
		}
		return false
	}
	file, line := fileLine(v.raw)
	if line == 0 || r.file != "" {
		return false
	}
	r.file, r.line = file, line
	return true
}

// codeObject takes {"function":…,"file":…,"line":…} of log/slog.
func (r *record) codeObject(v jsonValue) bool {
	if v.val.Type() != attribute.MAP || r.file != "" {
		return false
	}
	var file, function string
	var line int64
	for _, kv := range v.val.AsMap() {
		switch kv.Key {
		case "function":
			function = kv.Value.AsString()
		case "file":
			file = kv.Value.AsString()
		case "line":
			line = kv.Value.AsInt64()
		}
	}
	if file == "" || line <= 0 {
		return false
	}
	r.file, r.line, r.function = file, line, function
	return true
}

// fileLine splits "dir/file.go:12". The line is 0 if s is not of that form.
func fileLine(s string) (string, int64) {
	i := strings.LastIndexByte(s, ':')
	if i < 4 || len(s)-i > 9 || strings.ContainsAny(s[:i], " \t\n") || s[i-3:i] != ".go" && s[i-2:i] != ".s" {
		return "", 0
	}
	n, err := strconv.ParseUint(s[i+1:], 10, 31)
	if err != nil || n == 0 {
		return "", 0
	}
	return s[:i], int64(n)
}

// pairs reads a record of key=value pairs and nothing else. It is none of a
// logger's if it has neither message nor level nor time.
func (r *record) pairs(s string) bool {
	for rest := s; rest != ""; {
		p, after, ok := nextPair(rest)
		if !ok {
			*r = record{observed: r.observed, attrs: r.attrs[:0]}
			return false
		}
		r.pair(p)
		rest = after
	}
	if r.hasBody || r.sev != 0 || r.time != 0 {
		return true
	}
	*r = record{observed: r.observed, attrs: r.attrs[:0]}
	return false
}

func (r *record) pair(p pair) {
	v := jsonValue{raw: p.value, str: true}
	if r.own(p.key, v) {
		return
	}
	r.put(attribute.KeyValue{Key: attribute.Key(p.key), Value: p.typed()})
}

// more takes the lines after the first: a stack trace, or the rest of the
// message.
func (r *record) more(rest string) {
	if rest == "" {
		return
	}
	i := stackStart(rest)
	if i < 0 {
		r.body += "\n" + rest
		return
	}
	if i > 0 {
		r.body += "\n" + strings.TrimRight(rest[:i], "\n")
	}
	if r.stack == "" {
		r.stack = rest[i:]
	}
}

// stackStart returns where a Go stack trace begins in text, or -1.
func stackStart(text string) int {
	if strings.HasPrefix(text, "goroutine ") {
		return 0
	}
	if i := strings.Index(text, "\ngoroutine "); i >= 0 && strings.Contains(text[i:], "]:\n") {
		return i + 1
	}
	// Without that heading: a function, and below it, indented, its place.
	i := strings.Index(text, "\n\t")
	if i < 0 {
		return -1
	}
	end := strings.IndexByte(text[i+1:], '\n')
	if end < 0 {
		end = len(text) - i - 1
	}
	place, _, _ := strings.Cut(strings.TrimSpace(text[i+1:i+1+end]), " ")
	if _, line := fileLine(place); line == 0 {
		return -1
	}
	if start := strings.LastIndexByte(text[:i], '\n') + 1; isFunctionLine(text[start:i]) {
		return start
	}
	return -1
}

// sdkError recognises what the default error handler of OpenTelemetry for Go
// writes, through package log, when an exporter inside the process fails. Such
// lines come with each attempt, and tell of a road that this agent goes too.
func (r *record) sdkError() bool {
	if !r.std || r.sev != 0 || r.file != "" {
		return false
	}
	if strings.HasPrefix(r.body, "traces export: ") || strings.HasPrefix(r.body, "failed to upload metrics: ") || strings.HasPrefix(r.body, "OTLP partial success: ") {
		return true
	}
	if !strings.Contains(r.body, `Post "http`) && !strings.HasPrefix(r.body, "failed to send ") {
		return false
	}
	return strings.Contains(r.body, "/v1/traces") || strings.Contains(r.body, "/v1/metrics") || strings.Contains(r.body, "/v1/logs")
}
