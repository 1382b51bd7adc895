package export

import (
	"encoding/binary"
	"math"
	"strings"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/plainframework/agent/internal/probes/event"
)

// Caps on what a single item may carry. A target may make its attributes as
// large as it likes; the agent's memory and the endpoint's limit are not its.
const (
	maxString     = 64 << 10 // bytes of one string
	maxAttributes = 128
	maxEvents     = 128
	maxLinks      = 128
	maxElements   = 1024 // of one list
	maxDepth      = 8    // of nested attribute values
)

// Wire types of protobuf.
const (
	varint    = 0
	fixed64   = 1
	bytesType = 2
	fixed32   = 5
)

// Field tags of opentelemetry/proto/trace/v1 and common/v1: number<<3 | wire type.
const (
	tagScopeSpansSpan = 2<<3 | bytesType

	tagSpanTraceID    = 1<<3 | bytesType
	tagSpanID         = 2<<3 | bytesType
	tagSpanState      = 3<<3 | bytesType
	tagSpanParent     = 4<<3 | bytesType
	tagSpanName       = 5<<3 | bytesType
	tagSpanKind       = 6<<3 | varint
	tagSpanStart      = 7<<3 | fixed64
	tagSpanEnd        = 8<<3 | fixed64
	tagSpanAttribute  = 9<<3 | bytesType
	tagSpanDropped    = 10<<3 | varint
	tagSpanEvent      = 11<<3 | bytesType
	tagSpanLostEvents = 12<<3 | varint
	tagSpanLink       = 13<<3 | bytesType
	tagSpanLostLinks  = 14<<3 | varint
	tagSpanStatus     = 15<<3 | bytesType
	tagSpanFlags      = 16<<3 | fixed32 // two bytes as a varint

	tagEventTime      = 1<<3 | fixed64
	tagEventName      = 2<<3 | bytesType
	tagEventAttribute = 3<<3 | bytesType
	tagEventDropped   = 4<<3 | varint

	tagLinkTraceID   = 1<<3 | bytesType
	tagLinkSpanID    = 2<<3 | bytesType
	tagLinkState     = 3<<3 | bytesType
	tagLinkAttribute = 4<<3 | bytesType
	tagLinkDropped   = 5<<3 | varint

	tagStatusMessage = 2<<3 | bytesType
	tagStatusCode    = 3<<3 | varint

	tagKey   = 1<<3 | bytesType
	tagValue = 2<<3 | bytesType

	tagAnyString = 1<<3 | bytesType
	tagAnyBool   = 2<<3 | varint
	tagAnyInt    = 3<<3 | varint
	tagAnyDouble = 4<<3 | fixed64
	tagAnyArray  = 5<<3 | bytesType
	tagAnyMap    = 6<<3 | bytesType
	tagAnyBytes  = 7<<3 | bytesType

	tagElement = 1<<3 | bytesType // of ArrayValue and KeyValueList
)

// Bits 8 and 9 of the flags of a span: whether it is known that the parent is
// remote, and whether it is.
const (
	flagHasIsRemote = 0x100
	flagIsRemote    = 0x200
)

// appendSpan appends s as one element of ScopeSpans.spans.
func appendSpan(b []byte, s *event.Span) []byte {
	b, at := begin(b, tagScopeSpansSpan)
	b = append(b, tagSpanTraceID, 16)
	b = append(b, s.TraceID[:]...)
	b = append(b, tagSpanID, 8)
	b = append(b, s.SpanID[:]...)
	if s.TraceState != "" {
		b = appendString(b, tagSpanState, s.TraceState)
	}
	if s.ParentID.IsValid() {
		b = append(b, tagSpanParent, 8)
		b = append(b, s.ParentID[:]...)
	}
	b = appendString(b, tagSpanName, s.Name)
	b = appendVarint(b, tagSpanKind, uint64(s.Kind)) // the numbers of the API are those of the wire
	b = appendFixed64(b, tagSpanStart, uint64(s.Start))
	b = appendFixed64(b, tagSpanEnd, uint64(s.End))
	b = appendAttributes(b, tagSpanAttribute, tagSpanDropped, s.Attributes)
	b = appendEvents(b, s.Events)
	b = appendLinks(b, s.Links)
	if s.Status != codes.Unset {
		b = appendStatus(b, s.Status, s.StatusMessage)
	}
	flags := uint32(s.Flags) | flagHasIsRemote
	if s.RemoteParent {
		flags |= flagIsRemote
	}
	b = protowire.AppendVarint(b, tagSpanFlags)
	b = binary.LittleEndian.AppendUint32(b, flags)
	return end(b, at)
}

func appendEvents(b []byte, events []event.SpanEvent) []byte {
	for i := range events {
		if i == maxEvents {
			return appendVarint(b, tagSpanLostEvents, uint64(len(events)-maxEvents))
		}
		e := &events[i]
		var at int
		b, at = begin(b, tagSpanEvent)
		b = appendFixed64(b, tagEventTime, uint64(e.Time))
		b = appendString(b, tagEventName, e.Name)
		b = appendAttributes(b, tagEventAttribute, tagEventDropped, e.Attributes)
		b = end(b, at)
	}
	return b
}

func appendLinks(b []byte, links []event.SpanLink) []byte {
	for i := range links {
		if i == maxLinks {
			return appendVarint(b, tagSpanLostLinks, uint64(len(links)-maxLinks))
		}
		l := &links[i]
		var at int
		b, at = begin(b, tagSpanLink)
		b = append(b, tagLinkTraceID, 16)
		b = append(b, l.TraceID[:]...)
		b = append(b, tagLinkSpanID, 8)
		b = append(b, l.SpanID[:]...)
		if l.TraceState != "" {
			b = appendString(b, tagLinkState, l.TraceState)
		}
		b = appendAttributes(b, tagLinkAttribute, tagLinkDropped, l.Attributes)
		b = end(b, at)
	}
	return b
}

// appendStatus maps the code: on the wire Ok is 1 and Error is 2.
func appendStatus(b []byte, code codes.Code, message string) []byte {
	b, at := begin(b, tagSpanStatus)
	if message != "" {
		b = appendString(b, tagStatusMessage, message)
	}
	wire := uint64(2)
	if code == codes.Ok {
		wire = 1
	}
	b = appendVarint(b, tagStatusCode, wire)
	return end(b, at)
}

func appendAttributes(b []byte, tag, tagDropped byte, attrs []attribute.KeyValue) []byte {
	dropped := 0
	if len(attrs) > maxAttributes {
		dropped = len(attrs) - maxAttributes
		attrs = attrs[:maxAttributes]
	}
	for i := range attrs {
		b = appendAttribute(b, tag, &attrs[i], 0)
	}
	if dropped > 0 {
		b = appendVarint(b, tagDropped, uint64(dropped))
	}
	return b
}

// appendAttribute appends a KeyValue. Nearly all are short strings and
// integers, whose lengths are one byte each and known before; the lengths of
// others are patched afterwards.
func appendAttribute(b []byte, tag byte, kv *attribute.KeyValue, depth int) []byte {
	key := clean(string(kv.Key))
	switch kv.Value.Type() {
	case attribute.STRING:
		s := clean(kv.Value.AsString())
		if k, n := len(key), len(s); k+n < 0x80-6 {
			b = append(b, tag, byte(k+n+6), tagKey, byte(k))
			b = append(b, key...)
			b = append(b, tagValue, byte(n+2), tagAnyString, byte(n))
			return append(b, s...)
		}
	case attribute.INT64:
		v := uint64(kv.Value.AsInt64())
		if k, n := len(key), protowire.SizeVarint(v); k+n < 0x80-5 {
			b = append(b, tag, byte(k+n+5), tagKey, byte(k))
			b = append(b, key...)
			b = append(b, tagValue, byte(n+1), tagAnyInt)
			return protowire.AppendVarint(b, v)
		}
	}
	b, at := begin(b, tag)
	b = append(b, tagKey)
	b = protowire.AppendString(b, key)
	b = appendValue(b, tagValue, kv.Value, depth)
	return end(b, at)
}

// appendValue appends an AnyValue as the field tag.
func appendValue(b []byte, tag byte, v attribute.Value, depth int) []byte {
	b, at := begin(b, tag)
	if depth > maxDepth {
		return end(b, at) // an empty value
	}
	switch v.Type() {
	case attribute.STRING:
		b = appendString(b, tagAnyString, v.AsString())
	case attribute.BOOL:
		b = append(b, tagAnyBool, boolByte(v.AsBool()))
	case attribute.INT64:
		b = appendVarint(b, tagAnyInt, uint64(v.AsInt64()))
	case attribute.FLOAT64:
		b = appendFixed64(b, tagAnyDouble, math.Float64bits(v.AsFloat64()))
	case attribute.BYTESLICE:
		data := v.AsByteSlice()
		b = append(b, tagAnyBytes)
		b = protowire.AppendBytes(b, data[:min(len(data), maxString)])
	case attribute.MAP:
		var inner int
		b, inner = begin(b, tagAnyMap)
		for i, kv := range v.AsMap() {
			if i == maxAttributes {
				break
			}
			b = appendAttribute(b, tagElement, &kv, depth+1)
		}
		b = end(b, inner)
	default:
		b = appendArray(b, v, depth)
	}
	return end(b, at)
}

// appendArray appends the lists; an EMPTY value appends nothing, as it should.
func appendArray(b []byte, v attribute.Value, depth int) []byte {
	var values []attribute.Value
	switch v.Type() {
	case attribute.STRINGSLICE:
		values = valuesOf(v.AsStringSlice(), attribute.StringValue)
	case attribute.INT64SLICE:
		values = valuesOf(v.AsInt64Slice(), attribute.Int64Value)
	case attribute.FLOAT64SLICE:
		values = valuesOf(v.AsFloat64Slice(), attribute.Float64Value)
	case attribute.BOOLSLICE:
		values = valuesOf(v.AsBoolSlice(), attribute.BoolValue)
	case attribute.SLICE:
		values = v.AsSlice()
	default:
		return b
	}
	b, at := begin(b, tagAnyArray)
	for _, e := range values[:min(len(values), maxElements)] {
		b = appendValue(b, tagElement, e, depth+1)
	}
	return end(b, at)
}

func valuesOf[T any](in []T, value func(T) attribute.Value) []attribute.Value {
	out := make([]attribute.Value, len(in))
	for i, v := range in {
		out[i] = value(v)
	}
	return out
}

// begin starts a nested message: its tag, and one byte for its length. The
// position that it returns is for end.
func begin(b []byte, tag byte) ([]byte, int) {
	b = append(b, tag, 0)
	return b, len(b)
}

// end writes the length of the message that began at at, and moves the message
// where the length needs more than one byte.
func end(b []byte, at int) []byte {
	n := len(b) - at
	if n < 0x80 {
		b[at-1] = byte(n)
		return b
	}
	var length [binary.MaxVarintLen64]byte
	size := binary.PutUvarint(length[:], uint64(n))
	b = append(b, length[1:size]...) // room: any bytes will do
	copy(b[at-1+size:], b[at:at+n])
	copy(b[at-1:], length[:size])
	return b
}

func appendString(b []byte, tag byte, s string) []byte {
	return protowire.AppendString(append(b, tag), clean(s))
}

func appendVarint(b []byte, tag byte, v uint64) []byte {
	return protowire.AppendVarint(append(b, tag), v)
}

func appendFixed64(b []byte, tag byte, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(append(b, tag), v)
}

func boolByte(v bool) byte {
	if v {
		return 1
	}
	return 0
}

// clean makes s fit for a protobuf string: one that is not UTF-8 would make the
// endpoint refuse the whole request.
func clean(s string) string { return cleanTo(s, maxString) }

func cleanTo(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
		for range utf8.UTFMax - 1 { // not in the middle of a rune
			if r, size := utf8.DecodeLastRuneInString(s); r != utf8.RuneError || size != 1 {
				break
			}
			s = s[:len(s)-1]
		}
	}
	if utf8.ValidString(s) {
		return s
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}
