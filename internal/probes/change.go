package probes

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/plainframework/agent/internal/probes/process"
)

// Targets are what is to be instrumented.
type Targets struct {
	PIDs  []int
	Exes  []string
	Rules process.Rules
}

// Change puts other options in force while Run runs: targets, sampling, the limit of
// series, and what is kept of logs. Probes that stay are not touched, so nothing is lost
// that goes on. It returns when all is attached that can be, or ctx ends.
func (a *Agent) Change(ctx context.Context, o Options) error {
	if err := a.kernel.configure(o); err != nil {
		return err
	}
	threshold, keepErrors := o.Sampling.thresholdText(), o.Sampling.KeepErrors
	change := func() {
		a.reader.decode.threshold, a.reader.decode.keepErrors = threshold, keepErrors
		a.reader.logs.change(o.Logs)
	}
	select {
	case a.reader.changes <- change:
	case <-ctx.Done():
		return fmt.Errorf("change sampling: %w", ctx.Err())
	}
	select {
	case a.targets.changes <- Targets{PIDs: o.PIDs, Exes: o.Exes, Rules: o.Rules}:
	case <-ctx.Done():
		return fmt.Errorf("change targets: %w", ctx.Err())
	}
	return nil
}

// change follows other targets. Only run calls it.
func (t *targets) change(w Targets) {
	t.mu.Lock()
	t.rules.Store(&w.Rules)
	clear(t.judged)
	before := t.pids
	t.pids = w.PIDs
	var exes []*wantedExe
	for _, path := range w.Exes {
		i := slices.IndexFunc(t.exes, func(e *wantedExe) bool { return e.path == path })
		if i >= 0 {
			exes = append(exes, t.exes[i])
		} else {
			exes = append(exes, &wantedExe{path: path})
		}
	}
	for _, e := range t.exes {
		if a := t.byFile[e.file]; a != nil && !slices.Contains(w.Exes, e.path) {
			a.named = false
		}
	}
	t.exes = exes
	t.mu.Unlock()

	for _, pid := range w.PIDs {
		if !slices.Contains(before, pid) {
			if err := t.attachPID(pid); err != nil {
				t.log.Warn("not instrumented", "pid", pid, "reason", err)
			}
		}
	}
	t.lookAll()
	if err := t.scan(); err != nil {
		t.log.Warn("some processes are not found", "error", err)
	}
	t.leaveUnwanted()
}

// leaveUnwanted takes probes out of what is not asked for any more.
func (t *targets) leaveUnwanted() {
	t.mu.RLock()
	var attached []*attached
	for _, a := range t.byFile {
		if a.binary != nil && len(a.links) > 0 {
			attached = append(attached, a)
		}
	}
	t.mu.RUnlock()
	for _, a := range attached {
		t.warn("probes stay where they are not wanted", a, t.cover(a))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for pid, tg := range t.byPID {
		if tg.goneAt.IsZero() && !t.probed(pid, tg) {
			tg.goneAt = time.Now()
			t.log.Info("not instrumented any more", "pid", pid, "exe", tg.process.Exe)
		}
	}
}

// change puts other limits in force: each stream is ended, and goes on as a new one.
func (l *logs) change(o Logs) {
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	o.Capture = l.options.Capture
	l.options = o
	for t, s := range l.streams {
		dropped := s.dropped
		l.end(t, s)
		l.stream(t).dropped = dropped
	}
}

// ErrStuck is what [Agent.Alive] returns when the ring is not read any more.
var ErrStuck = errors.New("the ring buffer is not read any more")

// stuckAfter is how long the reader may be silent: it looks twenty times a second.
const stuckAfter = 15 * time.Second

// Alive returns an error if the agent does not do its work while Run runs.
func (a *Agent) Alive() error {
	if at := a.reader.alive.Load(); at != 0 && time.Duration(sinceBoot()-at) > stuckAfter {
		return ErrStuck
	}
	return nil
}
