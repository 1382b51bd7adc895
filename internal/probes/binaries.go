package probes

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/process"
)

const maxBinaries = 1024 // MAX_BINARIES of bpf/maps.h

// A binary that nothing runs and that cannot be started any more is let go after
// this long; its number is given to another as much later, when no record names it.
const idleBinary = time.Minute

// attached is one executable, attached or refused.
type attached struct {
	binary     *executable // nil if refused
	path       string
	version    process.Version
	err        error
	links      []*attachment
	adaptation adaptation // by run
	named      bool       // by its path: every process is chosen
	mixed      bool       // some of its processes are not chosen; by cover
	given      givenUp    // what is given up for its cost, and so not attached
	reason     string     // for that
	usedAt     time.Time  // by release: when a process was last seen
}

// all tells whether every process that runs the binary has its probes. The caller holds
// the lock of targets.
func (a *attached) all() bool {
	return slices.ContainsFunc(a.links, func(at *attachment) bool { return at.pid == 0 })
}

// freedID is the number of a binary that was let go.
type freedID struct {
	id uint32
	at time.Time
}

// analyse finds or makes the binary of a file. The file is read without the lock: it may be
// large, or on a disk that does not answer, and the reader of spans asks for targets.
func (t *targets) analyse(id process.FileID, version process.Version, shown, open string) *attached {
	t.mu.Lock()
	old := t.byFile[id]
	t.mu.Unlock()
	if old != nil && old.version == version {
		return old
	}
	if old != nil {
		// Sites of what it held before lie anywhere in what it holds now.
		t.letGo(id, old)
	}
	a := &attached{path: shown, version: version, usedAt: time.Now()}
	a.binary, a.err = t.read(id, shown, open)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.byFile[id] = a
	return a
}

// read makes the binary of a file.
func (t *targets) read(id process.FileID, shown, open string) (*executable, error) {
	if isSelf(id) {
		return nil, errSelf
	}
	t.mu.Lock()
	number, ok := t.freeNumber(time.Now())
	t.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("%s: the agent knows %d binaries already, which is its limit", shown, maxBinaries)
	}
	file, err := os.Open(open)
	if err != nil {
		return nil, process.Denied(err)
	}
	if err := t.kernel.forgetImages(); err != nil {
		return nil, err
	}
	b, err := newExecutable(t.kernel, number, id, shown, file)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	t.binaries[number] = b
	t.mu.Unlock()
	t.state.saveBinary(b)
	return b, nil
}

// errSelf: its own requests would beget spans, which beget requests.
var errSelf = errors.New("this is the agent itself, which is never instrumented")

func isSelf(id process.FileID) bool {
	self, err := process.Stat("/proc/self/exe")
	return err == nil && self == id
}

// freeNumber is one that no binary has, and that no record can name any more. It stays free
// until a binary is there: only the goroutine of run, and what comes before it, takes one.
func (t *targets) freeNumber(now time.Time) (uint32, bool) {
	for i, f := range t.freed {
		if now.Sub(f.at) > idleBinary {
			t.freed = append(t.freed[:i], t.freed[i+1:]...)
			t.binaries[f.id] = nil
			return f.id, true
		}
	}
	for i, b := range t.binaries {
		if b == nil { // left of an analysis that failed
			return uint32(i), true
		}
	}
	if len(t.binaries) >= maxBinaries {
		return 0, false
	}
	t.binaries = append(t.binaries, nil)
	return uint32(len(t.binaries) - 1), true
}

// cover puts probes into what is chosen of a binary: into all that run it or will, or,
// while some of its processes are not chosen, into those that are, one by one, so that
// the others have none.
func (t *targets) cover(a *attached) error {
	t.mu.RLock()
	var chosen []int
	others := 0
	for pid, j := range t.judged {
		switch {
		case j.exe != a.binary.file || !j.waiting.IsZero():
		case j.chosen:
			chosen = append(chosen, pid)
		default:
			others++
		}
	}
	for _, pid := range t.pids {
		if tg := t.byPID[pid]; tg != nil && tg.binary == a.binary {
			chosen = append(chosen, pid)
		}
	}
	all := a.named || others == 0 && len(chosen) > 0 && !a.mixed
	a.mixed = !all && len(chosen) > 0
	t.mu.RUnlock()
	if all {
		return errors.Join(t.detachFrom(a, func(pid int) bool { return pid != 0 }), t.attachOnce(a, 0))
	}
	wanted := map[int]bool{}
	for _, pid := range chosen {
		wanted[pid] = true
	}
	// From all at once, for else both would fire; from those that are gone, in their time.
	err := t.detachFrom(a, func(pid int) bool { return pid == 0 })
	for pid := range wanted {
		if e := t.attachOnce(a, pid); e != nil && !gone(e) {
			err = errors.Join(err, e)
		}
	}
	return errors.Join(err, t.detachFrom(a, func(pid int) bool { return !wanted[pid] }))
}

// gone tells whether the kernel says that there is no such process.
func gone(err error) bool { return errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrNotExist) }

// attachOnce attaches for a process, or for all (0), unless that is done.
func (t *targets) attachOnce(a *attached, pid int) error {
	t.mu.RLock()
	for _, at := range a.links {
		if at.pid == pid {
			t.mu.RUnlock()
			return nil
		}
	}
	t.mu.RUnlock()
	return t.attach(a, pid)
}

// detachFrom takes the probes out of the processes that which names; 0 stands for all.
func (t *targets) detachFrom(a *attached, which func(pid int) bool) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	t.mu.Lock()
	var out []*attachment
	kept := a.links[:0:0]
	for _, at := range a.links {
		if which(at.pid) {
			out = append(out, at)
		} else {
			kept = append(kept, at)
		}
	}
	a.links = kept
	t.mu.Unlock()
	errs := make([]error, len(out))
	var closing sync.WaitGroup
	for i, at := range out {
		if at.pid == 0 {
			closing.Go(func() { errs[i] = at.Close() })
			continue
		}
		// The kernel waits a while for each: the next process is not to wait for it.
		t.closing.Go(func() {
			if err := at.Close(); err != nil {
				t.log.Debug("probes of a process that is gone stay", "pid", at.pid, "error", err)
			}
		})
	}
	closing.Wait()
	return errors.Join(errs...)
}

// release lets go of executables that were written to, and of those that were deleted and
// that nothing has run for a while. What can be started again stays attached: it costs
// nothing until then.
func (t *targets) release(now time.Time) {
	t.mu.Lock()
	used := map[process.FileID]bool{}
	for _, tg := range t.byPID {
		used[tg.binary.file] = true
	}
	for _, j := range t.judged {
		used[j.exe] = true
	}
	idle := map[process.FileID]*attached{}
	for id, a := range t.byFile {
		if used[id] {
			a.usedAt = now
		}
		switch long := now.Sub(a.usedAt) > idleBinary; {
		case a.binary == nil && long && !a.named:
			delete(t.byFile, id) // another file may get this inode
		case a.binary != nil && (a.changed() || long && a.deleted()):
			idle[id] = a
		}
	}
	t.mu.Unlock()
	for id, a := range idle {
		t.letGo(id, a)
	}
}

// changed tells whether the file was written to since it was analysed.
func (a *attached) changed() bool {
	now, err := a.now()
	return err == nil && now != a.version
}

// now is what the file holds now.
func (a *attached) now() (process.Version, error) {
	st, err := a.binary.exe.Stat()
	if err != nil {
		return process.Version{}, err
	}
	return process.Version{Size: st.Size(), Modified: st.ModTime().UnixNano()}, nil
}

// deleted tells whether no path leads to the file.
func (a *attached) deleted() bool {
	var st unix.Stat_t
	return unix.Fstat(int(a.binary.exe.Fd()), &st) == nil && st.Nlink == 0
}

// letGo detaches a binary and frees what it took.
func (t *targets) letGo(id process.FileID, a *attached) {
	t.mu.Lock()
	if t.byFile[id] == a {
		delete(t.byFile, id)
	}
	t.mu.Unlock()
	if a.binary == nil {
		return
	}
	err := t.detachFrom(a, func(int) bool { return true })
	t.mu.Lock()
	for _, tg := range t.byPID {
		if tg.binary == a.binary && tg.goneAt.IsZero() {
			tg.goneAt = time.Now()
		}
	}
	// Its number still names it, for the records that are on their way.
	t.freed = append(t.freed, freedID{a.binary.id, time.Now()})
	t.mu.Unlock()
	t.state.dropBinary(a.binary.id)
	err = errors.Join(err, t.kernel.forgetTypes(a.binary.id), a.binary.exe.Close())
	t.log.Debug("let go of a binary", "exe", a.path, "error", err)
}

// forgetTypes frees the entries of a binary, so that another can have its number.
func (k *kernel) forgetTypes(binary uint32) error {
	types := k.mapOf("types")
	var dead []bpf.AgentTypeKey
	err := eachInBatches(types, func(key *bpf.AgentTypeKey, _ *bpf.AgentTypeInfo) {
		if key.Binary == binary {
			dead = append(dead, *key)
		}
	})
	for i := range dead {
		_ = types.Delete(&dead[i]) // nobody else deletes
	}
	return err
}
