package observer

import (
	"context"
	"math"
	"net/http"
	"strconv"
	"time"
)

// Fault makes the receiver misbehave, so that tests can watch the sender.
type Fault struct {
	Path  string        // only requests to this path; "" means all
	Times int           // how many requests it meets; 0 means until Clear
	Delay time.Duration // before anything else; ends early when the client leaves

	Status     int           // answer with this status
	RetryAfter time.Duration // sent with Status, in whole seconds, rounded up
	Reset      bool          // close the connection without an answer
	Reject     int           // answer 200, but accept all but the last so many items
	Accept     bool          // keep the items although Status or Reset says that they were not taken
}

// Inject puts faults in line: each request meets the first one that matches its
// path, until that one's Times are used up.
func (o *Observer) Inject(faults ...Fault) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.faults = append(o.faults, faults...)
}

// Clear removes all faults.
func (o *Observer) Clear() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.faults = nil
}

// nextFault returns the fault that a request to path meets; the zero Fault does
// nothing.
func (o *Observer) nextFault(path string) Fault {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.faults {
		f := &o.faults[i]
		if f.Path != "" && f.Path != path {
			continue
		}
		hit := *f
		if f.Times == 1 {
			o.faults = append(o.faults[:i:i], o.faults[i+1:]...)
		} else if f.Times > 1 {
			f.Times--
		}
		return hit
	}
	return Fault{}
}

// delay waits, and tells whether the client left meanwhile.
func (f Fault) delay(ctx context.Context) error {
	if f.Delay <= 0 {
		return nil
	}
	t := time.NewTimer(f.Delay)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f Fault) header(h http.Header) {
	if f.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(f.RetryAfter.Seconds()))))
	}
}
