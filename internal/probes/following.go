package probes

import (
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/process"
)

// add makes a target of a process; it takes p over. since is when it ran execve, 0 if
// that was not seen.
func (t *targets) add(p *process.Process, b *executable, since uint64) *target {
	if err := t.kernel.introduce(p, b); err != nil {
		t.log.Warn("a process stays unobserved", "pid", p.PID(), "error", err)
	}
	return t.install(t.prepare(p, b, since))
}

// prepare makes a target, which install puts in its place.
func (t *targets) prepare(p *process.Process, b *executable, since uint64) *target {
	tg := t.describe(&target{binary: b, proc: p, since: since, decoded: new(atomic.Uint64), process: &event.Process{
		PID: p.PID(), StartTime: p.StartTime(), Exe: p.ExePath(),
	}}, time.Now())
	tg.withoutLogs = asksForNoLogs(p)
	return tg
}

// install makes a target the one of its number, unless that is it already, and returns
// which it is.
func (t *targets) install(tg *target) *target {
	p, b, since := tg.proc, tg.binary, tg.since
	if tg.withoutLogs {
		t.kernel.captureLogs(p.PID(), false)
	}
	t.mu.Lock()
	old := t.byPID[p.PID()]
	if old != nil && old.proc != nil && old.binary == b && old.process.StartTime == p.StartTime() && since <= old.since {
		t.mu.Unlock()
		p.Close()
		return old
	}
	t.byPID[p.PID()] = tg
	if old != nil && old.goneAt.IsZero() {
		old.goneAt = time.Now()
	}
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

// describe gives a target its resource, as much as is known now.
func (t *targets) describe(tg *target, now time.Time) *target {
	var around process.Surroundings
	if t.cluster != nil {
		container := tg.proc.Container()
		known, complete := t.cluster.Find(container.ID, container.PodUID)
		around = known.Surroundings()
		if !complete && container.ID != "" && tg.waiting.IsZero() {
			tg.waiting = now.Add(t.wait)
		} else if complete || container.ID == "" {
			tg.waiting = time.Time{}
		}
	}
	resource, err := tg.proc.Resource(tg.binary.info.BuildInfo(), t.agent, around)
	if err != nil {
		t.log.Debug("resource is incomplete", "pid", tg.process.PID, "error", err)
	}
	tg.process.Resource = resource
	return tg
}

// holds tells whether what a target sends waits for the cluster to know it.
func (tg *target) holds(now time.Time) bool { return !tg.waiting.IsZero() && now.Before(tg.waiting) }

// now is the target that stands for a process now, nil if it is no longer wanted.
func (t *targets) now(tg *target) *target {
	t.mu.RLock()
	defer t.mu.RUnlock()
	j := t.judged[tg.process.PID]
	if j != nil && j.start == tg.process.StartTime && j.exe == tg.binary.file && !j.chosen && j.waiting.IsZero() {
		return nil
	}
	if fresh := t.byPID[tg.process.PID]; fresh != nil && fresh.proc == tg.proc {
		return fresh
	}
	return tg
}

// learn takes over what the cluster knows now: of targets whose container it did not
// know, and for the choice of processes.
func (t *targets) learn(now time.Time) {
	if t.cluster == nil {
		return
	}
	t.mu.RLock()
	var waiting []*target
	for _, tg := range t.byPID {
		if !tg.waiting.IsZero() && tg.goneAt.IsZero() && tg.proc != nil {
			waiting = append(waiting, tg)
		}
	}
	t.mu.RUnlock()
	for _, tg := range waiting {
		container := tg.proc.Container()
		if _, complete := t.cluster.Find(container.ID, container.PodUID); !complete {
			continue
		}
		t.mu.RLock()
		fresh := *tg
		t.mu.RUnlock()
		p := *tg.process
		fresh.process = &p
		t.describe(&fresh, now)
		t.mu.Lock()
		if t.byPID[p.PID] == tg {
			fresh.goneAt = tg.goneAt
			t.byPID[p.PID] = &fresh
			tg.goneAt = now // the other ends what began under its name
		}
		t.mu.Unlock()
		t.state.saveCard(&p, fresh.binary.id)
	}
	t.judgeAgain(now)
}

// of is the target that a record came from. The process may be new to user space,
// or gone: then it is described by what is known of its binary. It is nil if the binary
// is unknown; a process that is not wanted is errNotSelected.
func (t *targets) of(pid int, binaryID uint32) (*target, error) {
	t.mu.RLock()
	tg := t.byPID[pid]
	var b *executable
	if int(binaryID) < len(t.binaries) {
		b = t.binaries[binaryID]
	}
	t.mu.RUnlock()
	if b == nil {
		return nil, errUnknownBinary
	}
	if tg != nil && tg.binary == b {
		return tg, nil
	}
	if p, err := process.Open(pid); err == nil {
		if p.ExeID() == b.file {
			if !t.asked(p) {
				p.Close()
				return nil, errNotSelected
			}
			return t.add(p, b, 0), nil
		}
		p.Close()
	}
	gone := t.unknown(pid, b)
	t.mu.Lock()
	if now := t.byPID[pid]; now == nil || !now.goneAt.IsZero() {
		t.byPID[pid] = gone
	}
	t.mu.Unlock()
	return gone, nil
}

var (
	errUnknownBinary = errors.New("the binary is unknown")
	errNotSelected   = errors.New("the process is not one that was asked for")
)

// execed is told, in the order of the ring, that a process runs another program now:
// what follows under this number is not what was there before.
func (t *targets) execed(pid int, at uint64) {
	t.mu.Lock()
	tg := t.byPID[pid]
	t.noteExec(pid, at)
	next := t.successorOf(pid, at)
	fresh := tg != nil && tg.since >= at // discover was faster: this is the new one
	if tg != nil && !fresh {
		delete(t.byPID, pid)
	}
	if j := t.judged[pid]; j != nil && tg != nil && !fresh && next == nil && j.start == tg.process.StartTime {
		delete(t.judged, pid)
	}
	t.mu.Unlock()
	if tg != nil && !fresh {
		t.replace(pid, tg, at)
	}
	switch {
	case next != nil:
		t.install(next)
	case tg != nil && !fresh:
		// What discover has put off, because the number was another's.
		select {
		case t.execs <- execd{pid, at}:
		default: // the scan finds it
		}
		t.meet(pid, true, at)
	case !fresh:
		t.meet(pid, false, at)
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
	if j := t.judged[p.PID()]; j != nil && j.start == p.StartTime() {
		delete(t.judged, p.PID())
	}
}

// linger is how long a process that is gone stays known: its last records are
// still on their way.
const linger = 2 * time.Second

func (t *targets) forget(now time.Time) {
	t.mu.Lock()
	t.forgetSuccessors(now.Add(-successorWait))
	gone := map[int]*target{}
	for pid, tg := range t.byPID {
		if !tg.retired && !tg.goneAt.IsZero() && now.Sub(tg.goneAt) > linger {
			gone[pid] = tg
			tg.retired = true
			if j := t.judged[pid]; j != nil && j.start == tg.process.StartTime && (tg.proc == nil || tg.proc.Exited()) {
				delete(t.judged, pid)
			}
		}
	}
	t.mu.Unlock()
	for pid, tg := range gone {
		t.unwatch(pid, tg)
		t.kernel.captureLogs(pid, true)
		t.lose(pid, allTime)
		t.retired(pid, tg)
	}
}

// replace ends a target at once: its number is another program's, which began at the
// given time. Spans that it began before that and never ended are lost.
func (t *targets) replace(pid int, tg *target, at uint64) {
	t.unwatch(pid, tg)
	t.replaced(pid, tg)
	t.kernel.captureLogs(pid, true)
	t.lose(pid, at)
	t.mu.RLock()
	measured := tg.measured
	t.mu.RUnlock()
	if !measured {
		t.measure(pid, tg)
	}
}

// unwatch stops watching one target. Probes of one process outlive it, and would be
// those of the next one of its number.
func (t *targets) unwatch(pid int, tg *target) {
	if tg.proc != nil {
		t.watcher.Untrack(tg.proc)
		tg.proc.Close()
	}
	t.mu.RLock()
	a, now := t.byFile[tg.binary.file], t.byPID[pid]
	t.mu.RUnlock()
	if a == nil || now != nil && now != tg {
		return
	}
	if err := t.detachFrom(a, func(p int) bool { return p == pid }); err != nil {
		t.log.Debug("probes of a process that is gone stay", "pid", pid, "error", err)
	}
}

// lose frees and counts the spans that a process began before a time and never ended.
func (t *targets) lose(pid int, before uint64) {
	open, err := t.kernel.purge(uint32(pid), before)
	if err != nil {
		t.log.Debug("open spans of a process that is gone stay in the kernel", "pid", pid, "error", err)
	}
	t.addPast(bpf.AgentCounterCOUNT_LOST_EXITED, open)
}

// loseUnmet does the same for processes that were never met: whose first request was
// their last, before anybody had looked at them. They are given a second, in which a
// record of theirs may make targets of them.
func (t *targets) loseUnmet() {
	met := t.unmet
	t.unmet = map[uint32]bool{}
	look := func(tgid uint32) {
		t.mu.RLock()
		known := t.byPID[int(tgid)] != nil
		t.mu.RUnlock()
		if !known && tgid != 0 && errors.Is(unix.Kill(int(tgid), 0), unix.ESRCH) {
			t.unmet[tgid] = true
		}
	}
	err := t.kernel.eachEntry("goroutine_table", func(e bpf.AgentTableEntry) bool {
		look(e.Tgid)
		return false
	})
	err = errors.Join(err, eachInBatches(t.kernel.mapOf("processes"), func(tgid *uint32, _ *bpf.AgentProcess) { look(*tgid) }))
	if err != nil {
		t.log.Debug("what processes that are gone had open stays in the kernel", "error", err)
	}
	for tgid := range t.unmet {
		if met[tgid] {
			t.lose(int(tgid), allTime)
			t.bury(tgid)
		}
	}
}

// bury makes a target of a process that was never met, which is gone: so its counts are
// kept, and what the kernel has of it is deleted, as with any other.
func (t *targets) bury(tgid uint32) {
	var p bpf.AgentProcess
	if t.kernel.mapOf("processes").Lookup(tgid, &p) == nil {
		if _, err := t.of(int(tgid), p.Binary); err != nil { // let go of, or not wanted
			t.drop(int(tgid), nil)
		}
	}
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
