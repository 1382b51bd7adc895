package probes

import (
	"bytes"
	"encoding/binary"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/process"
)

// httpLayouts are where requests of each kind of server lie in a binary, by enum
// http_server.
type httpLayouts [bpf.AgentHttpServerHTTP_SERVERS]bpf.AgentNethttpLayout

func (k *kernel) httpLayouts(binary uint32) (l httpLayouts, err error) {
	for i := range l {
		if err := k.mapOf("nethttp_layouts").Lookup(uint32(i)*maxBinaries+binary, &l[i]); err != nil {
			return l, err
		}
	}
	return l, nil
}

// httpSnapshot makes the record that the kernel would make if a request ended now, nil if
// that cannot be read. The memory is that of a process that is not trusted.
func httpSnapshot(read process.Reader, layouts *httpLayouts, s *overdueSpan, binaryID uint32) []byte {
	frame := &s.goroutine.Frames[0]
	l := &layouts[int(frame.Object[1])%len(layouts)] // SERVER_WHICH of bpf/nethttp.h
	response, err := readBytes(read, frame.Object[0], l.ResponseSize)
	if err != nil {
		return nil
	}
	at := frame.Object[0] + uint64(l.ResponseReq)
	if l.RequestInline == 0 {
		at = word(response, l.ResponseReq)
	}
	request, err := readBytes(read, at, l.RequestSize)
	if err != nil {
		return nil
	}
	r := bpf.AgentHttpServerRecord{Header: s.header(binaryID)}
	r.Header.Flags |= uint32(bpf.AgentSpanFlagsSPAN_ABORTED | bpf.AgentSpanFlagsSPAN_CUT_OFF)
	if word(request, l.RequestTls) != 0 {
		r.Header.Flags |= uint32(bpf.AgentSpanFlagsSPAN_TLS)
	}
	if byte(word(response, l.ResponseWroteHeader)) != 0 {
		r.Status = uint16(word(response, l.ResponseStatus))
	}
	r.ProtoMajor, r.ProtoMinor = byte(word(request, l.RequestProtoMajor)), byte(word(request, l.RequestProtoMinor))

	var texts [bpf.AgentHttpTextHTTP_TEXTS][]byte
	for text, from := range map[bpf.AgentHttpText]struct{ offset, limit uint32 }{
		bpf.AgentHttpTextTEXT_METHOD:      {l.RequestMethod, maxMethod},
		bpf.AgentHttpTextTEXT_URI:         {l.RequestUri, 1024},
		bpf.AgentHttpTextTEXT_HOST:        {l.RequestHost, 256},
		bpf.AgentHttpTextTEXT_REMOTE_ADDR: {l.RequestRemoteAddr, 64},
	} {
		n := min(uint32(min(word(request, from.offset+8), 1<<20)), from.limit)
		if texts[text], err = readBytes(read, word(request, from.offset), n); err != nil {
			return nil
		}
	}
	route := s.goroutine.Route[:min(int(s.goroutine.RouteLen), len(s.goroutine.Route))]
	texts[bpf.AgentHttpTextTEXT_ROUTE] = make([]byte, len(route))
	for i, c := range route {
		texts[bpf.AgentHttpTextTEXT_ROUTE][i] = byte(c)
	}
	for i, text := range texts {
		r.TextLen[i] = uint16(len(text))
	}
	record, err := binary.Append(nil, binary.LittleEndian, &r)
	if err != nil {
		return nil
	}
	return append(record, bytes.Join(texts[:], nil)...)
}

// header is that of the first span that the goroutine has open.
func (s *overdueSpan) header(binaryID uint32) bpf.AgentRecordHeader {
	g, frame := s.goroutine, &s.goroutine.Frames[0]
	h := bpf.AgentRecordHeader{Kind: frame.Kind, Tgid: s.tgid, Flags: frame.Flags, Binary: binaryID, StartNs: frame.StartNs}
	if g.Random != 0 {
		h.Flags |= uint32(bpf.AgentSpanFlagsSPAN_RANDOM)
	}
	binary.LittleEndian.PutUint64(h.TraceId[:8], g.TraceId[0])
	binary.LittleEndian.PutUint64(h.TraceId[8:], g.TraceId[1])
	binary.LittleEndian.PutUint64(h.SpanId[:], frame.SpanId)
	binary.LittleEndian.PutUint64(h.ParentId[:], frame.ParentId)
	return h
}

func readBytes(read process.Reader, addr uint64, n uint32) ([]byte, error) {
	b := make([]byte, min(n, 4096))
	if len(b) == 0 {
		return b, nil
	}
	return b, read(addr, b)
}

// word is the word at an offset, as much of it as there is.
func word(b []byte, offset uint32) uint64 {
	var w [8]byte
	if int(offset) < len(b) {
		copy(w[:], b[offset:])
	}
	return binary.LittleEndian.Uint64(w[:])
}
