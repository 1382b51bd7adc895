package probes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/process"
)

// rescan is how often paths that were asked for are looked at again: a file may
// appear, or be replaced by a new version.
const rescan = time.Second

// targets knows which processes run probed binaries, and which binaries those are.
type targets struct {
	kernel      *kernel
	log         *slog.Logger
	watcher     *process.Watcher
	agent       process.Agent
	adaptedAt   time.Time     // by run
	lostUnknown uint64        // by run: when meetMissed looked last
	started     chan struct{} // some process called execve; never blocks the sender

	mu       sync.RWMutex
	byPID    map[int]*target
	byFile   map[process.FileID]*attached
	binaries []*executable // by id
	exes     []*wantedExe
	pids     []int
	past     [bpf.AgentCounterCOUNTERS]uint64 // counters of processes that are gone; see addPast
	detached bool

	// changing is held while probes are attached or detached, and taken before mu.
	changing sync.Mutex

	state *State

	// retired is called when a process is gone for good, and its number will not be
	// seen again soon. When the last of it is exported, drop is to be called.
	// replaced is called when another program has its number now: after it, what the
	// kernel keeps of it is deleted.
	retired  func(pid int, tg *target)
	replaced func(pid int, tg *target)
}

// target is one process of a probed binary.
type target struct {
	process *event.Process
	binary  *executable
	proc    *process.Process // nil if it was gone before it could be looked at
	goneAt  time.Time        // zero while it runs

	withoutLogs bool // what it writes to standard error is its own affair

	retired   bool // its exit was acted upon
	inherited bool // found in what the agent before has left
}

// attached is one executable, attached or refused.
type attached struct {
	binary     *executable // nil if refused
	path       string
	err        error
	links      []*attachment
	adaptation adaptation // by run
	all        bool       // for every process, not some
	given      givenUp    // what is given up for its cost, and so not attached
	reason     string     // for that
}

// wantedExe is a path of Options.Exes.
type wantedExe struct {
	path    string
	file    process.FileID // the last one seen there
	waiting bool           // nothing there yet
	err     error
}

func newTargets(k *kernel, o Options, log *slog.Logger) (*targets, error) {
	watcher, err := process.NewWatcher()
	if err != nil {
		return nil, err
	}
	host, _ := os.Hostname() // the resource goes without
	t := &targets{
		kernel: k, log: log, watcher: watcher, pids: o.PIDs, state: o.State,
		agent:   process.Agent{Host: host, Version: o.Version},
		started: make(chan struct{}, 1),
		byPID:   map[int]*target{}, byFile: map[process.FileID]*attached{},
	}
	for _, p := range o.Exes {
		t.exes = append(t.exes, &wantedExe{path: p})
	}
	return t, nil
}

// start attaches to what was asked for. What cannot be had at all is an error; a
// path where nothing is yet is waited for.
func (t *targets) start() error {
	for _, pid := range t.pids {
		if err := t.attachPID(pid); err != nil {
			return err
		}
	}
	for _, w := range t.exes {
		t.look(w)
		if w.err != nil {
			return w.err
		}
	}
	return nil
}

// run follows processes and paths until ctx is done.
func (t *targets) run(ctx context.Context) {
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-t.watcher.Exits():
			t.exited(p)
		case <-t.started:
			t.lookAll()
		case now := <-tick.C:
			t.lookAll()
			t.meetMissed()
			t.forget(now)
			t.adaptAll(now)
		}
	}
}

func (t *targets) attachPID(pid int) error {
	p, err := process.Open(pid)
	if err != nil {
		return err
	}
	a := t.analyse(p.ExeID(), p.ExePath(), fmt.Sprintf("/proc/%d/exe", pid))
	if a.err != nil {
		p.Close()
		return fmt.Errorf("process %d (%s): %w", pid, p.ExePath(), a.err)
	}
	if err := t.attach(a, pid); err != nil {
		gone := p.Exited()
		p.Close()
		if gone {
			return fmt.Errorf("process %d has exited while it was being attached to", pid)
		}
		return fmt.Errorf("process %d (%s): %w", pid, p.ExePath(), err)
	}
	t.add(p, a.binary)
	t.log.Info("attached", "pid", pid, "exe", a.path, "go", a.binary.info.GoVersion().String())
	return nil
}

// analyse finds or makes the binary of a file.
func (t *targets) analyse(id process.FileID, shown, open string) *attached {
	t.mu.Lock()
	defer t.mu.Unlock()
	if a := t.byFile[id]; a != nil {
		return a
	}
	a := &attached{path: shown}
	t.byFile[id] = a
	if isSelf(id) {
		a.err = errSelf
		return a
	}
	number := t.freeNumber()
	if number >= maxBinaries {
		a.err = fmt.Errorf("%s: the agent knows %d binaries already, which is its limit", shown, maxBinaries)
		return a
	}
	file, err := os.Open(open)
	if err != nil {
		a.err = process.Denied(err)
		return a
	}
	a.binary, a.err = newExecutable(t.kernel, uint32(number), id, shown, file)
	if a.err == nil {
		if number == len(t.binaries) {
			t.binaries = append(t.binaries, nil)
		}
		t.binaries[number] = a.binary
		t.state.saveBinary(a.binary)
	}
	return a
}

// errSelf: its own requests would beget spans, which beget requests.
var errSelf = errors.New("this is the agent itself, which is never instrumented")

func isSelf(id process.FileID) bool {
	self, err := process.Stat("/proc/self/exe")
	return err == nil && self == id
}

// freeNumber is the lowest number that no binary has. The caller holds mu.
func (t *targets) freeNumber() int {
	for i, b := range t.binaries {
		if b == nil {
			return i
		}
	}
	return len(t.binaries)
}

const maxBinaries = 1024 // MAX_BINARIES of bpf/maps.h

func (t *targets) lookAll() {
	for _, w := range t.exes {
		before := w.err
		t.look(w)
		if w.err != nil && (before == nil || before.Error() != w.err.Error()) {
			t.log.Warn("not instrumented", "exe", w.path, "reason", w.err)
		}
	}
}

// look attaches to the file that is at a path now, unless that is done already.
func (t *targets) look(w *wantedExe) {
	id, err := process.Stat(w.path)
	t.mu.Lock()
	w.waiting = errors.Is(err, os.ErrNotExist)
	known := w.file == id && err == nil
	t.mu.Unlock()
	if known || w.waiting {
		return
	}
	if err == nil {
		err = t.attachExe(w.path, id)
	}
	t.mu.Lock()
	w.file, w.err = id, err
	t.mu.Unlock()
}

func (t *targets) attachExe(exe string, id process.FileID) error {
	a := t.analyse(id, exe, exe)
	if a.err != nil {
		return fmt.Errorf("%s: %w", exe, a.err)
	}
	t.mu.Lock()
	all := a.all
	a.all = true
	t.mu.Unlock()
	if all {
		return nil
	}
	if err := t.attach(a, 0); err != nil {
		return fmt.Errorf("%s: %w", exe, err)
	}
	t.log.Info("attached", "exe", exe, "go", a.binary.info.GoVersion().String())
	running, err := t.watcher.FindByExe(id)
	if err != nil {
		t.log.Warn("some processes are found only by their first request", "error", err)
	}
	for _, r := range running {
		if p, err := process.Open(r.PID); err == nil && p.ExeID() == id {
			t.add(p, a.binary)
		} else if err == nil {
			p.Close()
		}
	}
	return nil
}

// add makes a target of a process; it takes p over.
func (t *targets) add(p *process.Process, b *executable) *target {
	if err := t.kernel.introduce(p, b); err != nil {
		t.log.Warn("a process stays unobserved", "pid", p.PID(), "error", err)
	}
	resource, err := p.Resource(b.info.BuildInfo(), t.agent)
	if err != nil {
		t.log.Debug("resource is incomplete", "pid", p.PID(), "error", err)
	}
	tg := &target{binary: b, proc: p, process: &event.Process{
		PID: p.PID(), StartTime: p.StartTime(), Exe: p.ExePath(), Resource: resource,
	}}
	if tg.withoutLogs = asksForNoLogs(p); tg.withoutLogs {
		t.kernel.captureLogs(p.PID(), false)
	}
	t.mu.Lock()
	old := t.byPID[p.PID()]
	t.byPID[p.PID()] = tg
	t.mu.Unlock()
	if old != nil && old.proc != nil {
		t.watcher.Untrack(old.proc)
		old.proc.Close()
	}
	t.state.saveCard(tg.process, b.id)
	if err := t.watcher.Track(p); err != nil {
		t.log.Debug("exit will be seen late", "pid", p.PID(), "error", err)
	}
	return tg
}

// of is the target that a record came from. The process may be new to user space,
// or gone: then it is described by what is known of its binary.
func (t *targets) of(pid int, binaryID uint32) *target {
	t.mu.RLock()
	tg := t.byPID[pid]
	var b *executable
	if int(binaryID) < len(t.binaries) {
		b = t.binaries[binaryID]
	}
	t.mu.RUnlock()
	if b == nil {
		return nil
	}
	if tg != nil && tg.binary == b {
		return tg
	}
	if p, err := process.Open(pid); err == nil {
		if p.ExeID() == b.file {
			return t.add(p, b)
		}
		p.Close()
	}
	tg = t.unknown(pid, b)
	t.mu.Lock()
	t.byPID[pid] = tg
	t.mu.Unlock()
	return tg
}

// execed is told, in the order of the ring, that a process runs another program now:
// what follows under this number is not what was there before.
func (t *targets) execed(pid int, at uint64) {
	t.mu.Lock()
	tg := t.byPID[pid]
	delete(t.byPID, pid)
	waiting := len(t.exes) > 0
	t.mu.Unlock()
	if tg != nil {
		t.replace(pid, tg, at)
	}
	t.meet(pid, tg != nil)
	if waiting {
		select {
		case t.started <- struct{}{}:
		default: // one look is pending, and sees this one too
		}
	}
}

func (t *targets) exited(p *process.Process) {
	if p == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if tg := t.byPID[p.PID()]; tg != nil && tg.proc == p {
		tg.goneAt = time.Now()
	}
}

// linger is how long a process that is gone stays known: its last records are
// still on their way.
const linger = 2 * time.Second

func (t *targets) forget(now time.Time) {
	t.mu.Lock()
	gone := map[int]*target{}
	for pid, tg := range t.byPID {
		if !tg.retired && !tg.goneAt.IsZero() && now.Sub(tg.goneAt) > linger {
			gone[pid] = tg
			tg.retired = true
		}
	}
	t.mu.Unlock()
	for pid, tg := range gone {
		t.unwatch(tg)
		t.kernel.captureLogs(pid, true)
		t.lose(pid, allTime)
		t.retired(pid, tg)
	}
}

// replace ends a target at once: its number is another program's, which began at the
// given time. Spans that it began before that and never ended are lost.
func (t *targets) replace(pid int, tg *target, at uint64) {
	t.unwatch(tg)
	t.replaced(pid, tg)
	t.kernel.captureLogs(pid, true)
	t.lose(pid, at)
	t.drop(pid, nil)
}

// unwatch stops watching one target.
func (t *targets) unwatch(tg *target) {
	if tg.proc != nil {
		t.watcher.Untrack(tg.proc)
		tg.proc.Close()
	}
}

// lose frees and counts the spans that a process began before a time and never ended.
func (t *targets) lose(pid int, before uint64) {
	open, err := t.kernel.purge(uint32(pid), before)
	if err != nil {
		t.log.Debug("open spans of a process that is gone stay in the kernel", "pid", pid, "error", err)
	}
	t.addPast(bpf.AgentCounterCOUNT_LOST_UNFINISHED, open)
}

// drop deletes what the kernel keeps of a process, and keeps its counts. Nothing is done
// if the process is another than tg by now; nil is any.
func (t *targets) drop(pid int, tg *target) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tg != nil {
		if t.byPID[pid] != tg {
			return
		}
		delete(t.byPID, pid)
	}
	var first bpf.AgentProcess
	if t.kernel.mapOf("processes").Lookup(uint32(pid), &first) == nil {
		// Added before it is deleted: an agent that is killed between leaves word.
		for i, n := range first.Counters {
			t.past[i] += n
		}
		t.savePast(uint32(pid))
		if last, err := t.kernel.take(uint32(pid)); err == nil {
			for i, n := range last.Counters {
				t.past[i] += n - first.Counters[i]
			}
		}
		t.savePast(0)
	}
	t.state.dropCard(pid)
}

// addPast counts what no process can count any more.
func (t *targets) addPast(c bpf.AgentCounter, n uint64) {
	if n == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.past[c] += n
	t.savePast(0)
}

// savePast keeps the counts across a crash. The caller holds mu.
func (t *targets) savePast(retiring uint32) {
	if !t.state.keeps() {
		return
	}
	if err := t.state.past.Put(uint32(0), &pastRecord{Counters: t.past, Retiring: uint64(retiring)}); err != nil {
		t.log.Debug("after a crash, counts would be wrong", "error", err)
	}
}

// detach takes all probes out of all targets.
func (t *targets) detach() error {
	t.changing.Lock()
	defer t.changing.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []io.Closer
	for _, a := range t.byFile {
		for _, l := range a.links {
			all = append(all, l)
		}
		a.links = nil
	}
	errs := make([]error, len(all))
	var closing sync.WaitGroup
	for i, l := range all {
		closing.Go(func() { errs[i] = l.Close() })
	}
	closing.Wait()
	t.detached = true
	return errors.Join(errs...)
}

func (t *targets) close() error {
	errs := []error{t.detach(), t.watcher.Close()}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tg := range t.byPID {
		if tg.proc != nil {
			tg.proc.Close()
		}
	}
	for _, b := range t.binaries {
		if b != nil && b.exe != nil {
			errs = append(errs, b.exe.Close())
		}
	}
	return errors.Join(errs...)
}

// ready: start returns only when everything that is there is attached or refused.
func (t *targets) ready() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return !t.detached
}

func (t *targets) status() Status {
	t.mu.RLock()
	defer t.mu.RUnlock()
	s := Status{Ready: !t.detached, Losses: map[string]uint64{}}
	for _, a := range t.byFile {
		b := BinaryStatus{Path: a.path, State: "attached"}
		if a.err != nil {
			b.State, b.Reason = "refused", a.err.Error()
		} else {
			b.GoVersion, b.Groups = a.binary.info.GoVersion().String(), a.binary.groups
			b.Backoff = a.backoffStatus()
		}
		s.Binaries = append(s.Binaries, b)
	}
	sort.Slice(s.Binaries, func(i, j int) bool { return s.Binaries[i].Path < s.Binaries[j].Path })
	for pid, tg := range t.byPID {
		ts := TargetStatus{PID: pid, Exe: tg.process.Exe, Service: serviceName(tg.process), State: "attached"}
		if !tg.goneAt.IsZero() {
			ts.State = "gone"
		}
		s.Targets = append(s.Targets, ts)
	}
	sort.Slice(s.Targets, func(i, j int) bool { return s.Targets[i].PID < s.Targets[j].PID })
	for _, w := range t.exes {
		if w.waiting {
			s.Targets = append(s.Targets, TargetStatus{Exe: w.path, State: "waiting", Reason: "there is no such file yet"})
		} else if w.err != nil {
			s.Targets = append(s.Targets, TargetStatus{Exe: w.path, State: "refused", Reason: w.err.Error()})
		}
	}
	t.count(&s)
	return s
}

// counters adds up the kernel's counters over processes that run and that are gone.
func (t *targets) counters() [bpf.AgentCounterCOUNTERS]uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.countersLocked()
}

func (t *targets) countersLocked() [bpf.AgentCounterCOUNTERS]uint64 {
	total := t.past
	var pid uint32
	var p bpf.AgentProcess
	for it := t.kernel.mapOf("processes").Iterate(); it.Next(&pid, &p); {
		for i, n := range p.Counters {
			total[i] += n
		}
	}
	return total
}

// count fills in where all spans went.
func (t *targets) count(s *Status) {
	total := t.countersLocked()
	s.Spans.Emitted = total[bpf.AgentCounterCOUNT_EMITTED]
	s.Spans.SampledOut = total[bpf.AgentCounterCOUNT_SAMPLED_OUT]
	for i, name := range counterNames {
		if name != "" && total[i] > 0 {
			s.Losses[name] = total[i]
		}
	}
}

func serviceName(p *event.Process) string {
	for _, kv := range p.Resource {
		if kv.Key == "service.name" {
			return kv.Value.AsString()
		}
	}
	return ""
}
