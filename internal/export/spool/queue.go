package spool

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"regexp"
	"strconv"
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

// segment is one file.
type segment struct {
	prefix string // name and target of its queue
	seq    uint64 // order of all segments of the directory
	first  uint64 // number of its first item
	salt   uint32
	size   int64
	end    uint64 // and of the one that follows its last
	w      File   // while it is written to
}

func newSegment(prefix string, seq, first uint64, salt uint32) *segment {
	return &segment{prefix: prefix, seq: seq, first: first, end: first, salt: salt}
}

// name says all that is needed to read the file, and where it belongs even if
// nothing of it can be read.
func (seg *segment) name() string {
	return fmt.Sprintf("%s-%016x-%016x-%08x.seg", seg.prefix, seg.seq, seg.first, seg.salt)
}

var namePattern = regexp.MustCompile(`^([a-z]{1,32}-[0-9a-f]{8})-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{8})\.seg$`)

func parseName(name string) (*segment, bool) {
	m := namePattern.FindStringSubmatch(name)
	if m == nil {
		return nil, false
	}
	seq, err := strconv.ParseUint(m[2], 16, 64)
	first, err2 := strconv.ParseUint(m[3], 16, 64)
	salt, err3 := strconv.ParseUint(m[4], 16, 32)
	if err != nil || err2 != nil || err3 != nil || seq >= maxNumber || first >= maxNumber {
		return nil, false
	}
	return newSegment(m[1], seq, first, uint32(salt)), true
}

// write appends a record. The header comes last: without it the rest is nothing.
func (seg *segment) write(h *header, body []byte) error {
	if _, err := seg.w.WriteAt(body, seg.size+headerSize); err != nil {
		return err
	}
	_, err := seg.w.WriteAt(h.encode(seg.salt), seg.size)
	return err
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

// adopt adds a segment of an earlier run to a queue. Records leave in order, so
// that what stands before one that is done is done too.
func (s *Spool) adopt(q *queue, seg *segment) {
	c, err := s.scan(seg)
	if err != nil {
		s.stats.Errors++
	}
	s.stats.Damaged += c.holes
	if !q.known {
		q.known, q.head, q.tail = true, seg.first, seg.first
	}
	if c.records == 0 || seg.first < q.tail {
		// Nothing to be read; or a copy that somebody has put there.
		if c.records > 0 {
			s.stats.Damaged++
		}
		s.discard(seg)
		return
	}
	seg.end, q.tail = c.end, c.end
	q.segs = append(q.segs, seg)
	if c.doneEnd == 0 { // nothing of it is done
		if q.since == 0 {
			q.since = c.oldest
		}
		return
	}
	for len(q.segs) > 1 {
		s.discard(q.segs[0])
		q.segs = q.segs[1:]
	}
	q.head, q.off, q.since = c.doneEnd, c.doneOff, c.oldest
	if q.head == q.tail {
		s.discard(seg)
		q.segs, q.off = nil, 0
	}
}

// content is what a scan finds in a segment.
type content struct {
	records int64
	holes   int64
	end     uint64 // number behind the last record
	doneEnd uint64 // and behind the last one that is done; 0 if none is
	doneOff int64  // where that is
	oldest  int64  // when the first record that is not done was put
}

func (s *Spool) scan(seg *segment) (content, error) {
	c := content{end: seg.first}
	f, err := s.disk.Open(seg.name())
	if err != nil {
		return c, err
	}
	defer f.Close()
	r := &window{ReaderAt: f, buf: make([]byte, 16<<10)}
	off, wasDone := int64(0), false
	for off < seg.size {
		h, at, err := find(r, off, seg.size, seg.salt)
		if at > off {
			c.holes++
			wasDone = looksDone(r, off)
		}
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return c, err
		}
		if h.number < c.end {
			return c, nil // numbers only grow: the rest is not of this segment
		}
		if wasDone { // all that is missing before this record
			c.doneEnd, c.doneOff, c.oldest = h.number, at, 0
		}
		c.records++
		c.end = h.end()
		off, wasDone = at+h.length(), h.state == done
		if wasDone {
			c.doneEnd, c.doneOff, c.oldest = c.end, off, 0
		} else if c.oldest == 0 {
			c.oldest = h.time
		}
	}
	return c, nil
}

// looksDone says whether the record with the damaged header at off was done.
func looksDone(r io.ReaderAt, off int64) bool {
	var b [headerSize]byte
	n, _ := r.ReadAt(b[:], off)
	return n == len(b) && stateOf(b[stateAt]) == done
}

// Waiting returns how many items a queue holds.
func (s *Spool) Waiting(queue int) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int64(s.queues[queue].tail - s.queues[queue].head)
}

// Ready gets a value when something was put into an empty queue.
func (s *Spool) Ready(queue int) <-chan struct{} { return s.queues[queue].ready }

// Next returns the oldest record of a queue, and false if there is none. What
// cannot be read is skipped. The record stays the oldest until Done.
func (s *Spool) Next(queue int) (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[queue]
	q.held = nil
	for len(q.segs) > 0 && !s.closed {
		seg := q.segs[0]
		h, at, err := s.findNext(q)
		if err != nil {
			s.skipTo(q, seg.end)
			s.finish(q)
			continue
		}
		s.skipTo(q, h.number)
		q.off, q.since = at, h.time
		body := make([]byte, h.size)
		if err := readFull(q.r, body, at+headerSize, seg.size); err != nil || crc32.Checksum(body, castagnoli) != h.bodySum {
			s.stats.Damaged++
			s.mark(q, at, done)
			s.skipTo(q, h.end())
			s.pass(q, &h, at)
			continue
		}
		q.held = &held{header: h, at: at}
		return Record{
			Items: int(h.items), Flags: h.flags, Body: body,
			Doubt: h.state != waiting, Time: time.Unix(0, h.time),
		}, true
	}
	return Record{}, false
}

// findNext finds the oldest record of the first segment that can be read.
func (s *Spool) findNext(q *queue) (header, int64, error) {
	seg := q.segs[0]
	if q.r == nil {
		f, err := s.disk.Open(seg.name())
		if err != nil {
			s.stats.Errors++
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
			if !errors.Is(err, io.EOF) {
				s.stats.Errors++
			}
			return h, at, err
		}
		if h.number >= q.head && h.end() <= seg.end {
			return h, at, nil
		}
		q.off = at + h.length() // of somewhere else
		s.stats.Damaged++
	}
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
	if s.closed || !s.mark(q, h.at, done) {
		s.stats.Unmarked += int64(h.items)
	}
	if !s.closed {
		s.pass(q, &h.header, h.at)
	}
}
