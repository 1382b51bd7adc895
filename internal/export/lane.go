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
	again bool // if the agent is killed, the items are collected again
	// settled, if set, is called when the parcel has left.
	settled func()
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
	crowded sync.Cond // the queue is half full, or the lane closed
	queue   []parcel
	closed  bool
	started bool        // the first batch was sealed
	timer   *time.Timer // seals the open batch; nil before its first use
	armed   bool

	received, exported, queued int64
	spooled, restored          int64
	bytes                      int64
	lost                       losses

	fresh      int64 // of received: those that were not found in the spool
	again      int64 // of queued: those of parcels that are again
	unsettled  int64 // items of collections that are not settled
	maybeTwice int64 // of earlier runs
	crashed    int64 // of lost: by the end of the agent before
	book       *book // where all of this outlives the agent; nil: nowhere
}

func newLane(s signal, limit int64, delay time.Duration, workers int) *lane {
	l := &lane{signal: s, limit: limit, delay: delay, workers: workers}
	l.ready.L, l.crowded.L = &l.mu, &l.mu
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
	l.fresh++
	return true
}

// refuse counts items that do not enter. The caller holds mu.
func (l *lane) refuse(items int) {
	l.received += int64(items)
	l.fresh += int64(items)
	if l.closed {
		l.lost[lostShutdown] += int64(items)
		return
	}
	l.lost[lostQueueFull] += int64(items)
}

// keep writes the ledger where it outlives the agent.
func (l *lane) keep() {
	if l.book == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.book.write(l)
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
	if l.isCrowded() {
		l.crowded.Signal()
	}
}

// isCrowded says whether the workers fall behind. The caller holds mu.
func (l *lane) isCrowded() bool { return l.bytes > l.limit/2 }

// close refuses what comes from now on; workers end when the queue is empty.
func (l *lane) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.flushLocked()
		l.closed = true
	}
	l.ready.Broadcast()
	l.crowded.Broadcast()
}

// work sends parcels until the lane is closed and empty, or ctx ends.
func (l *lane) work(ctx context.Context) {
	for {
		p, ok := l.next()
		if !ok {
			return
		}
		if ctx.Err() != nil {
			l.settle(p, outcome{lost: lose(lostShutdown, p.items)})
			continue
		}
		l.upload(ctx, p, false)
	}
}

// spill moves parcels from a queue that is half full to the spool, for an
// endpoint that is slow, or hangs and holds all workers. It ends when the lane
// is closed.
func (l *lane) spill(ctx context.Context) {
	for {
		p, ok := l.nextCrowded()
		if !ok {
			return
		}
		l.upload(ctx, p, true)
	}
}

func (l *lane) upload(ctx context.Context, p parcel, spill bool) {
	r := receipt{signal: l.signal, items: p.items, spill: spill}
	p.upload(context.WithValue(ctx, receiptKey{}, &r), &r)
	l.settle(p, r.outcome)
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
	return l.pop(), true
}

func (l *lane) nextCrowded() (parcel, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for !l.closed && (len(l.queue) == 0 || !l.isCrowded()) {
		l.crowded.Wait()
	}
	if l.closed {
		return parcel{}, false
	}
	return l.pop(), true
}

func (l *lane) pop() parcel {
	p := l.queue[0]
	l.queue[0] = parcel{}
	l.queue = l.queue[1:]
	return p
}

// waits says whether there is more in the queue than the workers can take at
// once.
func (l *lane) waits() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) > l.workers
}

// settle books a parcel that has left. What of it went to the spool was booked
// when it did.
func (l *lane) settle(p parcel, o outcome) {
	l.mu.Lock()
	left := int64(p.items) - o.spooled
	l.queued -= left
	l.bytes -= p.bytes
	if p.again {
		l.again -= int64(p.items)
	}
	l.account(left, o.lost)
	l.book.write(l)
	l.mu.Unlock()
	if p.settled != nil {
		p.settled()
	}
}

// account adds items that have left to the exported and the lost. The caller holds
// mu.
func (l *lane) account(items int64, lost losses) {
	for r, n := range lost {
		l.lost[r] += n
	}
	l.exported += items - lost.total()
}

// restore books items that an earlier run has left in the spool.
func (l *lane) restore(items int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.restored += items
	l.spooled += items
	unknown := l.book.inherit(l, items)
	l.received += unknown
	l.book.write(l)
}

// toSpool moves items from the queue's side of the ledger to the spool's.
func (l *lane) toSpool(items int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queued -= items
	l.spooled += items
	l.book.write(l)
}

// fromSpool books a record that was sent from the spool; a part of it may have
// gone there again.
func (l *lane) fromSpool(items int, o outcome) {
	l.mu.Lock()
	defer l.mu.Unlock()
	left := int64(items) - o.spooled
	l.spooled -= left
	l.account(left, o.lost)
	l.book.write(l)
}

// dropSpooled books items that the spool has lost.
func (l *lane) dropSpooled(r reason, items int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spooled -= items
	l.lost[r] += items
	l.book.write(l)
}

func (l *lane) stats() SignalStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := SignalStats{
		Received: l.received, Exported: l.exported,
		Queued: l.queued, QueuedBytes: l.bytes,
		Spooled: l.spooled, Restored: l.restored, MaybeTwice: l.maybeTwice, Crashed: l.crashed, Lost: make(map[string]int64),
	}
	for r, n := range l.lost {
		if n != 0 {
			s.Lost[reason(r).String()] = n
		}
	}
	return s
}
