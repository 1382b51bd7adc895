package probes

import (
	"encoding/binary"
	"strings"
	"sync/atomic"
	"testing"
	"unicode/utf8"
	"unsafe"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
)

// bytesOf is a record as the ring holds it.
func bytesOf[T any](record *T, text string) []byte {
	raw := unsafe.Slice((*byte)(unsafe.Pointer(record)), unsafe.Sizeof(*record))
	return append(append([]byte(nil), raw...), text...)
}

// httpRecord is a record with these texts, in the order of enum http_text.
func httpRecord(r bpf.AgentHttpServerRecord, texts map[bpf.AgentHttpText]string) []byte {
	var all strings.Builder
	for i := range r.TextLen {
		text := texts[bpf.AgentHttpText(i)]
		r.TextLen[i] = uint16(len(text))
		all.WriteString(text)
	}
	r.Header.Kind = uint32(bpf.AgentNethttpKindRECORD_HTTP_SERVER)
	// The kernel reserves more than it fills.
	return append(bytesOf(&r, all.String()), make([]byte, 64)...)
}

// knownTypes stand for a binary; there are so many that no other is looked up.
var knownTypes = func() map[uint64]string {
	names := map[uint64]string{0x10: "*github.com/lib/pq.Connector", 0x20: "*github.com/lib/pq.Error", 0x30: "string",
		0x40: "syscall.Errno", 0x50: "context.deadlineExceededError"}
	for i := range uint64(4096) {
		names[1<<40+i] = ""
	}
	return names
}()

// decodeRecord runs a record through the decoder of its library.
func decodeRecord(t testing.TB, d *decoding, raw []byte) (event.Span, map[string]string, error) {
	t.Helper()
	var span event.Span
	header, _, err := recordAs[bpf.AgentRecordHeader](raw)
	if err != nil {
		return span, nil, err
	}
	tg := &target{decoded: new(atomic.Uint64), binary: &executable{names: knownTypes}, process: &event.Process{PID: 7}}
	d.begin(header, tg, &span)
	for _, lib := range libraries {
		if decode := lib.records[header.Kind]; decode != nil {
			err = decode(d, raw, &span)
			d.end(&span, bpf.AgentSpanFlags(header.Flags))
			attrs := map[string]string{}
			for _, kv := range span.Attributes {
				attrs[string(kv.Key)] = kv.Value.String()
			}
			return span, attrs, err
		}
	}
	t.Fatalf("no library has records of kind %d", header.Kind)
	return span, nil, nil
}

func TestDecodeHTTPServer(t *testing.T) {
	plain := map[bpf.AgentHttpText]string{
		bpf.AgentHttpTextTEXT_METHOD: "GET", bpf.AgentHttpTextTEXT_ROUTE: "GET shop.example/items/{id}",
		bpf.AgentHttpTextTEXT_URI:  "/items/3?page=2&token=abc",
		bpf.AgentHttpTextTEXT_HOST: "shop.example:8080", bpf.AgentHttpTextTEXT_REMOTE_ADDR: "[::ffff:10.1.2.3]:4711",
		bpf.AgentHttpTextTEXT_USER_AGENT: "curl/8", bpf.AgentHttpTextTEXT_TRACESTATE: "v=1",
	}
	with := func(key bpf.AgentHttpText, value string) map[bpf.AgentHttpText]string {
		m := map[bpf.AgentHttpText]string{}
		for k, v := range plain {
			m[k] = v
		}
		m[key] = value
		return m
	}
	flags := func(f bpf.AgentSpanFlags) bpf.AgentRecordHeader { return bpf.AgentRecordHeader{Flags: uint32(f)} }
	for name, c := range map[string]struct {
		record bpf.AgentHttpServerRecord
		texts  map[bpf.AgentHttpText]string
		name   string
		status codes.Code
		want   map[string]string // "": must not be there
	}{
		"usual": {bpf.AgentHttpServerRecord{Status: 200, ProtoMajor: 1, ProtoMinor: 1}, plain, "GET /items/{id}", codes.Unset, map[string]string{
			"http.route": "/items/{id}", "url.path": "/items/3", "url.query": "page=2&token=REDACTED", "url.scheme": "http",
			"server.address": "shop.example", "server.port": "8080", "client.address": "10.1.2.3",
			"network.peer.address": "10.1.2.3", "network.peer.port": "4711", "network.protocol.version": "1.1",
			"http.response.status_code": "200", "user_agent.original": "curl/8", "error.type": "",
		}},
		"nothing written":  {bpf.AgentHttpServerRecord{}, plain, "GET /items/{id}", codes.Unset, map[string]string{"http.response.status_code": "200"}},
		"client error":     {bpf.AgentHttpServerRecord{Status: 404}, plain, "GET /items/{id}", codes.Unset, map[string]string{"error.type": ""}},
		"server error":     {bpf.AgentHttpServerRecord{Status: 503}, plain, "GET /items/{id}", codes.Error, map[string]string{"error.type": "503"}},
		"no route":         {bpf.AgentHttpServerRecord{Status: 200}, with(bpf.AgentHttpTextTEXT_ROUTE, ""), "GET", codes.Unset, map[string]string{"http.route": ""}},
		"unknown method":   {bpf.AgentHttpServerRecord{Status: 200}, with(bpf.AgentHttpTextTEXT_METHOD, "BREW"), "HTTP /items/{id}", codes.Unset, map[string]string{"http.request.method": "_OTHER", "http.request.method_original": "BREW"}},
		"absolute target":  {bpf.AgentHttpServerRecord{Status: 200}, with(bpf.AgentHttpTextTEXT_URI, "http://h.example/p?q=1"), "GET /items/{id}", codes.Unset, map[string]string{"url.path": "/p", "url.query": "q=1"}},
		"tls, no port":     {bpf.AgentHttpServerRecord{Status: 200, Header: flags(bpf.AgentSpanFlagsSPAN_TLS)}, with(bpf.AgentHttpTextTEXT_HOST, "h"), "GET /items/{id}", codes.Unset, map[string]string{"url.scheme": "https", "server.port": "443"}},
		"forwarded":        {bpf.AgentHttpServerRecord{Status: 200}, with(bpf.AgentHttpTextTEXT_FORWARDED_FOR, "192.0.2.1, 10.0.0.1"), "GET /items/{id}", codes.Unset, map[string]string{"client.address": "192.0.2.1", "network.peer.address": "10.1.2.3"}},
		"panic":            {bpf.AgentHttpServerRecord{PanicType: 0x30, Header: flags(bpf.AgentSpanFlagsSPAN_ABORTED | bpf.AgentSpanFlagsSPAN_PANIC)}, plain, "GET /items/{id}", codes.Error, map[string]string{"error.type": "string", "http.response.status_code": ""}},
		"hijacked":         {bpf.AgentHttpServerRecord{Header: flags(bpf.AgentSpanFlagsSPAN_ABORTED | bpf.AgentSpanFlagsSPAN_HIJACKED)}, plain, "GET /items/{id}", codes.Unset, map[string]string{"http.response.status_code": "", "error.type": ""}},
		"kept for failing": {bpf.AgentHttpServerRecord{Status: 500, Header: flags(bpf.AgentSpanFlagsSPAN_KEPT_ERROR)}, plain, "GET /items/{id}", codes.Error, map[string]string{"sampling.reason": "error"}},
		"invalid text":     {bpf.AgentHttpServerRecord{Status: 200}, with(bpf.AgentHttpTextTEXT_URI, "/\xff\xfe"), "GET /items/{id}", codes.Unset, map[string]string{"url.path": "/\uFFFD", "user_agent.original": "curl/8"}},
	} {
		t.Run(name, func(t *testing.T) {
			span, attrs, err := decodeRecord(t, newDecoding(), httpRecord(c.record, c.texts))
			if err != nil {
				t.Fatal(err)
			}
			if span.Name != c.name || span.Status != c.status || span.Kind != trace.SpanKindServer || span.TraceState != "v=1" {
				t.Errorf("name %q, status %v, kind %v, tracestate %q", span.Name, span.Status, span.Kind, span.TraceState)
			}
			for key, want := range c.want {
				if attrs[key] != want {
					t.Errorf("%s = %q, want %q", key, attrs[key], want)
				}
			}
		})
	}
}

func TestDecodeHTTPClient(t *testing.T) {
	texts := []string{"shop.example:8443", "/a b/c", "page=2&access_token=abc", ""}
	detail := func(status, method, https uint64) uint64 {
		return status | method<<16 | 1<<24 | 1<<32 | https<<40
	}
	get := uint64(bpf.AgentHttpMethodMETHOD_GET)
	for name, c := range map[string]struct {
		body   bpf.AgentHttpclientBody
		texts  []string
		status codes.Code
		want   map[string]string // "": must not be there
	}{
		"usual": {bpf.AgentHttpclientBody{Key: bpf.AgentSeriesKey{Detail: [2]uint64{detail(200, get, 1)}}, Peer: [2]uint64{0, 0x0302010affff0000}, PeerPort: 8443}, texts, codes.Unset, map[string]string{
			"url.full": "https://shop.example:8443/a%20b/c?page=2&access_token=REDACTED", "server.address": "shop.example", "server.port": "8443",
			"network.peer.address": "10.1.2.3", "network.peer.port": "8443", "network.protocol.version": "1.1",
			"http.request.method": "GET", "http.response.status_code": "200", "error.type": "", "http.request.resend_count": "",
		}},
		"client error": {bpf.AgentHttpclientBody{Key: bpf.AgentSeriesKey{Detail: [2]uint64{detail(404, get, 0)}}, ResendCount: 3}, texts, codes.Error, map[string]string{"error.type": "404", "http.request.resend_count": "3", "network.peer.port": ""}},
		"refused":      {bpf.AgentHttpclientBody{Key: bpf.AgentSeriesKey{ErrorType: 0x40, Detail: [2]uint64{detail(0, get, 0), 111}}}, texts, codes.Error, map[string]string{"error.type": "ECONNREFUSED", "http.response.status_code": ""}},
		"timeout":      {bpf.AgentHttpclientBody{Key: bpf.AgentSeriesKey{ErrorType: 0x50, Detail: [2]uint64{detail(0, get, 0)}}}, texts, codes.Error, map[string]string{"error.type": "timeout"}},
		"own error":    {bpf.AgentHttpclientBody{Key: bpf.AgentSeriesKey{ErrorType: 0x20, Detail: [2]uint64{detail(0, get, 0)}}}, texts, codes.Error, map[string]string{"error.type": "*pq.Error"}},
		"canceled":     {bpf.AgentHttpclientBody{Key: bpf.AgentSeriesKey{Detail: [2]uint64{detail(0, get, 0), 1 << 32}}}, texts, codes.Unset, map[string]string{"error.type": ""}},
		"credentials":  {bpf.AgentHttpclientBody{Key: bpf.AgentSeriesKey{Detail: [2]uint64{detail(200, get, 0)}}, Flags: uint8(bpf.AgentHttpclientFlagsCLIENT_USER)}, texts, codes.Unset, map[string]string{"url.full": "http://REDACTED:REDACTED@shop.example:8443/a%20b/c?page=2&access_token=REDACTED"}},
		"encoded path": {bpf.AgentHttpclientBody{Flags: uint8(bpf.AgentHttpclientFlagsCLIENT_ENCODED)}, []string{"h", "/a%2Fb", "", ""}, codes.Unset, map[string]string{"url.full": "http://h/a%2Fb", "server.port": "80"}},
		"opaque":       {bpf.AgentHttpclientBody{Flags: uint8(bpf.AgentHttpclientFlagsCLIENT_OPAQUE)}, []string{"h", "//eva:geheim@h/x", "", ""}, codes.Unset, map[string]string{"url.full": "http://REDACTED:REDACTED@h/x"}},
		"no path":      {bpf.AgentHttpclientBody{}, []string{"h", "", "", ""}, codes.Unset, map[string]string{"url.full": "http://h/"}},
		"IPv6":         {bpf.AgentHttpclientBody{}, []string{"[::1]:81", "/", "", ""}, codes.Unset, map[string]string{"url.full": "http://[::1]:81/", "server.address": "::1", "server.port": "81"}},
		"stashed":      {bpf.AgentHttpclientBody{Flags: uint8(bpf.AgentHttpclientFlagsCLIENT_HOST_ONLY)}, []string{"h", "", "", ""}, codes.Unset, map[string]string{"url.full": "", "server.address": "h"}},
		"odd method":   {bpf.AgentHttpclientBody{}, []string{"h", "/", "", "PURGE"}, codes.Unset, map[string]string{"http.request.method": "_OTHER", "http.request.method_original": "PURGE"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := bpf.AgentHttpclientRecord{Body: c.body}
			r.Header.Kind = uint32(bpf.AgentHttpclientKindRECORD_HTTP_CLIENT)
			for i, text := range c.texts {
				r.Body.TextLen[i] = uint16(len(text))
			}
			span, attrs, err := decodeRecord(t, newDecoding(), bytesOf(&r, strings.Join(c.texts, "")+"rest"))
			if err != nil {
				t.Fatal(err)
			}
			if span.Status != c.status || span.Kind != trace.SpanKindClient || name == "usual" && span.Name != "GET" {
				t.Errorf("name %q, status %v, kind %v", span.Name, span.Status, span.Kind)
			}
			for key, want := range c.want {
				if attrs[key] != want {
					t.Errorf("%s = %q, want %q", key, attrs[key], want)
				}
			}
		})
	}
}

func TestDecodeSQL(t *testing.T) {
	record := bpf.AgentSqlRecord{Header: bpf.AgentRecordHeader{Kind: uint32(bpf.AgentSqlKindRECORD_SQL)}}
	record.Body.Key.Detail[0] = 0x10
	const text = "SELECT name FROM items WHERE secret = 'hunter2'"
	record.Body.TextLen = uint32(len(text))
	span, attrs, err := decodeRecord(t, newDecoding(), bytesOf(&record, text))
	if err != nil {
		t.Fatal(err)
	}
	if span.Name != "SELECT items" || span.Kind != trace.SpanKindClient || span.Status != codes.Unset ||
		attrs["db.system.name"] != "postgresql" || attrs["db.query.text"] != "SELECT name FROM items WHERE secret = ?" {
		t.Errorf("%q %v %v %v", span.Name, span.Kind, span.Status, attrs)
	}

	record.Body.Key.ErrorType = 0x20
	record.Body.Key.Detail[1] = binary.LittleEndian.Uint64([]byte("42P01\x00\x00\x00"))
	record.Body.CodeRole = uint32(bpf.AgentTypeRoleTYPE_ERROR_CODE_STRING)
	record.Body.TextLen = 0
	span, attrs, err = decodeRecord(t, newDecoding(), bytesOf(&record, ""))
	if err != nil {
		t.Fatal(err)
	}
	if span.Name != "postgresql" || span.Status != codes.Error || attrs["error.type"] != "*pq.Error" || attrs["db.response.status_code"] != "42P01" {
		t.Errorf("%q %v %v", span.Name, span.Status, attrs)
	}
}

func TestDecodeRefusesShortRecords(t *testing.T) {
	r := bpf.AgentHttpServerRecord{Header: bpf.AgentRecordHeader{Kind: uint32(bpf.AgentNethttpKindRECORD_HTTP_SERVER)}}
	r.TextLen[0] = 1000
	if _, _, err := decodeRecord(t, newDecoding(), bytesOf(&r, "GET")); err == nil {
		t.Error("a record whose texts are longer than itself was decoded")
	}
	if _, _, err := decodeRecord(t, newDecoding(), bytesOf(&r, "")[:80]); err == nil {
		t.Error("half a record was decoded")
	}
}

// FuzzDecode feeds whatever bytes to every decoder: no panic, and valid text.
func FuzzDecode(f *testing.F) {
	f.Add(httpRecord(bpf.AgentHttpServerRecord{Status: 200}, map[bpf.AgentHttpText]string{bpf.AgentHttpTextTEXT_URI: "/x?a=1&b=2"}))
	sql := bpf.AgentSqlRecord{}
	sql.Body.TextLen = 8
	f.Add(bytesOf(&sql, "SELECT 1"))
	f.Add(autoRecord(autoJSON, "pack"))
	d := newDecoding()
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, lib := range libraries {
			for kind := range lib.records {
				if len(data) < int(unsafe.Sizeof(bpf.AgentRecordHeader{})) {
					return
				}
				// Aligned, as the ring's records are.
				words := make([]uint64, (len(data)+7)/8)
				raw := unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(words))), len(data))
				copy(raw, data)
				binary.LittleEndian.PutUint32(raw, kind)
				span, attrs, err := decodeRecord(t, d, raw)
				if err != nil {
					continue
				}
				for key, value := range attrs {
					if !utf8.ValidString(value) {
						t.Errorf("%s = %q is not valid UTF-8", key, value)
					}
				}
				if span.Name == "" {
					t.Error("a span without a name")
				}
			}
		}
	})
}

func TestRecordKindsAreDistinct(t *testing.T) {
	seen := map[uint32]string{uint32(bpf.AgentRecordKindRECORD_EXEC): "exec"}
	for _, lib := range libraries {
		for kind := range lib.records {
			if other, ok := seen[kind]; ok {
				t.Errorf("%s and %s both have records of kind %d", other, lib.name, kind)
			}
			seen[kind] = lib.name
		}
	}
}

func TestSampleBound(t *testing.T) {
	// Computed by Python: round(rate * (1 << 64)).
	for rate, want := range map[float64]uint64{
		0.1: 1844674407370955264, 0.01: 184467440737095520, 0.5: 9223372036854775808,
		0.3: 5534023222112865280, 1e-9: 18446744074, 0: 0,
	} {
		if got := sampleBound(rate); got != want {
			t.Errorf("bound of %v is %d, Python's is %d", rate, got, want)
		}
	}
}

func TestProbabilityThreshold(t *testing.T) {
	for rate, want := range map[float64]string{1: "0", 0.5: "8", 0.25: "c", 0.1: "e6666666666666", 0: ""} {
		if got := (Sampling{Rate: rate, Sampler: SamplerProbability}).thresholdText(); got != want {
			t.Errorf("threshold of %v is %q, want %q", rate, got, want)
		}
	}
}

func TestWithThreshold(t *testing.T) {
	for _, c := range [][3]string{
		{"", "8", "ot=th:8"}, {"v=1", "8", "ot=th:8,v=1"}, {"v=1,ot=rv:abc;th:c,w=2", "8", "ot=th:8;rv:abc,v=1,w=2"},
		{"ot=th:c,v=1", "", "v=1"}, {"ot=rv:1;th:c", "", "ot=rv:1"}, {" v=1 , w=2 ", "", "v=1,w=2"},
	} {
		if got := withThreshold(c[0], c[1]); got != c[2] {
			t.Errorf("th %q in %q is %q, want %q", c[1], c[0], got, c[2])
		}
	}
}

// TestThresholdOf: what a backend counts by th must be what happened.
func TestThresholdOf(t *testing.T) {
	d := newDecoding()
	d.threshold, d.keepErrors = "c", true
	parent := trace.SpanID{1}
	const kept, limited = bpf.AgentSpanFlagsSPAN_KEPT_ERROR, bpf.AgentSpanFlagsSPAN_KEPT_LIMITED
	for name, c := range map[string]struct {
		span  event.Span
		flags bpf.AgentSpanFlags
		want  string
	}{
		"sampled root":                  {event.Span{Kind: trace.SpanKindServer, ParentID: parent}, 0, "c"},
		"sampled child, failed":         {event.Span{Kind: trace.SpanKindClient, ParentID: parent, Status: codes.Error}, 0, "c"},
		"sampled root, failed":          {event.Span{Kind: trace.SpanKindServer, Status: codes.Error}, 0, "0"},
		"sampled root, failed, limited": {event.Span{Kind: trace.SpanKindServer, Status: codes.Error}, limited, "c"},
		"kept root":                     {event.Span{Kind: trace.SpanKindServer, Status: codes.Error}, kept, "0"},
		"kept root, limited":            {event.Span{Kind: trace.SpanKindServer, Status: codes.Error}, kept | limited, ""},
		"kept child":                    {event.Span{Kind: trace.SpanKindClient, ParentID: parent}, kept, ""},
		"kept for slowness":             {event.Span{Kind: trace.SpanKindServer}, bpf.AgentSpanFlagsSPAN_KEPT_SLOW, ""},
		"kept query without a parent":   {event.Span{Kind: trace.SpanKindClient, Status: codes.Error}, kept, "0"},
	} {
		if got := d.thresholdOf(&c.span, c.flags); got != c.want {
			t.Errorf("%s: th is %q, want %q", name, got, c.want)
		}
	}
}
