package spool

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
)

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

// adopt adds a segment of an earlier run to a queue. Records leave in order, so
// that what stands before one that is done is done too.
func (s *Spool) adopt(q *queue, seg *segment) {
	c, err := s.scan(seg)
	if err != nil {
		s.stats.Errors++
		if c.records == 0 {
			// A later run may be able to.
			s.foreign = append(s.foreign, seg)
			return
		}
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
