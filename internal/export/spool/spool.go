// Package spool keeps requests on disk that could not be sent, until they can:
// a few first-in-first-out queues in one directory, within one limit of size.
//
// A queue is a row of segments, files that are written once from front to back
// and removed whole. The way of a record:
//
//	Put       appended to the queue's open segment               spool.go
//	Next      read and checked, oldest first                     queue.go
//	Sending   marked in place: it may have arrived               queue.go
//	Done      marked in place; the last one removes the segment  queue.go
//	Back      or: still the oldest, to be tried again            queue.go
//
// Nothing but the directory says what is in a queue. There is no index that
// could disagree with it, and memory does not grow with the number of records.
//
// What a crash leaves behind is good as it is. A record's header is written
// after its body, so that half a record is none; marking is one byte. The end of
// the process loses nothing that Put has returned for; the end of the machine
// loses what was put in the last second.
//
// Every item is accounted for. Each record says how many items were put into
// its queue before it, so that a hole in a damaged segment is counted in items,
// and exactly, from the record that follows. Only where the newest record of all
// is damaged is there nobody to tell: such places are counted as Damaged.
//
// Why not a library: of those that keep a queue on disk, tidwall/wal has no
// checksums and does not open a log that it finds damaged; hashicorp/raft-wal
// checks only its last batch, when it recovers, has one truncation point and no
// mark on a record, and wants a bbolt database beside it and the raft module.
// Neither is bounded in size or drops its oldest part by itself. What is left to
// write around them would be most of this package.
package spool

import (
	"cmp"
	"errors"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// Reason is why items of a spool were lost.
type Reason int

// Reasons.
const (
	Full   Reason = iota // the oldest made room for newer ones
	Damage               // a record could not be read back
)

// Errors that [Spool.Put] returns, beside those of the disk.
var (
	ErrTooLarge = errors.New("larger than the spool takes")
	ErrClosed   = errors.New("spool is closed")
)

const (
	minSegment  = 64 << 10
	maxSegment  = 8 << 20
	maxSegments = 4096 // of all queues
	maxRetired  = 16
	maxReads    = 3    // of a record, if the disk returns errors
	blockSize   = 4096 // a file takes whole blocks
	syncDelay   = time.Second
)

// Queue names one queue.
type Queue struct {
	Name string // letters
	// Target tells apart what the records are meant for. Records that were put
	// for another target are kept, within the limit, but not handed out.
	Target string
}

// Options are what a spool is opened with.
type Options struct {
	Limit  int64 // bytes on disk, of all queues together
	Queues []Queue
	Logger *slog.Logger
	// Lost is told of items that are lost, Adrift of those of a record that had
	// to make room while it was handed out: they are not on disk any more. With
	// Done or Back it is told again, with a negative number, for what becomes
	// of them is counted as for all. Both are called with the spool locked, and
	// must not call it; never before Start.
	Lost   func(queue int, why Reason, items int64)
	Adrift func(queue int, items int64)

	// Disk is used instead of the directory, by tests.
	Disk Disk
}

// Spool is an open directory. Its methods may be called from several
// goroutines; Next, Sending, Done and Back of one queue from one only.
type Spool struct {
	limit   int64
	segment int64
	lost    func(int, Reason, int64)
	adrift  func(int, int64)
	logger  *slog.Logger

	mu      sync.Mutex
	disk    Disk
	queues  []*queue
	foreign []*segment // for other targets, oldest first
	seq     uint64     // of the next segment
	stats   Stats
	closed  bool
	dirty   []File // written to since the last sync
	retired []File // full segments, to be synced and closed
	timer   *time.Timer
	syncing sync.Mutex
}

// Stats is a snapshot of a spool.
type Stats struct {
	Bytes    int64     // on disk
	Foreign  int64     // of these, for other targets
	Segments int       // files
	Oldest   time.Time // when the oldest waiting record was put; zero if there is none
	Damaged  int64     // places that could not be read, some of unknown content
	Unmarked int64     // items that were sent, or lost, but could not be marked so: a later run has them again
	Errors   int64     // of the disk
}

// Open opens or makes the spool in the directory at path. An error that is
// [ErrLocked] says that another process has it open. Damage is no error.
func Open(path string, o Options) (*Spool, error) {
	if o.Disk == nil {
		d, err := OpenDirectory(path)
		if err != nil {
			return nil, err
		}
		o.Disk = d
	}
	s := &Spool{
		limit:   o.Limit,
		segment: min(max(o.Limit/16, minSegment), maxSegment),
		lost:    o.Lost,
		adrift:  o.Adrift,
		logger:  o.Logger,
		disk:    o.Disk,
	}
	for i, q := range o.Queues {
		s.queues = append(s.queues, newQueue(i, q))
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("read spool: %w", err), o.Disk.Close())
	}
	return s, nil
}

// load finds the segments of earlier runs. They are read, never appended to.
func (s *Spool) load() error {
	entries, err := s.disk.List()
	if err != nil {
		return err
	}
	var found []*segment
	for _, e := range entries {
		seg, ok := parseName(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // gone
		}
		seg.size = info.Size()
		s.seq = max(s.seq, seg.seq+1)
		found = append(found, seg)
	}
	slices.SortFunc(found, func(a, b *segment) int { return cmp.Compare(a.seq, b.seq) })
	for _, seg := range found {
		s.stats.Bytes += blocks(seg.size)
		s.stats.Segments++
		i := slices.IndexFunc(s.queues, func(q *queue) bool { return q.prefix == seg.prefix })
		if i < 0 {
			s.foreign = append(s.foreign, seg)
			continue
		}
		s.adopt(s.queues[i], seg)
	}
	return nil
}

// Start counts what is missing from earlier runs, and makes room if the limit is
// lower than it was.
func (s *Spool) Start() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.queues {
		s.closeGap(q)
	}
	s.makeRoom(0)
}

// Put appends a record to a queue; the body is not kept. If there is no room,
// the oldest segments go.
func (s *Spool) Put(queue int, r Record) error {
	need := headerSize + int64(len(r.Body))
	if len(r.Body) > MaxBody || r.Items <= 0 || r.Items > maxItems || blocks(need) > s.limit {
		return ErrTooLarge
	}
	sum := crc32.Checksum(r.Body, castagnoli)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	q := s.queues[queue]
	s.makeRoom(blocks(need) + blockSize)
	seg, err := s.openSegment(q, need)
	if err != nil {
		s.stats.Errors++
		return fmt.Errorf("create segment: %w", err)
	}
	h := header{
		state: waiting, flags: r.Flags, size: uint32(len(r.Body)), items: uint32(r.Items),
		number: q.tail, time: time.Now().UnixNano(), bodySum: sum,
	}
	if r.Doubt {
		h.state = doubtful
	}
	if err := seg.write(&h, r.Body); err != nil {
		s.stats.Errors++
		s.abandon(q, seg)
		return fmt.Errorf("write segment: %w", err)
	}
	if q.head == q.tail {
		q.since = h.time
	}
	s.grow(seg, need)
	q.tail = h.end()
	seg.end = q.tail
	s.touched(seg.w)
	q.wake()
	return nil
}

// openSegment returns the segment that a record of so many bytes goes into.
func (s *Spool) openSegment(q *queue, need int64) (*segment, error) {
	if n := len(q.segs); n > 0 && q.segs[n-1].w != nil {
		last := q.segs[n-1]
		if last.size+need <= s.segment {
			return last, nil
		}
		s.seal(last)
	}
	seg := newSegment(q.prefix, s.seq, q.tail, rand.Uint32())
	w, err := s.disk.Create(seg.name())
	if err != nil {
		return nil, err
	}
	seg.w = w
	s.seq++
	s.stats.Segments++
	q.segs = append(q.segs, seg)
	return seg, nil
}

// abandon gives up a segment that could not be written to. What it holds
// already stays.
func (s *Spool) abandon(q *queue, seg *segment) {
	// The rest of a torn write would take up room, and be counted as damage.
	if err := seg.w.Truncate(seg.size); err != nil {
		s.stats.Errors++
	}
	if seg.size == 0 {
		q.segs = q.segs[:len(q.segs)-1]
		s.discard(seg)
		return
	}
	s.seal(seg)
}

// seal ends the writing of a segment.
func (s *Spool) seal(seg *segment) {
	if seg.w == nil {
		return
	}
	s.dirty = slices.DeleteFunc(s.dirty, func(f File) bool { return f == seg.w })
	if len(s.retired) >= maxRetired { // the disk is far behind
		s.retired[0].Close()
		s.retired = s.retired[1:]
	}
	s.retired = append(s.retired, seg.w)
	seg.w = nil
	s.arm()
}

// grow accounts for bytes that were appended.
func (s *Spool) grow(seg *segment, n int64) {
	s.stats.Bytes += blocks(seg.size+n) - blocks(seg.size)
	seg.size += n
}

// makeRoom removes the oldest segments until so many bytes fit in.
func (s *Spool) makeRoom(need int64) {
	for s.stats.Segments > 0 && (s.stats.Bytes+need > s.limit || s.stats.Segments >= maxSegments) {
		if len(s.foreign) > 0 {
			s.logger.Warn("spool is full: what another endpoint did not take is dropped", "bytes", s.foreign[0].size)
			s.discard(s.foreign[0])
			s.foreign = s.foreign[1:]
			continue
		}
		oldest := -1
		for i, q := range s.queues {
			if len(q.segs) > 0 && (oldest < 0 || q.segs[0].seq < s.queues[oldest].segs[0].seq) {
				oldest = i
			}
		}
		if oldest < 0 {
			return
		}
		s.evict(oldest)
	}
}

// evict drops the oldest segment of a queue. A record of it that is being sent
// is not lost yet: what becomes of it, its sender says.
func (s *Spool) evict(i int) {
	q := s.queues[i]
	seg := q.segs[0]
	if lost := int64(seg.end-q.head) - q.heldItems(); lost > 0 {
		s.lost(i, Full, lost)
	}
	if q.held != nil && !q.held.orphan {
		q.held.orphan = true
		s.adrift(i, int64(q.held.items))
	}
	s.finish(q)
}

// discard removes a segment's file.
func (s *Spool) discard(seg *segment) {
	if seg.w != nil {
		s.dirty = slices.DeleteFunc(s.dirty, func(f File) bool { return f == seg.w })
		seg.w.Close()
		seg.w = nil
	}
	s.stats.Bytes -= blocks(seg.size)
	s.stats.Segments--
	if err := s.disk.Remove(seg.name()); err != nil {
		// Its records are marked as done, or counted as lost. It is not
		// counted as a file any more, or there could be no way out.
		s.stats.Errors++
	}
}

// Stats returns a snapshot.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	for _, seg := range s.foreign {
		st.Foreign += blocks(seg.size)
	}
	for _, q := range s.queues {
		if t := time.Unix(0, q.since); q.head < q.tail && (st.Oldest.IsZero() || t.Before(st.Oldest)) {
			st.Oldest = t
		}
	}
	return st
}

// Close makes durable what there is and gives up the directory.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for _, q := range s.queues {
		if q.r != nil {
			q.r.Close()
			q.r = nil
		}
		if n := len(q.segs); n > 0 {
			s.seal(q.segs[n-1])
		}
	}
	if s.timer != nil {
		s.timer.Stop()
	}
	s.mu.Unlock()
	err := s.sync()
	return errors.Join(err, s.disk.Close())
}

func blocks(n int64) int64 { return (n + blockSize - 1) / blockSize * blockSize }
