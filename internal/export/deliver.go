package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

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
	urls     [signalCount]string
	creds    *credentials
	timeout  time.Duration
	retryFor time.Duration
	foreign  bool
	say      *complaints
	store    *store
	ends     [signalCount]endpoint

	// sending ends when attempts are to stop and the rest goes to the spool.
	sending     context.Context
	stopSending context.CancelFunc
}

// endpoint is what is known of a signal's endpoint.
type endpoint struct {
	pace  pace
	again atomic.Int64 // items that were sent once more, though they may have arrived

	mu    sync.Mutex
	stats EndpointStats
}

func newDeliverer(e config.Export, urls [signalCount]string, logger *slog.Logger, base http.RoundTripper, st *store) *deliverer {
	say := &complaints{logger: logger}
	d := &deliverer{
		base: base, urls: urls, creds: newCredentials(e, say), timeout: e.Timeout, retryFor: e.RetryFor,
		foreign: e.Foreign, say: say, store: st,
	}
	d.sending, d.stopSending = context.WithCancel(context.Background())
	for s := range signalCount {
		d.ends[s].stats.URL = withoutQuery(urls[s])
	}
	return d
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
	doubt    bool          // if later: it may have arrived all the same
	rejected int64         // if taken, but not all
	text     string        // what went wrong, fit for the log
}

// deliver brings a packet to the endpoint, or else to the spool, and returns
// what became of it. Only where there is no spool, or the disk refuses, does it
// wait for the endpoint.
func (d *deliverer) deliver(ctx context.Context, p packet) outcome {
	end := &d.ends[p.signal]
	deadline := time.Now().Add(d.retryFor)
	for {
		if d.store != nil && (p.spill || d.sending.Err() != nil || !end.pace.try()) && d.store.put(&p) {
			return outcome{spooled: int64(p.items)}
		}
		if !end.pace.wait(ctx) {
			return outcome{lost: lose(lostShutdown, p.items)}
		}
		o, decided := d.once(ctx, &p)
		switch {
		case decided:
			return o
		case d.store.put(&p):
			return outcome{spooled: int64(p.items)}
		case ctx.Err() != nil || d.sending.Err() != nil:
			return outcome{lost: lose(lostShutdown, p.items)}
		case end.pace.until().After(deadline):
			d.say.warn("given up "+p.signal.String(), "telemetry could not be delivered and was dropped",
				"signal", p.signal.String(), p.signal.items(), p.items, "endpoint", withoutQuery(p.url), "after", d.retryFor)
			return outcome{lost: lose(lostSendFailed, p.items)}
		}
	}
}

// once makes one attempt. It is decided unless the packet is to be tried again.
func (d *deliverer) once(ctx context.Context, p *packet) (o outcome, decided bool) {
	end := &d.ends[p.signal]
	if p.doubt {
		end.again.Add(int64(p.items))
	}
	a := d.attempt(ctx, p)
	end.note(a, len(p.body))
	switch a.verdict {
	case taken:
		end.pace.ok()
		d.partial(p, a)
		return outcome{lost: losses{lostRejected: min(a.rejected, int64(p.items))}}, true
	case split:
		end.pace.ok()
		return d.halves(ctx, p, a), true
	case never:
		end.pace.ok() // it answers
		d.refused(p, a)
		return outcome{lost: lose(a.reason, p.items)}, true
	}
	p.doubt = p.doubt || a.doubt
	end.pace.fail(a.wait)
	if ctx.Err() == nil && d.sending.Err() == nil {
		d.say.warn("later "+p.signal.String(), "endpoint does not take telemetry now, will try again",
			"signal", p.signal.String(), "endpoint", withoutQuery(p.url), "error", a.text)
	}
	return o, false
}

// halves delivers a packet that was too large in two pieces.
func (d *deliverer) halves(ctx context.Context, p *packet, a answer) outcome {
	first, second, err := p.halve()
	if err != nil {
		d.say.warn("too large "+p.signal.String(), "endpoint takes no request of this size, and it cannot be split",
			"signal", p.signal.String(), p.signal.items(), p.items, "bytes", len(p.body), "error", errors.Join(err, errors.New(a.text)))
		return outcome{lost: lose(lostTooLarge, p.items)}
	}
	// The whole was refused for certain: nothing of it has arrived this time.
	o := d.deliver(ctx, first)
	o.add(d.deliver(ctx, second))
	return o
}

// attempt makes one HTTP request, and a second one if the token was replaced
// just now.
func (d *deliverer) attempt(ctx context.Context, p *packet) answer {
	headers := d.creds.current()
	a := d.request(ctx, p, headers)
	if a.reason == lostUnauthorized && a.verdict == never && d.creds.renewed(headers.Get("Authorization")) {
		a = d.request(ctx, p, d.creds.current())
	}
	return a
}

func (d *deliverer) request(ctx context.Context, p *packet, headers http.Header) answer {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	defer context.AfterFunc(d.sending, cancel)()
	// Once the headers are on their way the endpoint may have taken the request,
	// whatever becomes of the answer.
	var wrote atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{WroteHeaders: func() { wrote.Store(true) }})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, bytes.NewReader(p.body))
	if err != nil {
		return answer{verdict: never, reason: lostEncode, text: d.clean(err.Error())}
	}
	req.Header = headers
	if p.gzip {
		req.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := d.base.RoundTrip(req)
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", d.timeout)
		}
		return answer{verdict: later, doubt: wrote.Load(), text: d.clean(err.Error())}
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
		// A gateway does not know what the endpoint behind it has done.
		a.doubt = resp.StatusCode == http.StatusBadGateway || resp.StatusCode == http.StatusGatewayTimeout
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
func (d *deliverer) partial(p *packet, a answer) {
	if a.rejected > 0 || a.text != "" {
		d.say.warn("partial "+p.signal.String(), "endpoint took only a part of the telemetry",
			"signal", p.signal.String(), "rejected", a.rejected, "of", p.items, "message", a.text)
	}
}

// refused reports an answer that is final.
func (d *deliverer) refused(p *packet, a answer) {
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
	s = d.creds.redact(s)
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
