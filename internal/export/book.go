package export

import (
	"encoding/binary"
	"hash/crc32"
	"hash/fnv"
	"io"
)

// Memory is a place of [BookSize] bytes at least that outlives the process.
type Memory interface {
	io.ReaderAt
	io.WriterAt
}

// book keeps the ledger of a lane in memory that outlives the agent, so that the next one
// can say of each item that was in this one's memory that it was lost. It has two pages
// and writes them in turn: one that was torn by a SIGKILL is found out by its sum, and the
// other is one step older. A nil book keeps nothing.
type book struct {
	memory  Memory
	edition uint64
}

// page is a lane's ledger as it is written.
type page struct {
	Version    uint64 // of the list of reasons
	Edition    uint64
	Fresh      int64
	Received   int64
	Exported   int64
	Again      int64
	Unsettled  int64
	MaybeTwice int64
	Lost       losses
}

const (
	pageSize = 8*8 + 8*int(reasonCount) + 4 // with the sum
	// BookSize is how much memory the accounts of a signal take.
	BookSize = 2 * pageSize
)

// bookVersion changes with the reasons.
func bookVersion() uint64 {
	h := fnv.New64a()
	for r := range reasonCount {
		io.WriteString(h, r.String()+" ")
	}
	return h.Sum64()
}

// write keeps the ledger. The caller holds the lane's mu.
func (b *book) write(l *lane) {
	if b == nil {
		return
	}
	b.edition++
	p := page{
		Version: bookVersionNow, Edition: b.edition, Fresh: l.fresh, Received: l.received, Exported: l.exported,
		Again: l.again, Unsettled: l.unsettled, MaybeTwice: l.maybeTwice, Lost: l.lost,
	}
	var buf [pageSize]byte
	if _, err := binary.Encode(buf[:], binary.NativeEndian, &p); err != nil {
		return // not reached: the size is right
	}
	binary.NativeEndian.PutUint32(buf[pageSize-4:], crc32.Checksum(buf[:pageSize-4], castagnoli))
	_, _ = b.memory.WriteAt(buf[:], int64(b.edition%2)*int64(pageSize)) // within the memory
}

var (
	bookVersionNow = bookVersion()
	castagnoli     = crc32.MakeTable(crc32.Castagnoli)
)

// read returns the newest page that is whole.
func (b *book) read() (newest page, ok bool) {
	var buf [pageSize]byte
	for i := range int64(2) {
		var p page
		if _, err := b.memory.ReadAt(buf[:], i*int64(pageSize)); err != nil {
			continue
		}
		if binary.NativeEndian.Uint32(buf[pageSize-4:]) != crc32.Checksum(buf[:pageSize-4], castagnoli) {
			continue
		}
		if _, err := binary.Decode(buf[:], binary.NativeEndian, &p); err != nil || p.Version != bookVersionNow || p.Edition == 0 {
			continue
		}
		if p.Edition > newest.Edition {
			newest, ok = p, true
		}
	}
	return newest, ok
}

// inherit begins a lane with the ledger of an agent that was killed, of which so many
// items are found in the spool. It returns how many of these the ledger does not know. The
// caller holds the lane's mu.
func (b *book) inherit(l *lane, found int64) (unknown int64) {
	if b == nil {
		return found
	}
	p, ok := b.read()
	if !ok {
		return found
	}
	b.edition = p.Edition
	// What was to be collected again is not here.
	l.fresh, l.received = p.Fresh-p.Again, p.Received-p.Again
	l.exported, l.lost, l.maybeTwice = p.Exported, p.Lost, p.MaybeTwice+p.Unsettled
	if gone := l.received - l.exported - l.lost.total() - found; gone >= 0 {
		l.lost[lostCrash] += gone
		l.crashed = gone
	} else {
		unknown = -gone
	}
	return unknown
}

// WithBook keeps the accounts of a signal, by its number from 0 to 2, in memory that
// outlives the agent; nil is none.
func WithBook(of func(signal int) Memory) Option {
	return func(o *options) { o.book = of }
}
