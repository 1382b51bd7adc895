package probes

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/process"
)

// A request may never end: a WebSocket, an event stream, a handler that hangs. Each takes
// a place in the kernel's tables, which are as large as they are. So after a time its span
// is handed over as it stands, and the place is free again.
//
// The process runs on meanwhile, and its programs with it, so this takes two looks. The
// first exchanges the address of the entry for one that no goroutine has: from then on no
// program finds it. By the second, whatever program had found it before has ended, and the
// entry is nobody else's. If that program has ended the span, depth is 0, and nothing is
// left to do.

const (
	// withdrawn stands for the address of an entry that was taken from its goroutine.
	withdrawn = 1

	leastLook = time.Second // between two looks; programs take microseconds
	mostLook  = 10 * time.Second

	mostSnapshots = 256         // at one go: a process has a second to answer
	muteFor       = time.Minute // before one that did not is asked again

	// crowdedAge is how old what is open must be, to make room for what is new.
	crowdedAge = 10 * time.Second
)

// overdue hands over what is open for too long. One goroutine runs it.
type overdue struct {
	kernel  *kernel
	targets *targets
	reader  *reader
	log     *slog.Logger
	limit   time.Duration

	memory  []byte                    // of goroutine_table, shared with the kernel
	buckets []bpf.AgentTableBucket    // the same
	taken   []*overdueSpan            // at the last look
	mute    map[*event.Process]uint64 // their memory did not answer; not asked again until then
}

// overdueSpan is an entry of the table, and what its goroutine has open.
type overdueSpan struct {
	entry     *bpf.AgentTableEntry
	bucket    uint32
	address   uint64 // of the g
	tgid      uint32
	index     uint32 // of goroutines
	goroutine *bpf.AgentGoroutine
	record    []byte // of the first span, as it stood; nil: none can be made
	end       uint64 // CLOCK_MONOTONIC, ns
}

// newOverdue makes room only when it gets crowded if limit is 0.
func newOverdue(k *kernel, t *targets, r *reader, limit time.Duration, log *slog.Logger) (*overdue, error) {
	if limit <= 0 {
		limit = math.MaxInt64
	}
	table := k.mapOf("goroutine_table")
	n := int(table.MaxEntries())
	memory, err := unix.Mmap(table.FD(), 0, n*int(unsafe.Sizeof(bpf.AgentTableBucket{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map goroutine_table: %w", err)
	}
	return &overdue{
		kernel: k, targets: t, reader: r, limit: limit, log: log, memory: memory,
		buckets: unsafe.Slice((*bpf.AgentTableBucket)(unsafe.Pointer(unsafe.SliceData(memory))), n),
		mute:    map[*event.Process]uint64{},
	}, nil
}

// run looks again and again until ctx is done. What it has taken then is settled when no
// probe is attached any more.
func (o *overdue) run(ctx context.Context) {
	tick := time.NewTicker(min(max(o.limit/10, leastLook), mostLook))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			o.settle()
			o.look(monotonic())
			o.lookByHand(monotonic())
		}
	}
}

func (o *overdue) close() error {
	o.buckets, o.taken = nil, nil
	return unix.Munmap(o.memory)
}

// look takes what is open for too long from its goroutine.
func (o *overdue) look(now uint64) {
	open := o.open()
	limit := uint64(o.limit)
	room := len(o.buckets) * tableWays
	slices.SortFunc(open, func(a, b *overdueSpan) int {
		return cmp.Compare(a.goroutine.Frames[0].StartNs, b.goroutine.Frames[0].StartNs)
	})
	n := 0
	for n < len(open) {
		age := now - min(open[n].goroutine.Frames[0].StartNs, now)
		crowded := len(open)-n > room/4*3 && age > uint64(crowdedAge)
		if age <= limit && !crowded {
			break
		}
		n++
	}
	if n == 0 {
		return
	}
	o.snapshots(open[:n])
	for _, s := range open[:n] {
		if o.withdraw(s) {
			o.taken = append(o.taken, s)
		}
	}
	o.log.Debug("spans are open for too long", "spans", len(o.taken))
}

// lookByHand frees the places of spans that a program has made by hand and not ended for too
// long: it may have forgotten them. They are counted; what they say is known at their end only.
func (o *overdue) lookByHand(now uint64) {
	room := int(o.kernel.mapOf("auto_spans").MaxEntries())
	left := 0
	older := func(limit uint64) func(*bpf.AgentAutoSpanKey, *bpf.AgentAutoSpan) bool {
		return func(_ *bpf.AgentAutoSpanKey, s *bpf.AgentAutoSpan) bool {
			if now-min(s.Frame.StartNs, now) > limit {
				return true
			}
			left++
			return false
		}
	}
	lost, err := o.kernel.purgeAutoSpans(older(uint64(o.limit)))
	if err == nil && left > room/4*3 {
		var more uint64
		more, err = o.kernel.purgeAutoSpans(older(uint64(crowdedAge)))
		lost += more
	}
	if err != nil {
		o.log.Debug("spans that programs have forgotten stay in the kernel", "error", err)
	}
	o.targets.addPast(bpf.AgentCounterCOUNT_LOST_MAX_DURATION, lost)
}

// open lists the goroutines that have spans open.
func (o *overdue) open() []*overdueSpan {
	var open []*overdueSpan
	for i := range o.buckets {
		for way := range o.buckets[i].Entries {
			e := &o.buckets[i].Entries[way]
			address := atomic.LoadUint64(&e.Address)
			if address == 0 || address == withdrawn {
				continue
			}
			s := &overdueSpan{entry: e, bucket: uint32(i), address: address, tgid: e.Tgid, index: uint32(e.Value)}
			if s.goroutine = o.goroutine(s.index); s.goroutine != nil && s.goroutine.Depth > 0 {
				open = append(open, s)
			}
		}
	}
	return open
}

func (o *overdue) goroutine(index uint32) *bpf.AgentGoroutine {
	g := new(bpf.AgentGoroutine)
	if o.kernel.mapOf("goroutines").Lookup(index, g) != nil {
		return nil
	}
	return g
}

// withdraw takes an entry from its goroutine, if that has the same span open that was read.
func (o *overdue) withdraw(s *overdueSpan) bool {
	same := func() bool {
		g := o.goroutine(s.index)
		return g != nil && g.Depth > 0 && g.Frames[0].SpanId == s.goroutine.Frames[0].SpanId
	}
	if !same() || !atomic.CompareAndSwapUint64(&s.entry.Address, s.address, withdrawn) {
		return false
	}
	s.end = monotonic()
	if same() {
		return true
	}
	// The next request of the goroutine has begun in between: it is not long open.
	atomic.CompareAndSwapUint64(&s.entry.Address, withdrawn, s.address)
	return false
}

// settle hands over what was taken at the last look, and frees its entries.
func (o *overdue) settle() {
	o.kernel.tables.Lock()
	defer o.kernel.tables.Unlock()
	taken := o.taken
	o.taken = nil
	if len(taken) == 0 {
		return
	}
	contexts := map[contextOf]bool{}
	for _, s := range taken {
		if atomic.LoadUint64(&s.entry.Address) != withdrawn {
			continue // its process has ended, and with it all that it had open
		}
		if g := o.goroutine(s.index); g != nil && g.Depth > 0 {
			s.goroutine.Depth = g.Depth
			contexts[contextOf{s.tgid, g.Context}] = true
			o.hand(s)
		}
	}
	// A context first: it leads to the goroutine.
	err := o.kernel.eachEntry("context_table", func(e bpf.AgentTableEntry) bool {
		return contexts[contextOf{e.Tgid, e.Address}]
	})
	if err != nil {
		o.log.Warn("contexts of spans that were open for too long stay in the kernel", "error", err)
	}
	for _, s := range taken {
		if atomic.CompareAndSwapUint64(&s.entry.Address, withdrawn, 0) {
			o.free(s)
		}
	}
}

type contextOf struct {
	tgid    uint32
	context uint64
}

// free gives an entry's place back, as table_remove of bpf/table.h does.
func (o *overdue) free(s *overdueSpan) {
	atomic.AddUint32(&s.entry.Claims, ^uint32(0))
	if first := tableHash(s.address, s.tgid) & uint32(len(o.buckets)-1); first != s.bucket {
		atomic.AddUint32(&o.buckets[first].Overflow, ^uint32(0))
	}
}

// tableHash is table_hash of bpf/table.h, of an address's first bucket.
func tableHash(address uint64, tgid uint32) uint32 {
	return uint32((address ^ uint64(tgid)<<40) * 0x9e3779b97f4a7c15 >> 40)
}

// hand gives the first span to the reader, and counts whatever is not exported.
func (o *overdue) hand(s *overdueSpan) {
	g := s.goroutine
	count := func(c bpf.AgentCounter, n uint64) { o.targets.addPast(c, n) }
	count(bpf.AgentCounterCOUNT_LOST_MAX_DURATION, uint64(g.Depth-1))
	switch {
	case g.Sampled != 0 && s.record == nil:
		count(bpf.AgentCounterCOUNT_LOST_MAX_DURATION, 1)
	case g.Sampled != 0:
		binary.LittleEndian.PutUint64(s.record[unsafe.Offsetof(bpf.AgentRecordHeader{}.EndNs):], s.end)
		count(bpf.AgentCounterCOUNT_EMITTED, 1)
		o.reader.later(s.record)
	default:
		// Its children that had ended wait to hear how it ends.
		stashed := uint64(g.StashMissed)
		for i, claims := range g.StashClaims {
			if claims != 0 && g.Stash[i].RootId == g.RootId {
				stashed++
			}
		}
		count(unsampledBecause(g), 1+stashed)
	}
}

// unsampledBecause is the reason that count_unsampled of bpf/span.h counts.
func unsampledBecause(g *bpf.AgentGoroutine) bpf.AgentCounter {
	switch {
	case g.BackedOff == uint32(bpf.AgentUnwantedDROPPED_BY_RULE):
		return bpf.AgentCounterCOUNT_DROPPED_BY_RULE
	case g.BackedOff != 0:
		return bpf.AgentCounterCOUNT_LOST_BACKED_OFF
	case g.RemoteLimited == uint32(bpf.AgentRemoteLimitedREMOTE_REFUSED):
		return bpf.AgentCounterCOUNT_REMOTE_LIMITED
	}
	return bpf.AgentCounterCOUNT_SAMPLED_OUT
}

// snapshots makes records of the spans whose kind allows that, process by process.
func (o *overdue) snapshots(spans []*overdueSpan) {
	byProcess := map[uint32][]*overdueSpan{}
	for _, s := range spans {
		if s.goroutine.Sampled != 0 && s.goroutine.Frames[0].Kind == uint32(bpf.AgentNethttpKindRECORD_HTTP_SERVER) {
			byProcess[s.tgid] = append(byProcess[s.tgid], s)
		}
	}
	now := monotonic()
	maps.DeleteFunc(o.mute, func(_ *event.Process, until uint64) bool { return now > until })
	for tgid, list := range byProcess {
		tg := o.targets.find(int(tgid))
		if tg == nil || o.mute[tg.process] > 0 {
			continue
		}
		for some := range slices.Chunk(list, mostSnapshots) {
			records, err := o.inspect(tg, some)
			if err != nil {
				o.mute[tg.process] = now + uint64(muteFor)
				o.log.Debug("requests that are open for too long cannot be read", "pid", tgid, "error", err)
				break
			}
			for i, s := range some {
				s.record = records[i]
			}
		}
	}
}

func (o *overdue) inspect(tg *target, spans []*overdueSpan) ([][]byte, error) {
	layouts, err := o.kernel.httpLayouts(tg.binary.id)
	if err != nil {
		return nil, err
	}
	return process.Inspect(tg.process.PID, tg.process.StartTime, func(read process.Reader) [][]byte {
		records := make([][]byte, len(spans))
		for i, s := range spans {
			records[i] = httpSnapshot(read, &layouts, s, tg.binary.id)
		}
		return records
	})
}

// monotonic is CLOCK_MONOTONIC in ns, the time of the kernel's records.
func monotonic() uint64 {
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		return 0
	}
	return uint64(now.Nano())
}
