package export

import (
	"context"
	"sync"
	"time"
)

// maxQueued bounds the items of a lane besides its bytes, for the case that
// they are tiny.
const maxQueued = 1 << 19

// firstDelay is how long the very first item waits: someone may be watching.
const firstDelay = 50 * time.Millisecond

// parcel is a sealed batch.
type parcel struct {
	items int
	bytes int64
	// upload sends the parcel and fills in what the receipt does not know.
	upload func(context.Context, *receipt)
}

// lane is the way of one signal from the data path to its workers: an open
// batch, a bounded queue of parcels, and the ledger. What the open batch is, is
// the signal's business: it fills it under mu, and seal empties it.
type lane struct {
	signal  signal
	limit   int64 // bytes, of what is open, queued and in flight together
	delay   time.Duration
	workers int
	// seal takes the open batch; false if there is none. It is called with mu
	// held. Nil for a signal whose parcels come whole.
	seal func() (parcel, bool)

	mu      sync.Mutex
	ready   sync.Cond // a parcel was queued, or the lane closed
	queue   []parcel
	closed  bool
	started bool        // the first batch was sealed
	timer   *time.Timer // seals the open batch; nil before its first use
	armed   bool

	received, exported, queued int64
	bytes                      int64
	lost                       losses
}

func newLane(s signal, limit int64, delay time.Duration, workers int) *lane {
	l := &lane{signal: s, limit: limit, delay: delay, workers: workers}
	l.ready.L = &l.mu
	return l
}

// admit says whether an item may enter, and counts it as lost if not. The
// caller holds mu.
func (l *lane) admit() bool {
	if l.closed || l.bytes >= l.limit || l.queued >= maxQueued {
		l.refuse(1)
		return false
	}
	l.received++
	return true
}

// refuse counts items that do not enter. The caller holds mu.
func (l *lane) refuse(items int) {
	l.received += int64(items)
	if l.closed {
		l.lost[lostShutdown] += int64(items)
		return
	}
	l.lost[lostQueueFull] += int64(items)
}

// entered accounts for an admitted item that takes so many bytes, and sees to
// it that it leaves in time. The caller holds mu.
func (l *lane) entered(items int, bytes int64) {
	l.queued += int64(items)
	l.bytes += bytes
	if l.armed {
		return
	}
	l.armed = true
	delay := l.delay
	if !l.started {
		delay = min(delay, firstDelay)
	}
	if l.timer == nil {
		l.timer = time.AfterFunc(delay, l.flush)
		return
	}
	l.timer.Reset(delay)
}

// flush seals the open batch.
func (l *lane) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.flushLocked()
}

func (l *lane) flushLocked() {
	if l.armed {
		l.timer.Stop()
		l.armed = false
	}
	if l.seal == nil {
		return
	}
	if p, ok := l.seal(); ok {
		l.started = true
		l.push(p)
	}
}

// push queues a parcel whose items have entered. The caller holds mu.
func (l *lane) push(p parcel) {
	l.queue = append(l.queue, p)
	l.ready.Signal()
}

// close refuses what comes from now on; workers end when the queue is empty.
func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.flushLocked()
		l.closed = true
	}
	l.ready.Broadcast()
}

// work sends parcels until the lane is closed and empty, or ctx ends.
func (l *lane) work(ctx context.Context) {
	for {
		p, ok := l.next()
		if !ok {
			return
		}
		if ctx.Err() != nil {
			l.settle(p, lose(lostShutdown, p.items))
			continue
		}
		r := receipt{signal: l.signal, items: p.items}
		p.upload(context.WithValue(ctx, receiptKey{}, &r), &r)
		l.settle(p, r.lost)
	}
}

func (l *lane) next() (parcel, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) == 0 {
		if l.closed {
			return parcel{}, false
		}
		l.ready.Wait()
	}
	p := l.queue[0]
	l.queue[0] = parcel{}
	l.queue = l.queue[1:]
	return p, true
}

// settle books a parcel that has left.
func (l *lane) settle(p parcel, lost losses) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued -= int64(p.items)
	l.bytes -= p.bytes
	for r, n := range lost {
		l.lost[r] += n
	}
	l.exported += int64(p.items) - lost.total()
}

func (l *lane) stats() SignalStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := SignalStats{
		Received: l.received, Exported: l.exported,
		Queued: l.queued, QueuedBytes: l.bytes, Lost: make(map[string]int64),
	}
	for r, n := range l.lost {
		if n != 0 {
			s.Lost[reason(r).String()] = n
		}
	}
	return s
}
