package probes

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// ledger is a page of memory that outlives the agent: an array map that is pinned and
// mapped, so that noting something costs no system call and SIGKILL loses nothing of
// what was noted. Its words are written one by one; what must be whole is in the books,
// which internal/export writes so that a torn one is found out.
type ledger struct {
	m   *ebpf.Map
	mem *ebpf.Memory
}

// Words of the ledger, 8 bytes each.
const (
	wordContract     = iota // hash of the maps' layout, of the agent that made them
	wordLife                // how the agent's life goes
	wordPID                 // of the agent
	wordPIDStart            // and its start time, in clock ticks since boot
	wordBeat                // age of the machine in ns at which it was last seen alive
	wordCollected           // Unix time in ns to which histograms are exported
	wordSince               // Unix time in ns at which the accounts begin
	wordInvalid             // records that made no sense
	wordCrash               // spans that were read and not handed over when an agent was killed
	wordLogsOpen            // lines that are read and not handed over
	wordLogsCrash           // of those, when agents were killed
	wordUnattended          // ns without an agent
	wordIncompatible        // records that an agent of another version had left
)

// What wordLife says.
const (
	lifeNone    = iota
	lifeRunning // or killed
	lifeEnded   // in good order
)

// The books of the signals follow the words.
const (
	ledgerSize = 4096
	booksAt    = 1024
	bookSize   = 1024
)

var ledgerSpec = ebpf.MapSpec{
	Name: "ledger", Type: ebpf.Array, KeySize: 4, ValueSize: ledgerSize, MaxEntries: 1,
	Flags: 1 << 10, // BPF_F_MMAPABLE
}

func mapLedger(m *ebpf.Map) (*ledger, error) {
	mem, err := m.Memory()
	if err != nil {
		return nil, fmt.Errorf("map ledger: %w", err)
	}
	return &ledger{m: m, mem: mem}, nil
}

func (l *ledger) get(word int) uint64 {
	var b [8]byte
	if _, err := l.mem.ReadAt(b[:], int64(8*word)); err != nil {
		return 0 // not reached: words are within the page
	}
	return binary.NativeEndian.Uint64(b[:])
}

func (l *ledger) set(word int, v uint64) {
	var b [8]byte
	binary.NativeEndian.PutUint64(b[:], v)
	_, _ = l.mem.WriteAt(b[:], int64(8*word)) // as get
}

// clear empties the accounts; how the last life went stays.
func (l *ledger) clear() {
	for _, w := range []int{wordContract, wordCollected, wordInvalid, wordCrash, wordLogsOpen, wordLogsCrash, wordUnattended, wordIncompatible} {
		l.set(w, 0)
	}
	l.set(wordSince, uint64(time.Now().UnixNano()))
	_, _ = l.mem.WriteAt(make([]byte, ledgerSize-booksAt), booksAt)
}

// book is the part of the page that belongs to one signal.
type book struct {
	ledger *ledger
	at     int64
}

// ReadAt implements [io.ReaderAt] within the book.
func (b book) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > bookSize {
		return 0, fmt.Errorf("read of %d bytes at %d: outside of the book", len(p), off)
	}
	return b.ledger.mem.ReadAt(p, b.at+off)
}

// WriteAt implements [io.WriterAt] within the book.
func (b book) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > bookSize {
		return 0, fmt.Errorf("write of %d bytes at %d: outside of the book", len(p), off)
	}
	return b.ledger.mem.WriteAt(p, b.at+off)
}
