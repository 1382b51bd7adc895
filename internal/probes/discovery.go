package probes

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/plainframework/agent/internal/probes/gobin"
	"github.com/plainframework/agent/internal/probes/kubernetes"
	"github.com/plainframework/agent/internal/probes/process"
)

// Discovery: which processes are wanted, by rules. The kernel reports every execve, and
// all processes are looked at when the agent starts, and now and then, for a report can
// get lost.

// scanEvery is how often all processes are looked at.
const scanEvery = 10 * time.Second

// Cluster knows of containers what the kernel does not.
type Cluster interface {
	// Find is what is known of a container, by its id, or of its pod, by that one's UID.
	// complete: all that there is to know.
	Find(containerID, podUID string) (known kubernetes.Container, complete bool)
	// Changed gets a value when there is something new to find.
	Changed() <-chan struct{}
}

// execd is an execve of a process.
type execd struct {
	pid int
	at  uint64 // CLOCK_MONOTONIC, ns
}

// judged is what the rules said of a process.
type judged struct {
	start   uint64
	exe     process.FileID
	facts   process.Facts
	podUID  string
	chosen  bool
	reason  string    // if not chosen
	waiting time.Time // for the cluster to know it, until then; zero: decided
	guessed bool      // decided without the cluster
}

// scan looks at all processes.
func (t *targets) scan() error {
	if !t.rules.Load().Any() {
		return nil
	}
	list, err := t.watcher.Scan()
	running := make(map[int]process.Running, len(list))
	for _, r := range list {
		running[r.PID] = r
	}
	t.mu.Lock()
	maps.DeleteFunc(t.judged, func(pid int, j *judged) bool {
		r, ok := running[pid]
		return err == nil && (!ok || r.StartTime != j.start)
	})
	t.mu.Unlock()
	for _, r := range list {
		t.consider(r, 0)
	}
	return err
}

// discover looks at a process that has run execve.
func (t *targets) discover(e execd) {
	if !t.rules.Load().Any() {
		return
	}
	if r, err := process.Look(e.pid); err == nil {
		t.consider(r, e.at)
	}
}

// consider decides about a process that runs, once.
func (t *targets) consider(r process.Running, since uint64) {
	t.mu.RLock()
	j, a, tg := t.judged[r.PID], t.byFile[r.Exe], t.byPID[r.PID]
	t.mu.RUnlock()
	same := j != nil && j.start == r.StartTime && j.exe == r.Exe
	switch {
	case a != nil && a.err != nil && a.version == r.Version && !a.named:
		// Most programs of a node are no Go programs; they are not looked at twice.
		t.mu.Lock()
		t.judged[r.PID] = &judged{start: r.StartTime, exe: r.Exe}
		t.mu.Unlock()
		return
	case same && (!j.chosen || tg != nil && tg.since >= since):
		return
	}
	p, err := process.Open(r.PID)
	if err != nil {
		return // it is gone, or may not be looked at: scan says so
	}
	t.settle(p, t.judge(p), since)
}

// asked tells whether a process is one that the agent was asked for, whose binary has
// probes already.
func (t *targets) asked(p *process.Process) bool {
	t.mu.RLock()
	a, j := t.byFile[p.ExeID()], t.judged[p.PID()]
	t.mu.RUnlock()
	if !t.rules.Load().Any() || a != nil && a.named {
		return true
	}
	if j == nil || j.start != p.StartTime() || j.exe != p.ExeID() {
		j = t.judge(p)
	}
	return j.chosen || !j.waiting.IsZero()
}

// factsOf is what a process itself tells to rules.
func factsOf(p *process.Process) process.Facts {
	return process.Facts{
		Exe: p.ExePath(),
		Command: func() string {
			args, _ := p.Cmdline() // what cannot be read matches nothing
			return strings.Join(args, " ")
		},
		Env: p.Environment,
	}
}

// judge asks the rules.
func (t *targets) judge(p *process.Process) *judged {
	j := &judged{start: p.StartTime(), exe: p.ExeID(), facts: factsOf(p)}
	if t.rules.Load().OfPods() || t.cluster != nil {
		c := p.Container()
		j.facts.ContainerID, j.podUID = c.ID, c.PodUID
	}
	t.decide(j, time.Now())
	// What was read is kept, for the process may be gone when it is asked again.
	command, env := "", map[string]string(nil)
	if !j.waiting.IsZero() || j.guessed {
		command, env = j.facts.Command(), j.facts.Env()
	}
	j.facts.Command = func() string { return command }
	j.facts.Env = func() map[string]string { return env }
	t.mu.Lock()
	t.judged[p.PID()] = j
	t.mu.Unlock()
	return j
}

// decide sets what the rules say, as far as is known what they ask for. A process whose
// container the cluster does not know yet is waited for, once.
func (t *targets) decide(j *judged, now time.Time) {
	if t.cluster != nil && j.facts.ContainerID != "" && t.rules.Load().OfPods() {
		c, complete := t.cluster.Find(j.facts.ContainerID, j.podUID)
		j.facts.Container, j.facts.Namespace, j.facts.Pod = c.Name, c.Namespace, c.Pod
		j.facts.Labels, j.facts.Annotations = c.Labels, c.Annotations
		switch {
		case complete:
			j.waiting, j.guessed = time.Time{}, false
		case j.guessed:
		case j.waiting.IsZero():
			j.waiting = now.Add(t.wait)
			return
		case now.Before(j.waiting):
			return
		default:
			j.waiting, j.guessed = time.Time{}, true
		}
	}
	j.chosen, j.reason = t.rules.Load().Choose(&j.facts)
}

// judgeAgain decides about what had to wait, and what was decided without the cluster.
func (t *targets) judgeAgain(now time.Time) {
	t.mu.RLock()
	var open []int
	for pid, j := range t.judged {
		if !j.waiting.IsZero() || j.guessed {
			open = append(open, pid)
		}
	}
	t.mu.RUnlock()
	for _, pid := range open {
		t.mu.RLock()
		before := t.judged[pid]
		t.mu.RUnlock()
		if before == nil {
			continue
		}
		j := *before
		t.decide(&j, now)
		if j.waiting == before.waiting && j.guessed == before.guessed && j.chosen == before.chosen {
			continue
		}
		t.mu.Lock()
		t.judged[pid] = &j
		t.mu.Unlock()
		if p, err := process.Open(pid); err == nil {
			t.settle(p, &j, 0)
		}
	}
}

// settle attaches to a process, or sees to it that it has no probes. It takes p over.
func (t *targets) settle(p *process.Process, j *judged, since uint64) {
	keep := false
	defer func() {
		if !keep {
			p.Close()
		}
	}()
	if p.StartTime() != j.start || p.ExeID() != j.exe || !j.waiting.IsZero() {
		return
	}
	t.mu.RLock()
	a := t.byFile[j.exe]
	t.mu.RUnlock()
	if !j.chosen {
		if a != nil && a.binary != nil && !a.named {
			t.unwant(p.PID())
			t.warn("probes stay in a process that is not wanted", a, t.cover(a))
		}
		return
	}
	if a == nil || a.version != p.ExeVersion() {
		a = t.analyse(p.ExeID(), p.ExeVersion(), p.ExePath(), procExe(p.PID()))
		if a.err != nil {
			t.refused(a)
			return
		}
	}
	if a.err != nil {
		return
	}
	t.mu.RLock()
	news := len(a.links) == 0
	t.mu.RUnlock()
	began := time.Now()
	if err := t.cover(a); err != nil {
		t.warn("not instrumented", a, err)
		return
	}
	if took := time.Since(began); took > time.Millisecond {
		t.log.Debug("probes attached", "exe", a.path, "pid", p.PID(), "took", took)
	}
	if news {
		t.log.Info("attached", "exe", a.path, "pid", p.PID(), "go", a.binary.info.GoVersion().String())
	}
	t.mu.RLock()
	old := t.byPID[p.PID()]
	t.mu.RUnlock()
	if old != nil && (old.process.StartTime != p.StartTime() || old.since < since) {
		// Records of what had this number before are still to be read.
		keep = t.succeed(old, p, a.binary, since)
		return
	}
	keep = true
	t.add(p, a.binary, since)
}

func (t *targets) warn(what string, a *attached, err error) {
	if err != nil {
		t.log.Warn(what, "exe", a.path, "error", err)
	}
}

// refused says why a program is not instrumented, unless there is nothing in it that
// could be.
func (t *targets) refused(a *attached) {
	level := t.log.Warn
	if isNoTarget(a.err) {
		level = t.log.Debug
	}
	level("not instrumented", "exe", a.path, "reason", a.err)
}

func isNoTarget(err error) bool {
	return errors.Is(err, gobin.ErrNotGo) || errors.Is(err, gobin.ErrNotELF) || errors.Is(err, errNothing) || errors.Is(err, errSelf)
}

// procExe is the way to the executable of a process that works in any mount namespace,
// and when the file was deleted.
func procExe(pid int) string { return fmt.Sprintf("/proc/%d/exe", pid) }

// unwant forgets a target that is no longer wanted.
func (t *targets) unwant(pid int) {
	t.mu.Lock()
	if tg := t.byPID[pid]; tg != nil && tg.goneAt.IsZero() {
		tg.goneAt = time.Now()
	}
	t.mu.Unlock()
}
