package export

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/export/spool"
)

// diskPause is how long the spool is left alone after the disk refused.
const diskPause = 10 * time.Second

// store is the spool beside the deliverer, and the ledger of what is in it. A
// nil store has no room: everything stays in memory, as it does while the disk
// refuses.
type store struct {
	spool *spool.Spool
	say   *complaints
	lanes [signalCount]*lane

	mu     sync.Mutex
	reason string    // why the disk is not used, if it is not
	until  time.Time // when it is tried again
}

// flagGzip is the flag of a record whose body is compressed.
const flagGzip = 1

// openStore opens the spool. Where it cannot be used, there is a reason instead
// of a store, and the log has it. The one error is a directory that was chosen
// by name and belongs to another process: two agents must not share one, and
// it is better to hear of it.
func openStore(e config.Export, urls [signalCount]string, disk spool.Disk, logger *slog.Logger) (st *store, off string, err error) {
	if e.SpoolDir == "" || e.SpoolDir == config.SpoolOff {
		return nil, "switched off by PLAIN_CLOUD_SPOOL_DIR", nil
	}
	st = &store{say: &complaints{logger: logger}}
	o := spool.Options{Limit: int64(e.SpoolSize), Logger: logger, Lost: st.lost, Adrift: st.adrift, Disk: disk}
	for s := range signalCount {
		o.Queues = append(o.Queues, spool.Queue{Name: s.String(), Target: withoutQuery(urls[s])})
	}
	st.spool, err = spool.Open(e.SpoolDir, o)
	switch {
	case err == nil:
		return st, "", nil
	case errors.Is(err, spool.ErrLocked) && e.SpoolDir != config.DefaultSpoolDir:
		return nil, "", fmt.Errorf("another agent uses the spool directory %s: stop it, or set PLAIN_CLOUD_SPOOL_DIR to a directory of its own", e.SpoolDir)
	}
	logger.Warn("no spool: what the endpoint does not take is kept in memory only", "dir", e.SpoolDir, "error", err)
	return nil, err.Error(), nil
}

// start books what earlier runs have left, before anything else is booked.
func (st *store) start(lanes []*lane) {
	if st == nil {
		for _, l := range lanes {
			l.restore(0)
		}
		return
	}
	for _, l := range lanes {
		st.lanes[l.signal] = l
		l.restore(st.spool.Waiting(int(l.signal)))
	}
	st.spool.Start()
}

// lost books what the spool itself had to drop.
func (st *store) lost(queue int, why spool.Reason, items int64) {
	r := lostSpoolFull
	if why == spool.Damage {
		r = lostSpoolDamaged
	}
	st.lanes[queue].dropSpooled(r, items)
	st.say.warn(r.String()+signal(queue).String(), "telemetry in the spool is lost", "signal", signal(queue).String(), "reason", r.String(), "items", items)
}

// adrift books items whose place in the spool was taken while they were being
// sent: they are in memory only.
func (st *store) adrift(queue int, items int64) { st.lanes[queue].toSpool(-items) }

// put stores a packet and reports whether it could.
func (st *store) put(p *packet) bool {
	if st == nil || !st.usable() {
		return false
	}
	r := spool.Record{Items: p.items, Body: p.body, Doubt: p.doubt}
	if p.gzip {
		r.Flags = flagGzip
	}
	l := st.lanes[p.signal]
	if !p.stored {
		// Before it is there for others to take.
		l.toSpool(int64(p.items))
	}
	err := st.spool.Put(int(p.signal), r)
	if err == nil {
		st.works()
		return true
	}
	if !p.stored {
		l.toSpool(-int64(p.items))
	}
	if !errors.Is(err, spool.ErrTooLarge) {
		st.refuse(err)
	}
	return false
}

func (st *store) usable() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.reason == "" || !time.Now().Before(st.until)
}

// refuse leaves the disk alone for a while.
func (st *store) refuse(err error) {
	st.mu.Lock()
	st.reason, st.until = err.Error(), time.Now().Add(diskPause)
	st.mu.Unlock()
	st.say.warn("disk", "the spool cannot be written to: what the endpoint does not take is kept in memory", "error", err)
}

// works notes that the disk takes data again.
func (st *store) works() {
	st.mu.Lock()
	st.reason = ""
	st.mu.Unlock()
}

func (st *store) close() error {
	if st == nil {
		return nil
	}
	if err := st.spool.Close(); err != nil {
		return fmt.Errorf("close spool: %w", err)
	}
	return nil
}

// await waits until there may be something to send.
func (st *store) await(ctx context.Context, queue int) {
	var again <-chan time.Time
	if st.spool.Waiting(queue) > 0 { // the disk does not give it
		t := time.NewTimer(diskPause)
		defer t.Stop()
		again = t.C
	}
	select {
	case <-st.spool.Ready(queue):
	case <-again:
	case <-ctx.Done():
	}
}

// packetOf makes a packet of a record again.
func (st *store) packetOf(s signal, url string, r spool.Record) packet {
	return packet{signal: s, url: url, items: r.Items, gzip: r.Flags&flagGzip != 0, body: r.Body, doubt: r.Doubt, stored: true}
}

// SpoolStats is the state of the spool.
type SpoolStats struct {
	State     string    `json:"state"`            // on, off, or memory while the disk refuses
	Reason    string    `json:"reason,omitempty"` // why it is not on
	Dir       string    `json:"dir,omitempty"`
	Bytes     int64     `json:"bytes"` // on disk
	Limit     int64     `json:"limit"`
	Segments  int       `json:"segments"`
	Oldest    time.Time `json:"oldest,omitzero"` // when the oldest request in it was stored; zero if it is empty
	OldestAge float64   `json:"oldest_age"`      // the same, in seconds
	Foreign   int64     `json:"foreign"`         // bytes meant for other endpoints: kept, not sent
	Damaged   int64     `json:"damaged"`         // places that could not be read
	Unmarked  int64     `json:"unmarked"`        // items that arrived, or were lost, and that a later run has again
	Errors    int64     `json:"disk_errors"`     // of the disk
}

func (st *store) stats(e config.Export, off string) SpoolStats {
	out := SpoolStats{State: "off", Reason: off, Dir: e.SpoolDir, Limit: int64(e.SpoolSize)}
	if st == nil {
		return out
	}
	s := st.spool.Stats()
	out.State, out.Bytes, out.Segments, out.Oldest = "on", s.Bytes, s.Segments, s.Oldest
	out.Foreign, out.Damaged, out.Unmarked, out.Errors = s.Foreign, s.Damaged, s.Unmarked, s.Errors
	if !s.Oldest.IsZero() {
		out.OldestAge = max(time.Since(s.Oldest).Seconds(), 0)
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.reason != "" {
		out.State, out.Reason = "memory", st.reason
	}
	return out
}
