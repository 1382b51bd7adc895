package spool

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"io"
	"time"
)

// Record is what a queue holds.
type Record struct {
	Items int  // how many spans, points, log records
	Flags byte // for the caller
	Body  []byte
	// Doubt says that the record was sent before and may have arrived.
	Doubt bool
	Time  time.Time // when it was put; set by Next
}

// queue is the segments of one name and target.
type queue struct {
	index  int
	prefix string
	segs   []*segment // oldest first; only the last one may be written to
	r      File       // segs[0], once it was read
	off    int64      // of the oldest record in segs[0]
	known  bool       // where the numbers begin
	head   uint64     // number of the oldest item
	tail   uint64     // number of the next item to be put; tail-head are waiting
	since  int64      // when the oldest record was put, as far as known
	held   *held
	errors int // in a row, of reading
	ready  chan struct{}
}

// held is the record that Next has handed out.
type held struct {
	header
	at     int64
	orphan bool // its segment was dropped meanwhile
}

func newQueue(index int, q Queue) *queue {
	sum := sha256.Sum256([]byte(q.Target))
	return &queue{index: index, prefix: q.Name + "-" + hex.EncodeToString(sum[:4]), ready: make(chan struct{}, 1)}
}

func (q *queue) wake() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *queue) heldItems() int64 {
	if q.held == nil || q.held.orphan {
		return 0
	}
	return int64(q.held.items)
}

// Waiting returns how many items a queue holds.
func (s *Spool) Waiting(queue int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.queues[queue].tail - s.queues[queue].head)
}

// Ready gets a value when something was put into an empty queue.
func (s *Spool) Ready(queue int) <-chan struct{} { return s.queues[queue].ready }

// Next returns the oldest record of a queue, and false if there is none, or the
// disk does not give it now. What cannot be read is skipped. The record stays
// the oldest until Done.
func (s *Spool) Next(queue int) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[queue]
	q.held = nil
	for len(q.segs) > 0 && !s.closed {
		seg := q.segs[0]
		h, at, err := s.findNext(q)
		if s.retry(q, err) {
			return Record{}, false
		}
		if err != nil {
			s.skipTo(q, seg.end)
			s.finish(q)
			continue
		}
		s.skipHole(q, &h, at)
		q.off, q.since = at, h.time
		body := make([]byte, h.size)
		err = readFull(q.r, body, at+headerSize, seg.size)
		if s.retry(q, err) {
			return Record{}, false
		}
		if err != nil || crc32.Checksum(body, castagnoli) != h.bodySum {
			s.stats.Damaged++
			s.markPassed(q, at, int64(h.items))
			s.skipTo(q, h.end())
			s.pass(q, &h, at)
			continue
		}
		q.held, q.errors = &held{header: h, at: at}, 0
		return Record{
			Items: int(h.items), Flags: h.flags, Body: body,
			Doubt: h.state != waiting, Time: time.Unix(0, h.time),
		}, true
	}
	return Record{}, false
}

// retry says whether reading is to be tried again later, as an error of the disk
// may pass. It is given up in the end, so that it holds up no later record.
func (s *Spool) retry(q *queue, err error) bool {
	if err == nil || errors.Is(err, io.EOF) {
		return false
	}
	s.stats.Errors++
	q.errors++
	if q.errors%maxReads != 0 {
		return true
	}
	s.stats.Damaged++
	return false
}

// findNext finds the oldest record of the first segment that can be read.
func (s *Spool) findNext(q *queue) (header, int64, error) {
	seg := q.segs[0]
	if q.r == nil {
		f, err := s.disk.Open(seg.name())
		if err != nil {
			return header{}, 0, err
		}
		q.r = f
	}
	for {
		h, at, err := find(q.r, q.off, seg.size, seg.salt)
		if at > q.off {
			s.stats.Damaged++
		}
		if err != nil {
			return h, at, err
		}
		if h.number >= q.head && h.end() <= seg.end {
			return h, at, nil
		}
		q.off = at + h.length() // of somewhere else
		s.stats.Damaged++
	}
}

// skipHole counts what is missing before a record, and marks the hole, or a later
// run would count it again.
func (s *Spool) skipHole(q *queue, h *header, at int64) {
	missing := int64(h.number) - int64(q.head)
	if missing <= 0 {
		return
	}
	if at-q.off < headerSize { // no place of its own
		s.stats.Unmarked += missing
	} else {
		s.markPassed(q, q.off, missing)
	}
	s.skipTo(q, h.number)
}

// skipTo counts the items up to a number as lost by damage.
func (s *Spool) skipTo(q *queue, number uint64) {
	if number > q.head {
		s.lost(q.index, Damage, int64(number-q.head))
		q.head = number
	}
}

// pass goes on behind a record of the first segment, and removes the segment if
// it was the last one.
func (s *Spool) pass(q *queue, h *header, at int64) {
	q.head = max(q.head, h.end())
	q.off = at + h.length()
	if q.off >= q.segs[0].size {
		s.finish(q)
	}
}

// finish removes the first segment of a queue.
func (s *Spool) finish(q *queue) {
	seg := q.segs[0]
	if q.r != nil {
		q.r.Close()
		q.r = nil
	}
	s.discard(seg)
	q.head = max(q.head, seg.end)
	q.segs, q.off = q.segs[1:], 0
	s.closeGap(q)
}

// closeGap counts what is missing before the first segment. It must not wait
// until that is read: a later run would find nothing missing.
func (s *Spool) closeGap(q *queue) {
	if len(q.segs) > 0 {
		s.skipTo(q, q.segs[0].first)
	}
}

// mark writes the state of a record. It reports whether it could.
func (s *Spool) mark(q *queue, at int64, st state) bool {
	if q.r == nil {
		return false
	}
	if _, err := q.r.WriteAt([]byte{byte(st)}, at+stateAt); err != nil {
		s.stats.Errors++
		return false
	}
	return true
}

// markPassed marks what is at an offset as done with.
func (s *Spool) markPassed(q *queue, at, items int64) {
	if !s.mark(q, at, done) {
		s.stats.Unmarked += items
	}
}

// Sending says that the record from Next is about to be sent: if the process
// ends before Done or Back, it may have arrived.
func (s *Spool) Sending(queue int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[queue]
	if h := q.held; h != nil && !h.orphan && h.state == waiting && s.mark(q, h.at, doubtful) {
		h.state = doubtful
	}
}

// Back says that the record from Next was not taken and stays. Doubt is whether
// it may have arrived all the same. It returns false if the record has had to
// make room meanwhile: it is lost then, and was counted.
func (s *Spool) Back(queue int, doubt bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[queue]
	h := q.held
	q.held = nil
	if h == nil {
		return false
	}
	if h.orphan {
		s.adrift(queue, -int64(h.items))
		s.lost(queue, Full, int64(h.items))
		return false
	}
	if !doubt && h.state == doubtful {
		s.mark(q, h.at, waiting)
	}
	return true
}

// Done removes the record from Next: it was sent, or will never be.
func (s *Spool) Done(queue int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[queue]
	h := q.held
	q.held = nil
	switch {
	case h == nil:
		return
	case h.orphan:
		s.adrift(queue, -int64(h.items))
		return
	}
	if s.closed {
		s.stats.Unmarked += int64(h.items)
		return
	}
	s.markPassed(q, h.at, int64(h.items))
	s.pass(q, &h.header, h.at)
}
