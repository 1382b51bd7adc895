package probes

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"slices"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"go.opentelemetry.io/otel/attribute"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/process"
)

// An agent that follows one that was killed finds its maps as they were (state.go). It
// takes them over in this order, before anything is attached, so that nothing moves:
//
//	binaries     numbers in records and series mean what they meant
//	processes    those that run are followed, the others known from their cards
//	open spans   their ends were not seen: freed, and counted
//	baselines    how far each histogram was exported
//	ring         read; what the other had read and not handed over is counted as crash

// binaryRecord says which executable a number stands for. Time and size tell it from
// another file that was given the same inode.
type binaryRecord struct {
	Dev, Ino, Size uint64
	Ctime          int64
	Path           [256]byte
}

// cardRecord is who a process was: its resource as JSON.
type cardRecord struct {
	Start  uint64
	Binary uint32
	Length uint32
	Text   [4080]byte
}

// pastRecord is what processes that are gone have counted. Retiring is one whose counts
// are in it already, though its entry may still be there; 0 is none.
type pastRecord struct {
	Counters [bpf.AgentCounterCOUNTERS]uint64
	Retiring uint64
}

// saveBinary notes what a number stands for.
func (s *State) saveBinary(b *executable) {
	if !s.keeps() || b.exe == nil {
		return
	}
	r, err := recordOfFile(b.exe)
	if err == nil {
		copy(r.Path[:], b.path)
		err = s.binaries.Put(b.id, &r)
	}
	if err != nil {
		s.log.Debug("after a crash, this binary would not be known", "exe", b.path, "error", err)
	}
}

func (s *State) dropBinary(id uint32) {
	if s.keeps() {
		_ = s.binaries.Delete(id) // it may have none
	}
}

func recordOfFile(f *os.File) (r binaryRecord, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return r, fmt.Errorf("stat executable: %w", err)
	}
	id := process.Identify(f, &st)
	return binaryRecord{Dev: id.Dev, Ino: id.Ino, Size: uint64(st.Size), Ctime: st.Ctim.Nano()}, nil
}

// saveCard notes who a process is. What does not fit is left out, longest first.
func (s *State) saveCard(p *event.Process, binary uint32) {
	if !s.keeps() {
		return
	}
	resource := map[string]any{}
	longest := map[string]int{}
	for _, kv := range p.Resource {
		resource[string(kv.Key)] = kv.Value.AsInterface()
		longest[string(kv.Key)] = len(kv.Key) + len(kv.Value.String())
	}
	card := cardRecord{Start: p.StartTime, Binary: binary}
	for {
		text, err := json.Marshal(resource)
		if err == nil && len(text) <= len(card.Text) {
			card.Length = uint32(copy(card.Text[:], text))
			break
		}
		worst := ""
		for k := range resource {
			if worst == "" || longest[k] > longest[worst] {
				worst = k
			}
		}
		if worst == "" {
			break
		}
		delete(resource, worst)
	}
	if err := s.cards.Put(uint32(p.PID), &card); err != nil {
		s.log.Debug("after a crash, this process would be known by its executable only", "pid", p.PID, "error", err)
	}
}

func (s *State) dropCard(pid int) {
	if s.keeps() {
		_ = s.cards.Delete(uint32(pid)) // it may have none
	}
}

// process is who the card describes.
func (c *cardRecord) process(pid int, exe string) *event.Process {
	p := &event.Process{PID: pid, StartTime: c.Start, Exe: exe}
	var resource map[string]any
	if err := json.Unmarshal(c.Text[:min(int(c.Length), len(c.Text))], &resource); err != nil {
		return p
	}
	for k, v := range resource {
		switch v := v.(type) {
		case string:
			p.Resource = append(p.Resource, attribute.String(k, v))
		case bool:
			p.Resource = append(p.Resource, attribute.Bool(k, v))
		case float64:
			if v == math.Trunc(v) {
				p.Resource = append(p.Resource, attribute.Int64(k, int64(v)))
			}
		case []any:
			var list []string
			for _, e := range v {
				if text, ok := e.(string); ok {
					list = append(list, text)
				}
			}
			p.Resource = append(p.Resource, attribute.StringSlice(k, list))
		}
	}
	return p
}

// inherit takes over what a killed predecessor has left.
func (a *Agent) inherit() error {
	s := a.options.State
	if !s.keeps() {
		return nil
	}
	a.reader.refused = s.ledger.get(wordInvalid)
	a.reader.invalid.Store(a.reader.refused)
	if !s.inherited {
		s.note(wordCollected, uint64(a.collect.last.At(time.Now())))
		return nil
	}
	began := time.Now()
	if err := a.targets.inheritPast(); err != nil {
		return err
	}
	if err := a.targets.inheritBinaries(); err != nil {
		return err
	}
	if err := a.targets.inheritProcesses(); err != nil {
		return err
	}
	open, err := a.kernel.purgeAll()
	if err != nil {
		return fmt.Errorf("free what was open when the agent before was killed: %w", err)
	}
	a.targets.addPast(bpf.AgentCounterCOUNT_LOST_UNFINISHED, open)
	if err := a.collect.inherit(); err != nil {
		return err
	}
	before := a.reader.decoded.Load()
	s.logsCrash = s.ledger.get(wordLogsOpen)
	s.note(wordLogsCrash, s.ledger.get(wordLogsCrash)+s.logsCrash)
	s.note(wordLogsOpen, 0)
	var record ringbuf.Record
	if err := errors.Join(a.reader.drain(&record), a.reader.drainLogs(&record)); err != nil {
		return err
	}
	a.reader.letGo(time.Time{})
	a.reader.release(time.Time{})
	a.reader.flush()
	found := a.reader.decoded.Load() - before
	a.accountCrash()
	a.log.Info("took over from an agent that was killed", "spans_in_ring", found, "spans_open", open, "spans_lost", s.crash, "took", time.Since(began))
	return nil
}

// accountCrash counts the spans that the agent before had taken out of the ring and not
// handed over. Nothing moves yet, so all others are somewhere.
func (a *Agent) accountCrash() {
	l := a.options.State.ledger
	lost := l.get(wordCrash)
	handed := a.reader.decoded.Load()
	if a.options.Handed != nil {
		handed = a.options.Handed()
	}
	a.reader.decoded.Store(handed)
	emitted := a.targets.counters()[bpf.AgentCounterCOUNT_EMITTED]
	if known := handed + a.reader.refused + lost; emitted > known {
		a.options.State.crash = emitted - known
		lost += emitted - known
		l.set(wordCrash, lost)
	}
}

// inheritPast reads what processes that are gone have counted, and finishes what the
// other was about to do.
func (t *targets) inheritPast() error {
	var past pastRecord
	if err := t.state.past.Lookup(uint32(0), &past); err != nil {
		return fmt.Errorf("read counts of the agent before: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.past = past.Counters
	if past.Retiring != 0 {
		_ = t.kernel.mapOf("processes").Delete(uint32(past.Retiring)) // it may be done already
		t.savePast(0)
	}
	return nil
}

// inheritBinaries gives binaries the numbers that they had. Of a file that is gone only
// the number is known.
func (t *targets) inheritBinaries() error {
	var id uint32
	var r binaryRecord
	records := map[uint32]binaryRecord{}
	it := t.state.binaries.Iterate()
	for it.Next(&id, &r) {
		records[id] = r
	}
	if err := it.Err(); err != nil {
		return fmt.Errorf("read binaries of the agent before: %w", err)
	}
	running := map[process.FileID]int{}
	if all, err := t.watcher.Scan(); err == nil {
		for _, p := range all {
			running[p.Exe] = p.PID
		}
	}
	for id, r := range records {
		if id < maxBinaries {
			t.inheritBinary(id, r, running[process.FileID{Dev: r.Dev, Ino: r.Ino}])
		}
	}
	return nil
}

func (t *targets) inheritBinary(id uint32, r binaryRecord, pid int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	shown := unix.ByteSliceToString(r.Path[:])
	for len(t.binaries) <= int(id) {
		t.binaries = append(t.binaries, nil)
	}
	b := &executable{id: id, path: shown, names: map[uint64]string{}}
	t.binaries[id] = b
	paths := []string{shown}
	if pid != 0 {
		paths = append(paths, fmt.Sprintf("/proc/%d/exe", pid))
	}
	for _, p := range paths {
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		now, err := recordOfFile(f)
		now.Path = r.Path
		if err != nil || now != r {
			f.Close()
			continue
		}
		file := process.FileID{Dev: r.Dev, Ino: r.Ino}
		known, err := newExecutable(t.kernel, id, file, shown, f)
		if err != nil {
			t.log.Debug("a binary of the agent before cannot be read", "exe", shown, "error", err)
			return
		}
		t.binaries[id] = known
		a := &attached{binary: known, path: shown, usedAt: time.Now()}
		a.version, _ = a.now() // the file has just been looked at
		t.byFile[file] = a
		return
	}
}

// inheritProcesses makes targets of all processes that the maps know. Those that are
// gone are forgotten as if they had just exited.
func (t *targets) inheritProcesses() error {
	var tgid uint32
	cards := map[uint32]cardRecord{}
	var card cardRecord
	it := t.state.cards.Iterate()
	for it.Next(&tgid, &card) {
		cards[tgid] = card
	}
	err := it.Err()
	var p bpf.AgentProcess
	others := t.kernel.mapOf("processes").Iterate()
	for others.Next(&tgid, &p) {
		if _, ok := cards[tgid]; !ok && tgid != unknownProcesses {
			cards[tgid] = cardRecord{Binary: p.Binary}
		}
	}
	if err := errors.Join(err, others.Err()); err != nil {
		return fmt.Errorf("read processes of the agent before: %w", err)
	}
	for tgid, card := range cards {
		t.inheritProcess(int(tgid), &card)
	}
	return nil
}

func (t *targets) inheritProcess(pid int, card *cardRecord) {
	var b *executable
	if int(card.Binary) < len(t.binaries) {
		b = t.binaries[card.Binary]
	}
	if b == nil { // nothing can be said of it
		b = &executable{id: card.Binary, names: map[uint64]string{}}
	}
	if p, err := process.Open(pid); err == nil {
		if b.info != nil && p.ExeID() == b.file && (card.Start == 0 || p.StartTime() == card.Start) {
			t.add(p, b, 0).inherited = true
			return
		}
		p.Close()
	}
	gone := t.unknown(pid, b)
	if card.Length > 0 {
		gone.process = card.process(pid, b.path)
	}
	t.mu.Lock()
	t.byPID[pid] = gone
	t.mu.Unlock()
}

// settleInherited is called when everything is attached: processes that were targets and
// are none any more are let go, and so are binaries that nobody runs.
func (t *targets) settleInherited() {
	if !t.state.keeps() || !t.state.inherited {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	used := map[*executable]bool{}
	for pid, tg := range t.byPID {
		used[tg.binary] = true
		if !tg.inherited || !tg.goneAt.IsZero() {
			continue
		}
		if !t.probed(pid, tg) {
			tg.goneAt = time.Now()
		}
	}
	for id, b := range t.binaries {
		a := (*attached)(nil)
		if b != nil {
			a = t.byFile[b.file]
		}
		if b == nil || used[b] || a != nil && len(a.links) > 0 {
			continue
		}
		_ = t.state.binaries.Delete(uint32(id))
	}
}

// probed tells whether a target has probes. The caller holds mu.
func (t *targets) probed(pid int, tg *target) bool {
	a := t.byFile[tg.binary.file]
	return a != nil && slices.ContainsFunc(a.links, func(l *attachment) bool { return l.pid == 0 || l.pid == pid })
}

// unknown is a target of which no more is known than its number and its binary.
func (t *targets) unknown(pid int, b *executable) *target {
	return &target{binary: b, goneAt: time.Now(), decoded: new(atomic.Uint64), process: &event.Process{
		PID: pid, Exe: b.path, Resource: []attribute.KeyValue{
			attribute.String("service.name", path.Base(b.path)),
			attribute.Int("process.pid", pid),
			attribute.String("process.executable.path", b.path),
			attribute.String("process.runtime.name", "go"),
			attribute.String("telemetry.distro.name", process.DistroName),
			attribute.String("telemetry.distro.version", t.agent.Version),
		},
	}}
}

// unattended is how long there was no agent before this one; 0 if that is unknown.
func (s *State) unattended() time.Duration {
	if s == nil || s.before.state == lifeNone || s.attachedAt == 0 {
		return 0
	}
	return max(time.Duration(s.attachedAt-s.before.beat), 0)
}

// countRecords empties a ring, and returns how many records of operations were in it.
func countRecords(m *ebpf.Map) (n uint64) {
	ring, err := ringbuf.NewReader(m)
	if err != nil {
		return 0
	}
	defer ring.Close()
	ring.SetDeadline(time.Now())
	var record ringbuf.Record
	for ring.ReadInto(&record) == nil {
		if header, _, err := recordAs[bpf.AgentRecordHeader](record.RawSample); err == nil && header.Kind != uint32(bpf.AgentRecordKindRECORD_EXEC) {
			n++
		}
	}
	return n
}
