package probes

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/process"
)

const (
	// maxActiveReads bounds how many open requests are looked at in one collection.
	// The others are counted under the method _OTHER and the scheme http.
	maxActiveReads = 4096
	maxMethod      = 32 // bytes; longer ones are none that is known
)

// activeRequests counts the HTTP requests that are open when metrics are collected. It
// costs a request nothing: the kernel knows who has a server span open, and method and
// TLS are read from the memory of the process. A request without a beginning that was
// seen is not in the kernel's table, and so does not count.
type activeRequests struct {
	kernel  *kernel
	targets *targets
	log     *slog.Logger
	scope   *event.Scope
	start   event.Start // nothing was counted before

	known map[activeSeries]bool   // have been reported, or had a request
	mute  map[*event.Process]bool // their memory did not answer; they are not asked again
}

type activeSeries struct {
	process *event.Process
	activeKind
}

// activeKind is what tells open requests of a process apart.
type activeKind struct{ method, scheme string }

// unreadable is a request about which nothing can be known.
var unreadable = activeKind{"_OTHER", "http"}

func newActiveRequests(k *kernel, t *targets, log *slog.Logger, version string) *activeRequests {
	return &activeRequests{
		kernel: k, targets: t, log: log, scope: scopeOf(&netHTTP, version),
		start: event.StartAt(time.Now().UnixNano(), time.Now()), known: map[activeSeries]bool{}, mute: map[*event.Process]bool{},
	}
}

// learn makes a series of a method and scheme known by the attributes of a finished
// request: few requests are long enough to be met open, and 0 says more than nothing.
func (a *activeRequests) learn(p *event.Process, attributes []attribute.KeyValue) {
	s := activeSeries{process: p}
	for _, kv := range attributes {
		switch kv.Key {
		case "http.request.method":
			s.method = kv.Value.AsString()
		case "url.scheme":
			s.scheme = kv.Value.AsString()
		}
	}
	if s.method != "" && s.scheme != "" {
		a.known[s] = true
	}
}

// count counts what is open now; nil if that is unknown. It may take seconds where
// processes do not answer.
func (a *activeRequests) count() map[activeSeries]int64 {
	open, err := a.open()
	if err != nil {
		a.log.Warn("open requests are not counted this time", "error", err)
		return nil
	}
	counts := map[activeSeries]int64{}
	left := maxActiveReads
	for tgid, responses := range open {
		tg := a.targets.find(int(tgid))
		if tg == nil || !a.targets.countsRequests(tg) {
			continue
		}
		n := min(len(responses), left)
		left -= n
		for _, kind := range a.inspect(tg, responses[:n]) {
			counts[activeSeries{tg.process, kind}]++
		}
		if rest := len(responses) - n; rest > 0 {
			counts[activeSeries{tg.process, unreadable}] += int64(rest)
		}
	}
	return counts
}

// numbers are the points of a count, 0 for series that it does not have. Those of
// processes that are gone, or no longer probed, end.
func (a *activeRequests) numbers(counts map[activeSeries]int64, now time.Time) []event.Number {
	if counts == nil {
		return nil
	}
	for s := range counts {
		a.known[s] = true
	}
	live := map[*event.Process]bool{}
	for _, tg := range a.targets.running() {
		live[tg.process] = a.targets.countsRequests(tg)
	}
	start := a.start.At(now)
	var numbers []event.Number
	for s := range a.known {
		if !live[s.process] {
			delete(a.known, s)
			delete(a.mute, s.process)
			continue
		}
		numbers = append(numbers, event.Number{
			Process: s.process, Scope: a.scope,
			Name: "http.server.active_requests", Unit: "{request}",
			Description: "Number of active HTTP server requests.",
			Attributes: []attribute.KeyValue{
				attribute.String("http.request.method", s.method), attribute.String("url.scheme", s.scheme),
			},
			Start: start, End: now.UnixNano(), Value: counts[s], Kind: event.UpDownCounter,
		})
	}
	return numbers
}

// response is an open request's.
type response struct {
	address uint64
	server  uint32 // enum http_server: how it is laid out
}

// open is the response of every open request, by process.
func (a *activeRequests) open() (map[uint32][]response, error) {
	const server = uint32(bpf.AgentNethttpKindRECORD_HTTP_SERVER)
	open := map[uint32][]response{}
	goroutines := a.kernel.mapOf("goroutines")
	var g bpf.AgentGoroutine
	err := a.kernel.eachEntry("goroutine_table", func(e bpf.AgentTableEntry) bool {
		if goroutines.Lookup(uint32(e.Value), &g) == nil && g.Depth > 0 && g.Frames[0].Kind == server {
			object := g.Frames[0].Object
			open[e.Tgid] = append(open[e.Tgid], response{object[0], uint32(object[1])})
		}
		return false
	})
	return open, err
}

// inspect finds out method and scheme of open requests of a process.
func (a *activeRequests) inspect(tg *target, responses []response) []activeKind {
	var of [bpf.AgentHttpServerHTTP_SERVERS]bpf.AgentNethttpLayout
	var err error
	for i := range of {
		err = errors.Join(err, a.kernel.mapOf("nethttp_layouts").Lookup(uint32(i)*maxBinaries+tg.binary.id, &of[i]))
	}
	var kinds []activeKind
	if err == nil && len(responses) > 0 && !a.mute[tg.process] {
		kinds, err = process.Inspect(tg.process.PID, tg.process.StartTime, func(read process.Reader) []activeKind {
			kinds := make([]activeKind, 0, len(responses))
			for _, r := range responses {
				kinds = append(kinds, readActive(read, &of[int(r.server)%len(of)], r.address))
			}
			return kinds
		})
	}
	if errors.Is(err, process.ErrTimeout) {
		a.mute[tg.process] = true
	}
	if err != nil {
		a.log.Debug("methods of open requests are unknown", "pid", tg.process.PID, "error", err)
	}
	if len(kinds) < len(responses) {
		kinds = make([]activeKind, len(responses))
		for i := range kinds {
			kinds[i] = unreadable
		}
	}
	return kinds
}

// readActive reads what a request is from the memory of a process that is not trusted,
// and that may have ended the request in the meantime.
func readActive(read process.Reader, layout *bpf.AgentNethttpLayout, response uint64) activeKind {
	request := [2]uint64{response + uint64(layout.ResponseReq)}
	if layout.RequestInline == 0 {
		var err error
		if request, err = readWords(read, request[0], 1); err != nil {
			return unreadable
		}
	}
	method, err := readWords(read, request[0]+uint64(layout.RequestMethod), 2)
	if err != nil {
		return unreadable
	}
	tls, err := readWords(read, request[0]+uint64(layout.RequestTls), 1)
	if err != nil {
		return unreadable
	}
	kind := unreadable
	if tls[0] != 0 {
		kind.scheme = "https"
	}
	if method[1] > maxMethod {
		return kind
	}
	text := make([]byte, method[1])
	if err := read(method[0], text); err != nil {
		return kind
	}
	switch name := string(text); {
	case name == "": // as net/http has it
		kind.method = "GET"
	case knownMethods[name]:
		kind.method = name
	}
	return kind
}

// readWords reads up to two words.
func readWords(read process.Reader, addr uint64, n int) (words [2]uint64, err error) {
	var b [16]byte
	if err := read(addr, b[:8*n]); err != nil {
		return words, err
	}
	for i := range n {
		words[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return words, nil
}

// countsRequests tells whether the requests of a target are probed: its binary has the
// probes, they are not given up, and it runs.
func (t *targets) countsRequests(tg *target) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	a := t.byFile[tg.binary.file]
	return tg.goneAt.IsZero() && a != nil && netHTTP.keptAt(a.given)
}
