package probes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/process"
)

// rescan is how often paths that were asked for are looked at again: a file may
// appear, or be replaced by a new version.
const rescan = time.Second

// targets knows which processes run probed binaries, and which binaries those are.
//
//	targets.go    what was asked for by number or path
//	discovery.go  what rules choose
//	binaries.go   the executables: analysed, attached, let go
//	following.go  the processes: found, described, gone
type targets struct {
	kernel    *kernel
	log       *slog.Logger
	watcher   *process.Watcher
	agent     process.Agent
	adaptedAt time.Time  // by run
	execs     chan execd // never blocks the sender

	lostUnknown uint64          // by run: when meetMissed looked last
	unmet       map[uint32]bool // by run: see loseUnmet

	rules   atomic.Pointer[process.Rules]
	cluster Cluster       // nil outside one
	wait    time.Duration // for what the cluster does not know yet

	mu       sync.RWMutex
	byPID    map[int]*target
	byFile   map[process.FileID]*attached
	binaries []*executable // by id; nil: free
	freed    []freedID
	judged   map[int]*judged // what rules said of processes
	next     map[int][]successor
	execedAt map[int]uint64 // when the process of a number last ran execve, as far as records are read
	exes     []*wantedExe
	pids     []int
	past     [bpf.AgentCounterCOUNTERS]uint64 // counters of processes that are gone; see addPast
	detached bool

	changes chan Targets   // for run
	closing sync.WaitGroup // probes that are being taken out of processes

	// changing is held while probes are attached or detached, and taken before mu.
	changing sync.Mutex

	state *State

	// retired is called when a process is gone for good, and its number will not be
	// seen again soon. When the last of it is exported, drop is to be called.
	// replaced is called when what is read next under its number is another's, measure
	// when what is measured next is: then the kernel keeps nothing of it.
	retired  func(pid int, tg *target)
	replaced func(pid int, tg *target)
	measure  func(pid int, tg *target)
}

// target is one process of a probed binary. It does not change but for goneAt; when more
// becomes known of the process, another takes its place.
type target struct {
	process *event.Process
	binary  *executable
	proc    *process.Process // nil if it was gone before it could be looked at
	since   uint64           // when it ran execve, CLOCK_MONOTONIC in ns; 0: before the agent
	waiting time.Time        // for the cluster to know it, until then; zero: it does
	goneAt  time.Time        // zero while it runs

	withoutLogs bool // what it writes to standard error is its own affair

	decoded   *atomic.Uint64 // spans that were made of its records; one for it and what takes its place in learn
	retired   bool           // its exit was acted upon
	measured  bool           // what histograms have under its number is another's; guarded by the lock of targets
	inherited bool           // found in what the agent before has left
}

// wantedExe is a path of Options.Exes.
type wantedExe struct {
	path    string
	file    process.FileID // the last one seen there
	version process.Version
	waiting bool // nothing there yet
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
		cluster: o.Cluster, wait: o.ClusterWait,
		agent: process.Agent{Host: host, Version: o.Version},
		execs: make(chan execd, 256),
		byPID: map[int]*target{}, byFile: map[process.FileID]*attached{},
		judged: map[int]*judged{}, next: map[int][]successor{}, execedAt: map[int]uint64{}, changes: make(chan Targets),
	}
	t.rules.Store(&o.Rules)
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
	return t.scan()
}

// run follows processes and paths until ctx is done.
func (t *targets) run(ctx context.Context) {
	tick := time.NewTicker(rescan)
	defer tick.Stop()
	scanned := time.Now()
	var news <-chan struct{}
	if t.cluster != nil {
		news = t.cluster.Changed()
	}
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-t.watcher.Exits():
			t.exited(p)
		case e := <-t.execs:
			t.lookAll()
			t.discover(e)
		case w := <-t.changes:
			t.change(w)
		case <-news:
			t.learn(time.Now())
		case now := <-tick.C:
			t.lookAll()
			t.meetMissed()
			t.learn(now)
			t.forget(now)
			t.loseUnmet()
			t.release(now)
			t.adaptAll(now)
			if now.Sub(scanned) >= scanEvery {
				scanned = now
				if err := t.scan(); err != nil {
					t.log.Warn("some processes are not found", "error", err)
				}
			}
		}
	}
}

func (t *targets) attachPID(pid int) error {
	p, err := process.Open(pid)
	if err != nil {
		return err
	}
	a := t.analyse(p.ExeID(), p.ExeVersion(), p.ExePath(), procExe(pid))
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
	t.add(p, a.binary, 0)
	t.log.Info("attached", "pid", pid, "exe", a.path, "go", a.binary.info.GoVersion().String())
	return nil
}

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
	id, version, err := process.StatVersion(w.path)
	t.mu.Lock()
	w.waiting = errors.Is(err, os.ErrNotExist)
	known := w.file == id && w.version == version && err == nil
	t.mu.Unlock()
	if known || w.waiting {
		return
	}
	if err == nil {
		err = t.attachExe(w.path, id, version)
	}
	t.mu.Lock()
	w.file, w.version, w.err = id, version, err
	t.mu.Unlock()
}

func (t *targets) attachExe(exe string, id process.FileID, version process.Version) error {
	a := t.analyse(id, version, exe, exe)
	if a.err != nil {
		return fmt.Errorf("%s: %w", exe, a.err)
	}
	t.mu.Lock()
	a.named = true
	t.mu.Unlock()
	if err := t.cover(a); err != nil {
		return fmt.Errorf("%s: %w", exe, err)
	}
	t.log.Info("attached", "exe", exe, "go", a.binary.info.GoVersion().String())
	running, err := t.watcher.FindByExe(id)
	if err != nil {
		t.log.Warn("some processes are found only by their first request", "error", err)
	}
	for _, r := range running {
		if p, err := process.Open(r.PID); err == nil && p.ExeID() == id {
			t.add(p, a.binary, 0)
		} else if err == nil {
			p.Close()
		}
	}
	return nil
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
	t.closing.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, tg := range t.byPID {
		if tg.proc != nil {
			tg.proc.Close()
		}
	}
	t.forgetSuccessors(time.Now())
	for _, b := range t.binaries {
		if b == nil || b.exe == nil {
			continue
		}
		if err := b.exe.Close(); !errors.Is(err, os.ErrClosed) { // let go of before
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
