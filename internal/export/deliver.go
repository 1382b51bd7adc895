package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"
	"unicode"

	"golang.org/x/net/http/httpproxy"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/plainframework/agent/internal/config"
)

// maxAnswer bounds what is read of an endpoint's answer.
const maxAnswer = 64 << 10

// deliverer sends packets: it tries, waits, tries again, splits, gives up. The
// exporters' own retry is off: it gives up at once where a connection is
// refused, and metrics have no exporter.
type deliverer struct {
	base     http.RoundTripper
	headers  http.Header
	timeout  time.Duration
	retryFor time.Duration
	foreign  bool
	scrub    *strings.Replacer
	say      *complaints
	ends     [signalCount]endpoint
}

// endpoint is what is known of a signal's endpoint.
type endpoint struct {
	pace pace

	mu    sync.Mutex
	stats EndpointStats
}

func newDeliverer(e config.Export, urls [signalCount]string, logger *slog.Logger, base http.RoundTripper) *deliverer {
	if base == nil {
		base = newBase(e.Proxy)
	}
	d := &deliverer{
		base: base, headers: headersOf(e), timeout: e.Timeout, retryFor: e.RetryFor,
		foreign: e.Foreign, scrub: scrubber(e), say: &complaints{logger: logger},
	}
	for s := range signalCount {
		d.ends[s].stats.URL = withoutQuery(urls[s])
	}
	return d
}

// newBase makes the transport that reaches the network.
func newBase(p config.Proxy) *http.Transport {
	proxy := (&httpproxy.Config{
		HTTPProxy: p.HTTP.Reveal(), HTTPSProxy: p.HTTPS.Reveal(), NoProxy: p.NoProxy,
	}).ProxyFunc()
	return &http.Transport{
		Proxy:               func(r *http.Request) (*url.URL, error) { return proxy(r.URL) },
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:   true,
		DisableCompression:  true, // answers are a few bytes
		MaxIdleConnsPerHost: spanWorkers + logWorkers + metricWorkers,
		IdleConnTimeout:     90 * time.Second,
		TLSHandshakeTimeout: 10 * time.Second,
		// A compressed batch in few writes.
		WriteBufferSize: 64 << 10,
	}
}

// verdict is what one attempt says about a packet.
type verdict int

const (
	taken verdict = iota
	later         // try again
	never         // do not
	split         // in smaller pieces
)

// answer is the result of one attempt.
type answer struct {
	verdict  verdict
	reason   reason        // if never
	wait     time.Duration // if later, and the endpoint says how long
	rejected int64         // if taken, but not all
	text     string        // what went wrong, fit for the log
}

// deliver returns what was lost of the packet; the rest has arrived.
func (d *deliverer) deliver(ctx context.Context, p packet) losses {
	end := &d.ends[p.signal]
	deadline := time.Now().Add(d.retryFor)
	for {
		if !end.pace.wait(ctx) {
			return lose(lostShutdown, p.items)
		}
		a := d.attempt(ctx, p)
		end.note(a, len(p.body))
		switch {
		case a.verdict == taken:
			end.pace.ok()
			d.partial(p, a)
			return losses{lostRejected: min(a.rejected, int64(p.items))}
		case a.verdict == split:
			end.pace.ok()
			return d.halves(ctx, p, a)
		case a.verdict == never:
			end.pace.ok() // it answers
			d.refused(p, a)
			return lose(a.reason, p.items)
		case ctx.Err() != nil:
			return lose(lostShutdown, p.items)
		}
		next := end.pace.fail(a.wait)
		if next.After(deadline) {
			d.say.warn("given up "+p.signal.String(), "telemetry could not be delivered and was dropped",
				"signal", p.signal.String(), p.signal.items(), p.items, "endpoint", withoutQuery(p.url), "after", d.retryFor, "error", a.text)
			return lose(lostSendFailed, p.items)
		}
		d.say.warn("later "+p.signal.String(), "endpoint does not take telemetry now, will try again",
			"signal", p.signal.String(), "endpoint", withoutQuery(p.url), "error", a.text)
	}
}

// halves delivers a packet that was too large in two pieces.
func (d *deliverer) halves(ctx context.Context, p packet, a answer) losses {
	first, second, err := p.halve()
	if err != nil {
		d.say.warn("too large "+p.signal.String(), "endpoint takes no request of this size, and it cannot be split",
			"signal", p.signal.String(), p.signal.items(), p.items, "bytes", len(p.body), "error", errors.Join(err, errors.New(a.text)))
		return lose(lostTooLarge, p.items)
	}
	lost := d.deliver(ctx, first)
	for r, n := range d.deliver(ctx, second) {
		lost[r] += n
	}
	return lost
}

// attempt makes one HTTP request.
func (d *deliverer) attempt(ctx context.Context, p packet) answer {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(p.body))
	if err != nil {
		return answer{verdict: never, reason: lostEncode, text: d.clean(err.Error())}
	}
	req.Header = d.headers.Clone()
	if p.gzip {
		req.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := d.base.RoundTrip(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", d.timeout)
		}
		return answer{verdict: later, text: d.clean(err.Error())}
	}
	defer resp.Body.Close()
	// A body that breaks off after a good status was a good status.
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return d.judge(resp, body)
}

// judge applies the rules of OTLP/HTTP to an answer.
func (d *deliverer) judge(resp *http.Response, body []byte) answer {
	a := answer{text: resp.Status}
	if detail := d.clean(string(body)); detail != "" && resp.StatusCode >= 300 {
		a.text += ": " + detail
	}
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		a.verdict = later
		a.wait = retryAfter(resp.Header.Get("Retry-After"), time.Now())
	case http.StatusRequestEntityTooLarge:
		a.verdict = split
	case http.StatusUnauthorized, http.StatusForbidden:
		a.verdict, a.reason = never, lostUnauthorized
	default:
		if resp.StatusCode/100 != 2 {
			a.verdict, a.reason = never, lostRejected
			if to := resp.Header.Get("Location"); to != "" {
				a.text += ": redirects to " + d.clean(withoutQuery(to))
			}
			return a
		}
		if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-protobuf") {
			var message string
			a.rejected, message = partialSuccess(body)
			a.text = d.clean(message)
		} else {
			a.text = ""
		}
	}
	return a
}

// partialSuccess reads field 1 of an Export…ServiceResponse, whose own fields
// are 1, the number of rejected items, and 2, a message, for all three signals.
func partialSuccess(body []byte) (rejected int64, message string) {
	eachField(body, func(num protowire.Number, typ protowire.Type, value []byte) {
		if num != 1 || typ != protowire.BytesType {
			return
		}
		eachField(value, func(num protowire.Number, typ protowire.Type, value []byte) {
			switch {
			case num == 1 && typ == protowire.VarintType:
				n, _ := protowire.ConsumeVarint(value)
				rejected = max(int64(n), 0)
			case num == 2 && typ == protowire.BytesType:
				message = string(value)
			}
		})
	})
	return rejected, message
}

// partial reports what an endpoint has to say to a request that it took.
func (d *deliverer) partial(p packet, a answer) {
	if a.rejected > 0 || a.text != "" {
		d.say.warn("partial "+p.signal.String(), "endpoint took only a part of the telemetry",
			"signal", p.signal.String(), "rejected", a.rejected, "of", p.items, "message", a.text)
	}
}

// refused reports an answer that is final.
func (d *deliverer) refused(p packet, a answer) {
	if a.reason == lostUnauthorized {
		setting := "PLAIN_CLOUD_EXPORT_TOKEN"
		if d.foreign {
			setting = "OTEL_EXPORTER_OTLP_HEADERS"
		}
		d.say.error("unauthorized", "the endpoint does not accept the agent's credentials: check "+setting,
			"endpoint", withoutQuery(p.url), "answer", a.text)
		return
	}
	d.say.error("refused "+p.signal.String(), "endpoint refuses the telemetry",
		"signal", p.signal.String(), "endpoint", withoutQuery(p.url), p.signal.items(), p.items, "answer", a.text)
}

// clean makes a text from outside fit for one line of the log.
func (d *deliverer) clean(s string) string {
	s = d.scrub.Replace(s)
	if len(s) > 300 {
		s = s[:300] + "…"
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, s))
}

// withoutQuery drops what may hold a key.
func withoutQuery(s string) string {
	s, _, _ = strings.Cut(s, "?")
	return s
}

func (e *endpoint) note(a answer, size int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.stats.Requests++
	if a.verdict == taken {
		e.stats.BytesSent += int64(size)
		e.stats.LastSuccess = time.Now()
		e.stats.LastError = ""
		return
	}
	e.stats.Failures++
	e.stats.LastError = a.text
}

func (d *deliverer) stats(s signal) EndpointStats {
	e := &d.ends[s]
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.stats
}
