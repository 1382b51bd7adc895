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
		t := time.NewTimer(d)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false
		}
	}
}

// fail books a failure and returns when the next attempt may be made. The wait
// that the endpoint asked for counts where it is longer than the backoff.
func (p *pace) fail(asked time.Duration) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
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
	return p.notBefore
}

// ok says that the endpoint answers. A wait that it asked for, maybe in answer
// to another worker, still holds.
func (p *pace) ok() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures = 0
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
