package export

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Backoff after failures in a row.
const (
	firstBackoff = 500 * time.Millisecond
	maxBackoff   = 30 * time.Second
	// maxRetryAfter caps what an endpoint may ask for.
	maxRetryAfter = 15 * time.Minute
)

// pace keeps the workers of a signal from hammering an endpoint that is in
// trouble: they share one waiting time, which doubles with each failure in a
// row.
type pace struct {
	mu        sync.Mutex
	failures  int
	notBefore time.Time
	probing   bool // an attempt is under way to see whether the trouble is over
}

// probeDelay is how often turn looks whether the probe of another is over.
const probeDelay = 100 * time.Millisecond

// try says whether an attempt may be made at once. In trouble only one at a
// time may, so that an endpoint that hangs does not hold every worker: what is
// not tried goes to the spool. Who was let in says ok or fail afterwards.
func (p *pace) try() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Now().Before(p.notBefore) || p.failures > 0 && p.probing {
		return false
	}
	p.probing = p.failures > 0
	return true
}

// turn blocks until try lets an attempt in; it returns false if ctx ended.
func (p *pace) turn(ctx context.Context) bool {
	for ctx.Err() == nil {
		if p.try() {
			return true
		}
		p.mu.Lock()
		d := max(time.Until(p.notBefore), probeDelay)
		p.mu.Unlock()
		sleep(ctx, d)
	}
	return false
}

// sleep returns false if ctx ended before the time was over.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// wait blocks until an attempt may be made; it returns false if ctx ended.
func (p *pace) wait(ctx context.Context) bool {
	for {
		p.mu.Lock()
		d := time.Until(p.notBefore)
		p.mu.Unlock()
		if d <= 0 {
			return ctx.Err() == nil
		}
		if !sleep(ctx, d) {
			return false
		}
	}
}

// fail books a failure. The wait that the endpoint asked for counts where it is
// longer than the backoff.
func (p *pace) fail(asked time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.probing = false
	now := time.Now()
	if !p.notBefore.After(now) { // not yet booked by another worker
		backoff := min(firstBackoff<<min(p.failures, 10), maxBackoff)
		p.failures++
		// ±25 %, so that the agents of many nodes do not come back at once.
		backoff += time.Duration((rand.Float64() - 0.5) / 2 * float64(backoff))
		p.notBefore = now.Add(backoff)
	}
	if t := now.Add(asked); t.After(p.notBefore) {
		p.notBefore = t
	}
}

// until returns when the next attempt may be made.
func (p *pace) until() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.notBefore
}

// ok says that the endpoint answers. A wait that it asked for, maybe in answer
// to another worker, still holds.
func (p *pace) ok() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures, p.probing = 0, false
}

// retryAfter reads the header: seconds or a date.
func retryAfter(v string, now time.Time) time.Duration {
	if v == "" {
		return 0
	}
	if n, err := strconv.ParseInt(v, 10, 64); err == nil {
		n = max(min(n, int64(maxRetryAfter/time.Second)), 0)
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		return max(min(t.Sub(now), maxRetryAfter), 0)
	}
	return 0
}
