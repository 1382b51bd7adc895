package export

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"strings"
	"sync"
	"time"

	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"
)

// What can be wrong with an endpoint. The first kinds refuse for certain; of the
// others the sender cannot know whether they have taken a request.
const (
	works = iota
	unavailable
	throttles
	refusesConnections
	rejects
	takesAndHangs // the first of the others
	takesAndResets
	gatewayTimeout
	allKinds
)

// chaosEndpoint takes spans and remembers how.
type chaosEndpoint struct {
	mu       sync.Mutex
	rand     *rand.Rand
	kinds    int // of these kinds
	calm     bool
	kind     int // for so many more requests
	left     int
	answered []uint8 // by number: deliveries that the sender knows of
	taken    []uint8 // deliveries that it does not know of
	open     map[int]bool
	clock    *wallClock // of the sender
}

// RoundTrip implements http.RoundTripper.
func (e *chaosEndpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := unpack(r)
	if err != nil {
		return nil, err
	}
	m := &coltracepb.ExportTraceServiceRequest{}
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, err
	}
	var numbers []int
	for _, rs := range m.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				n, err := strconv.Atoi(strings.TrimPrefix(s.Name, "s"))
				if err != nil || n < 0 || n >= e.expected() {
					return nil, fmt.Errorf("nobody has sent span %q", s.Name)
				}
				numbers = append(numbers, n)
			}
		}
	}
	// Only a fresh request comes with a receipt.
	status, err := e.take(numbers, receiptFrom(r.Context()) != nil)
	if err != nil && err.Error() != "connection refused" {
		if tr := httptrace.ContextClientTrace(r.Context()); tr != nil {
			tr.WroteHeaders()
		}
	}
	if err == errHang {
		<-r.Context().Done()
		e.closed(numbers)
		return nil, r.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	resp := &http.Response{StatusCode: status, Status: fmt.Sprint(status), Header: make(http.Header), Body: http.NoBody, Request: r}
	if status == 429 {
		resp.Header.Set("Retry-After", e.after(20*time.Second))
	}
	return resp, nil
}

var errHang, errReset = fmt.Errorf("hangs"), fmt.Errorf("connection reset: %w", io.ErrUnexpectedEOF)

// after says how long to wait, in one of the two ways that there are. The date is that of
// the endpoint's clock.
func (e *chaosEndpoint) after(d time.Duration) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.rand.IntN(2) == 0 {
		return fmt.Sprint(int(d / time.Second))
	}
	return time.Now().Add(d - e.clock.off()).UTC().Format(http.TimeFormat)
}

// expect makes room for spans up to a number.
func (e *chaosEndpoint) expect(n int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answered = append(e.answered, make([]uint8, n-len(e.answered))...)
	e.taken = append(e.taken, make([]uint8, n-len(e.taken))...)
}

// expected is how many spans have been sent, or are about to be.
func (e *chaosEndpoint) expected() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.answered)
}

func (e *chaosEndpoint) take(numbers []int, fresh bool) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	kind := works
	if !e.calm {
		if e.left--; e.left < 0 { // trouble comes in phases
			e.kind, e.left = works, e.rand.IntN(300)
			if e.rand.IntN(2) == 0 {
				e.kind, e.left = e.rand.IntN(e.kinds), e.rand.IntN(15)
			}
		}
		kind = e.kind
	}
	for _, n := range numbers {
		switch {
		case kind == works:
			e.answered[n]++
		case kind >= takesAndHangs:
			e.taken[n]++
		}
	}
	switch kind {
	case unavailable:
		return 503, nil
	case throttles:
		return 429, nil
	case refusesConnections:
		return 0, fmt.Errorf("connection refused")
	case rejects:
		return 500, nil
	case takesAndHangs:
		for _, n := range numbers {
			e.open[n] = fresh
		}
		return 0, errHang
	case takesAndResets:
		return 0, errReset
	case gatewayTimeout:
		return 504, nil
	}
	return 200, nil
}

func (e *chaosEndpoint) closed(numbers []int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, n := range numbers {
		delete(e.open, n)
	}
}
