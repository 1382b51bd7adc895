package probes

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/process"
)

// attachment is the plan of a binary in force, or the part of it that is not given up:
// for one process, or for all.
type attachment struct {
	pid   int // 0: every process
	links map[part]closers
}

// attach puts what is not given up of a binary's plan in force.
func (t *targets) attach(a *attached, pid int) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	if err := t.introduceAll(a.binary, pid); err != nil {
		return err
	}
	at := &attachment{pid: pid, links: map[part]closers{}}
	if err := at.apply(t.kernel, a.binary, a.given); err != nil {
		return errors.Join(err, at.Close())
	}
	t.mu.Lock()
	a.links = append(a.links, at)
	t.mu.Unlock()
	return nil
}

// part is what is attached and detached together.
type part struct {
	library *library
	choice  choice
}

// parts are those of a binary's plan, what may be switched first: it ends spans, which
// the others begin.
func (b *executable) parts() []part {
	var parts []part
	for _, p := range b.plan {
		if !slices.Contains(parts, p.part) {
			parts = append(parts, p.part)
		}
	}
	slices.SortStableFunc(parts, func(x, y part) int {
		if (x.choice == "") == (y.choice == "") {
			return 0
		}
		if x.choice != "" {
			return -1
		}
		return 1
	})
	return parts
}

// apply attaches what is missing and detaches what is given up or does not pay. After an
// error it holds what could be had, and may be called again.
func (at *attachment) apply(k *kernel, b *executable, given givenUp) error {
	keeps := func(part part) bool {
		return part.library.keptAt(given) && b.chosen(part.choice) && !k.off[part.library]
	}
	var programs []string
	for _, p := range b.plan {
		if keeps(p.part) {
			programs = append(programs, p.program)
		}
	}
	k.programs.load(programs...) // side by side; attach says what was refused
	var errs []error
	for _, part := range b.parts() {
		links, have := at.links[part]
		switch keep := keeps(part); {
		case keep && !have:
			links, err := b.attach(k, at.pid, part)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			at.links[part] = links
		case have && !keep:
			delete(at.links, part)
			if err := links.Close(); err != nil {
				errs = append(errs, fmt.Errorf("detach %s: %w", part.library.name, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Close detaches all of it, libraries side by side.
func (at *attachment) Close() error {
	errs := make([]error, 0, len(at.links))
	var mu sync.Mutex
	var closing sync.WaitGroup
	for _, links := range at.links {
		closing.Go(func() {
			err := links.Close()
			mu.Lock()
			errs = append(errs, err)
			mu.Unlock()
		})
	}
	closing.Wait()
	clear(at.links)
	return errors.Join(errs...)
}

// giveUp changes what is given up for a binary: attaches, detaches, and tells the
// kernel whether spans are wanted. Where something cannot be attached again, all stays as
// it was.
func (t *targets) giveUp(a *attached, given givenUp, reason string) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	if t.isDetached() {
		return nil // the agent is on its way down
	}
	err := t.put(a, given)
	if err != nil && given < a.given {
		return errors.Join(err, t.put(a, a.given))
	}
	t.mu.Lock()
	a.given, a.reason = given, reason
	t.mu.Unlock()
	return err
}

func (t *targets) put(a *attached, given givenUp) error {
	var links []*attachment
	var pids []int
	t.mu.RLock()
	for _, at := range a.links {
		// There is nothing to attach to in a process that is gone.
		if tg := t.byPID[at.pid]; at.pid == 0 || tg != nil && tg.binary == a.binary && tg.goneAt.IsZero() {
			links = append(links, at)
		}
	}
	for pid, tg := range t.byPID {
		if tg.binary == a.binary {
			pids = append(pids, pid)
		}
	}
	t.mu.RUnlock()
	errs := []error{t.kernel.setSpans(a.binary.id, given < givenUpSpans)}
	for _, at := range links {
		errs = append(errs, at.apply(t.kernel, a.binary, given))
	}
	if err := errors.Join(errs...); err != nil || given < givenUpAll {
		return err
	}
	// No program is left there that could end what is open.
	for _, pid := range pids {
		open, err := t.kernel.purge(uint32(pid), allTime)
		errs = append(errs, err)
		t.addPast(bpf.AgentCounterCOUNT_LOST_UNFINISHED, open)
	}
	return errors.Join(errs...)
}

func (t *targets) isDetached() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.detached
}

// setSpans tells the programs whether traces that begin in a binary may be sampled.
func (k *kernel) setSpans(id uint32, wanted bool) error {
	layouts := k.mapOf("runtime_layouts")
	var layout bpf.AgentRuntimeLayout
	if err := layouts.Lookup(id, &layout); err != nil {
		return fmt.Errorf("read runtime layout: %w", err)
	}
	layout.NoSpans = 1
	if wanted {
		layout.NoSpans = 0
	}
	if err := layouts.Put(id, &layout); err != nil {
		return fmt.Errorf("store runtime layout: %w", err)
	}
	return nil
}

// find is the running target of a process, nil if it runs no probed binary. It may be
// new to user space.
func (t *targets) find(pid int) *target {
	t.mu.RLock()
	tg := t.byPID[pid]
	t.mu.RUnlock()
	if tg != nil {
		return tg
	}
	p, err := process.Open(pid)
	if err != nil {
		return nil
	}
	t.mu.RLock()
	a := t.byFile[p.ExeID()]
	t.mu.RUnlock()
	if a == nil || a.binary == nil {
		p.Close()
		return nil
	}
	if !t.asked(p) {
		p.Close()
		return nil
	}
	return t.add(p, a.binary, 0)
}
