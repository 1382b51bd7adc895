// Package logtext turns what a process writes to its standard error into log
// records: writes → lines → records → fields.
//
//   - A line goes on with the next write of the same goroutine, never with that
//     of another. Lines of up to 64 KiB are whole whatever the pieces they come
//     in; longer ones are cut, and the attribute log.truncated_bytes says by how
//     much.
//   - A stack trace, an indented continuation, and the further lines of a
//     message with line breaks belong to the record before them, if the same
//     goroutine wrote it at most 100 ms earlier.
//   - JSON (log/slog, zap, zerolog, logrus, klog, hclog), logfmt (slog text,
//     logrus, go-kit), klog and glog, package log with slog's default handler,
//     and the consoles of zap, zerolog, logrus and hclog are understood:
//     severity, time, message, fields with their types, place in the code,
//     error and stack, trace ids. Anything else is a body without severity, and
//     passes the floor. Fields that are null are left out; of equal keys the
//     last counts; numeric levels are attributes, as nobody can say whose they
//     are.
//   - What the Go runtime writes when a process dies of a panic or fatal error
//     is one record of severity FATAL.
//   - Text is made valid UTF-8 (U+FFFD for what is not), NUL becomes the visible
//     U+2400, for many stores reject it, and colour codes of terminals go.
//
// A line without a zone or a year gets the one that puts it next to the time at
// which the kernel saw it.
package logtext

import (
	"encoding/binary"
	"strings"
	"time"
	"unicode/utf8"
	"unsafe"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/internal/probes/event"
)

const (
	maxLine    = 64 << 10  // of one line
	maxRecord  = 128 << 10 // of all lines of a record
	maxHeld    = 2 << 20   // of all unfinished text of a process
	maxWriters = 4096      // goroutines with unfinished text

	// A record waits so long for more lines of its writer, an unfinished line
	// for its end, and a crash for more stacks.
	holdRecord = 100 * time.Millisecond
	holdLine   = time.Second
	holdCrash  = 2 * time.Second
	// holdLongest is for a line or record that never seems to end.
	holdLongest = 10 * time.Second
)

// Attributes that no semantic convention names.
const (
	// TruncatedKey is how many bytes of a record were cut off.
	TruncatedKey = attribute.Key("log.truncated_bytes")
	// DroppedKey is how many lines the record of a rate limit stands for.
	DroppedKey = attribute.Key("log.dropped_lines")
)

// Chunk is one write to standard error.
type Chunk struct {
	Time   int64  // Unix time, ns, at which the kernel saw it
	Writer uint64 // tells the writing goroutine from all others of the process
	Data   []byte // only read during the call
	// Missing is how many bytes at the end of the write were not captured. They
	// are taken to end with the line.
	Missing int

	// Of the span that was current on the goroutine; zero if none.
	TraceID trace.TraceID
	SpanID  trace.SpanID
	Flags   trace.TraceFlags
}

// Options say what becomes of the records of a process.
type Options struct {
	Process *event.Process // of each record
	Scope   *event.Scope   // of each record

	// Floor is the least severity that is kept; 0 keeps all. Records without
	// severity are kept.
	Floor log.Severity
	// Redact hides secrets; nil hides none.
	Redact *Redactor
	// Rate is how many lines a second are kept, and Burst how many at once; 0
	// stands for 1000 and 5000. A negative Rate keeps all. Crashes are always
	// kept.
	Rate, Burst int
}

// Stats counts what became of the lines of a process. Each line is in exactly
// one of Kept, BelowFloor, RateLimited, SDKErrors and Empty, as soon as its
// record is complete.
type Stats struct {
	Lines       uint64 // seen
	Kept        uint64 // in a record that was handed on
	Records     uint64 // handed on; without those of the rate limit
	BelowFloor  uint64
	RateLimited uint64
	SDKErrors   uint64 // of an OpenTelemetry exporter inside the process
	Empty       uint64 // without text
	Truncated   uint64 // bytes cut off
}

// nulSign stands for NUL.
const nulSign = "\u2400"

// clean makes text valid and visible. It returns s itself if nothing is to do.
func clean(s string) string {
	if !needsCleaning(s) {
		return s
	}
	s = strings.ToValidUTF8(s, "\uFFFD")
	if strings.IndexByte(s, 0x1b) >= 0 {
		s = withoutColour(s)
	}
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", nulSign)
	}
	return s
}

// needsCleaning tells whether s has bytes that are not ASCII, NUL or escapes.
// It looks at eight bytes at once: this is done for each line.
func needsCleaning(s string) bool {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	b := unsafe.Slice(unsafe.StringData(s), len(s))
	for ; len(b) >= 8; b = b[8:] {
		x := binary.LittleEndian.Uint64(b)
		esc := x ^ 0x1b*ones
		// A byte under one borrows: the high bit is set where a byte is zero,
		// or was set already.
		if (x|(x-ones)|(esc-ones))&highs != 0 {
			return true
		}
	}
	for _, c := range b {
		if c == 0 || c == 0x1b || c >= utf8.RuneSelf {
			return true
		}
	}
	return false
}

// withoutColour drops the control sequences of terminals, ESC [ … letter.
func withoutColour(s string) string {
	var b strings.Builder
	b.Grow(len(s))
	for {
		i := strings.Index(s, "\x1b[")
		if i < 0 {
			b.WriteString(s)
			return b.String()
		}
		j := i + 2
		for j < len(s) && j < i+32 && s[j] >= 0x20 && s[j] <= 0x3f {
			j++
		}
		if j >= len(s) || s[j] < 0x40 || s[j] > 0x7e { // no such sequence
			b.WriteString(s[:i+1])
			s = s[i+1:]
			continue
		}
		b.WriteString(s[:i])
		s = s[j+1:]
	}
}
