package probes

import (
	"time"

	"github.com/plainframework/agent/internal/probes/process"
)

// Successors: the number of a process can be another's, or the process run another
// program, while records of what was there before are still in the ring. The news of an
// execve comes faster, by a ring of its own. So the new one is described at once, for it
// may be gone when its turn comes, and takes the place of the old one when the ring of
// the records says so. Histograms have no order: from the news on they are the new one's,
// which cannot have answered anything yet; what the old one left in them is collected.

const (
	// maxSuccessors wait at most; later ones are looked at when it is their turn.
	maxSuccessors = 256
	// successorWait is far more than the reader of the ring takes. Only what a full ring
	// has swallowed is still waited for then.
	successorWait = 10 * time.Second
)

// successor is a target that is still to take its place.
type successor struct {
	*target
	known time.Time
}

// succeed lets a process wait until the records of old, whose number it has, are read;
// false if it need not, or must not. It takes p over if it is true.
func (t *targets) succeed(old *target, p *process.Process, b *executable, since uint64) bool {
	if since == 0 || t.kernel.mode == attachLookup { // there, what is known of a process is set in order
		return false
	}
	next := t.prepare(p, b, since)
	pid := p.PID()
	t.mu.Lock()
	waiting := 0
	for _, list := range t.next {
		waiting += len(list)
	}
	before := old
	if list := t.next[pid]; len(list) > 0 {
		before = list[len(list)-1].target
	}
	early := t.byPID[pid] == old && t.execedAt[pid] < since && waiting < maxSuccessors && before.since < since
	if early {
		before.measured = true
	}
	t.mu.Unlock()
	if !early {
		return false
	}
	t.measure(pid, before)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byPID[pid] != old || t.execedAt[pid] >= since {
		return false // its turn was just now: execed has it looked at again
	}
	t.next[pid] = append(t.next[pid], successor{next, time.Now()})
	return true
}

// maxExeced numbers of processes are kept with the time of their last execve.
const maxExeced = 4096

// noteExec notes that records up to an execve are read. The caller holds mu.
func (t *targets) noteExec(pid int, at uint64) {
	if len(t.execedAt) >= maxExeced {
		clear(t.execedAt)
	}
	t.execedAt[pid] = at
}

// successorOf takes the one out that began at a time, and those before it, whose turn
// was lost. The caller holds mu.
func (t *targets) successorOf(pid int, at uint64) (next *target) {
	list := t.next[pid]
	for len(list) > 0 && list[0].since <= at {
		if next != nil {
			next.proc.Close()
		}
		next = list[0].target
		list = list[1:]
	}
	if t.next[pid] = list; len(list) == 0 {
		delete(t.next, pid)
	}
	if next != nil && next.since != at {
		next.proc.Close()
		next = nil
	}
	return next
}

// measuredBy is whose the histograms of a process number and binary are now.
func (t *targets) measuredBy(pid int, binaryID uint32) (*target, error) {
	t.mu.RLock()
	list := t.next[pid]
	t.mu.RUnlock()
	if n := len(list); n > 0 && list[n-1].binary.id == binaryID {
		return list[n-1].target, nil
	}
	return t.of(pid, binaryID)
}

// forgetSuccessors gives up those whose turn does not come. The caller holds mu.
func (t *targets) forgetSuccessors(before time.Time) {
	for pid, list := range t.next {
		for len(list) > 0 && list[0].known.Before(before) {
			list[0].proc.Close()
			list = list[1:]
		}
		if t.next[pid] = list; len(list) == 0 {
			delete(t.next, pid)
		}
	}
}
