package export

import (
	"context"
	"time"
)

// While fresh telemetry waits, what is in the spool lets it go first, but not
// for ever: an endpoint may be slow for good.
const (
	courtesyStep  = 20 * time.Millisecond
	courtesyLimit = time.Second
)

// drain sends what is in the spool of a signal, oldest first and one request at
// a time, beside the workers, until idle ends. An attempt that is under way then
// goes on until send ends or the deliverer is told to stop.
func (d *deliverer) drain(idle, send context.Context, l *lane) {
	q := int(l.signal)
	for idle.Err() == nil {
		r, ok := d.store.spool.Next(q)
		if !ok {
			d.store.await(idle, q)
			continue
		}
		p := d.store.packetOf(l.signal, d.urls[l.signal], r)
		l.courtesy(idle)
		if !d.ends[l.signal].pace.turn(idle) {
			d.store.spool.Back(q, p.doubt)
			return
		}
		d.store.spool.Sending(q)
		o, decided := d.once(send, &p)
		if decided {
			d.store.spool.Done(q)
			l.fromSpool(p.items, o)
		} else {
			d.store.spool.Back(q, p.doubt)
		}
	}
}

// courtesy waits while more is queued than the workers can take.
func (l *lane) courtesy(ctx context.Context) {
	for end := time.Now().Add(courtesyLimit); l.waits() && time.Now().Before(end); {
		if !sleep(ctx, courtesyStep) {
			return
		}
	}
}
