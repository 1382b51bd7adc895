package export

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"google.golang.org/protobuf/encoding/protowire"
)

// maxUnpacked bounds what a packet may unpack to; the exporters refuse to make
// a larger one.
const maxUnpacked = 64 << 20

// halve splits a packet into two that hold half of its items each. It works on
// the wire form, which has the same shape for all signals,
//
//	request { 1: resource group { 2: scope group { 2: item }}}
//
// and needs nothing but the packet, so that it serves for one that was stored,
// too. The item of metrics is a whole metric with its points.
func (p packet) halve() (packet, packet, error) {
	raw, err := p.raw()
	if err != nil {
		return p, p, fmt.Errorf("unpack request: %w", err)
	}
	total := 0
	eachItem(raw, func([]byte) { total++ })
	if total < 2 {
		return p, p, errors.New("it is a single item")
	}
	a, b := p, p
	if a.items, a.body, err = p.part(raw, 0, total/2); err != nil {
		return p, p, err
	}
	if b.items, b.body, err = p.part(raw, total/2, total); err != nil {
		return p, p, err
	}
	a.items = p.items - b.items // together they are what the whole was
	return a, b, nil
}

// raw returns the body before compression.
func (p packet) raw() ([]byte, error) {
	if !p.gzip {
		return p.body, nil
	}
	z, err := gzip.NewReader(bytes.NewReader(p.body))
	if err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(io.LimitReader(z, maxUnpacked+1))
	if err == nil && len(raw) > maxUnpacked {
		err = errors.New("larger than any request")
	}
	return raw, err
}

// part returns the request with the items from first up to limit, packed, and
// how many that are in the unit of the signal.
func (p packet) part(raw []byte, first, limit int) (items int, body []byte, err error) {
	n := 0
	keep := func(item []byte) bool {
		n++
		if n <= first || n > limit {
			return false
		}
		if p.signal == signalMetrics {
			items += countPoints(item)
		} else {
			items++
		}
		return true
	}
	out := filterGroups(raw, 1, func(resource []byte) []byte {
		return filterGroups(resource, 2, func(scope []byte) []byte {
			return filterGroups(scope, 2, func(item []byte) []byte {
				if keep(item) {
					return item
				}
				return nil
			})
		})
	})
	if !p.gzip {
		return items, out, nil
	}
	var buf bytes.Buffer
	z, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed) // the level is valid
	if _, err := z.Write(out); err != nil {
		return 0, nil, err
	}
	err = z.Close()
	return items, buf.Bytes(), err
}

// filterGroups copies a message, with each field num replaced by what f makes
// of it; one that becomes nil is left out. A message that had such fields and
// has none left is nil itself.
func filterGroups(msg []byte, num protowire.Number, f func([]byte) []byte) []byte {
	out := make([]byte, 0, len(msg)/2)
	kept, seen := false, false
	eachRawField(msg, func(n protowire.Number, typ protowire.Type, field, value []byte) {
		if n != num || typ != protowire.BytesType {
			out = append(out, field...)
			return
		}
		seen = true
		if v := f(value); v != nil {
			kept = true
			out = protowire.AppendTag(out, num, protowire.BytesType)
			out = protowire.AppendBytes(out, v)
		}
	})
	if seen && !kept {
		return nil
	}
	return out
}

// eachItem calls f for each item of a request.
func eachItem(raw []byte, f func([]byte)) {
	eachBytes(raw, 1, func(resource []byte) {
		eachBytes(resource, 2, func(scope []byte) { eachBytes(scope, 2, f) })
	})
}

// countPoints counts the data points of a Metric: field 1 of its gauge (5), sum
// (7) or histogram (9).
func countPoints(metric []byte) (n int) {
	for _, kind := range []protowire.Number{5, 7, 9} {
		eachBytes(metric, kind, func(data []byte) { eachBytes(data, 1, func([]byte) { n++ }) })
	}
	return n
}

func eachBytes(msg []byte, num protowire.Number, f func([]byte)) {
	eachField(msg, func(n protowire.Number, typ protowire.Type, value []byte) {
		if n == num && typ == protowire.BytesType {
			f(value)
		}
	})
}

func eachField(msg []byte, f func(num protowire.Number, typ protowire.Type, value []byte)) {
	eachRawField(msg, func(num protowire.Number, typ protowire.Type, _, value []byte) { f(num, typ, value) })
}

// eachRawField walks the fields of a message until its end or the first byte
// that is not one: field is the whole with its tag, value what follows the tag
// (and the length, for bytes).
func eachRawField(msg []byte, f func(num protowire.Number, typ protowire.Type, field, value []byte)) {
	for len(msg) > 0 {
		num, typ, tagLen := protowire.ConsumeTag(msg)
		if tagLen < 0 {
			return
		}
		valLen := protowire.ConsumeFieldValue(num, typ, msg[tagLen:])
		if valLen < 0 {
			return
		}
		field := msg[:tagLen+valLen]
		value := field[tagLen:]
		if typ == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		f(num, typ, field, value)
		msg = msg[tagLen+valLen:]
	}
}
