package probes

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/process"
)

// backoff keeps what the probes cost each target below a share of its CPU time: it gives
// up spans, then SQL, then everything, for the processes of one binary together, and
// takes them up again when the load has fallen.
type backoff struct {
	kernel  *kernel
	targets *targets
	budget  float64
	log     *slog.Logger

	processes map[uint32]processLoad
	binaries  map[*executable]*binaryLoad
}

// processLoad is what a process did until now.
type processLoad struct {
	start      uint64 // tells it from a later one of the same number
	cpu        time.Duration
	operations map[uint32]uint64 // by kind
	emitted    uint64
}

type binaryLoad struct {
	decision  decision
	estimator estimator
}

func newBackoff(k *kernel, t *targets, budget float64, log *slog.Logger) *backoff {
	return &backoff{
		kernel: k, targets: t, budget: budget, log: log,
		processes: map[uint32]processLoad{}, binaries: map[*executable]*binaryLoad{},
	}
}

func (b *backoff) run(ctx context.Context) {
	tick := time.NewTicker(budgetInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := b.look(); err != nil {
				b.log.Debug("cost of the probes is unknown for this interval", "error", err)
			}
		}
	}
}

// look takes one interval's measure of every binary and acts upon it.
func (b *backoff) look() error {
	loads, err := b.readKernel()
	if err != nil {
		return err
	}
	uses := b.measure(loads)
	known := b.targets.attachedBinaries()
	maps.DeleteFunc(b.binaries, func(e *executable, _ *binaryLoad) bool {
		return !slices.ContainsFunc(known, func(a *attached) bool { return a.binary == e })
	})
	for _, a := range known {
		if u, ok := uses[a.binary]; ok {
			b.judge(a, u)
		}
	}
	return nil
}

// readKernel is what the kernel has counted, by process.
func (b *backoff) readKernel() (map[uint32]processLoad, error) {
	loads := map[uint32]processLoad{}
	add := func(tgid, kind uint32, h *bpf.AgentHistogram) {
		load, ok := loads[tgid]
		if !ok {
			load.operations = map[uint32]uint64{}
			loads[tgid] = load
		}
		for _, n := range h.Counts {
			load.operations[kind] += n
		}
	}
	err := eachInBatches(b.kernel.mapOf("all_series"), func(key *bpf.AgentSeriesKey, s *bpf.AgentSeries) {
		add(key.Tgid, key.Kind, &s.Histogram)
	})
	return loads, errors.Join(err, eachInBatches(b.kernel.mapOf("processes"), func(tgid *uint32, p *bpf.AgentProcess) {
		for _, lib := range libraries {
			for _, m := range lib.metrics {
				add(*tgid, m.kind, &p.Overflow[m.slot])
			}
		}
		load := loads[*tgid]
		load.emitted = p.Counters[bpf.AgentCounterCOUNT_EMITTED]
		loads[*tgid] = load
	}))
}

// measure is what each binary's processes did since the last time. A process that is
// seen for the first time counts from now on.
func (b *backoff) measure(loads map[uint32]processLoad) map[*executable]usage {
	for tgid := range loads {
		b.targets.find(int(tgid))
	}
	uses := map[*executable]usage{}
	seen := map[uint32]processLoad{}
	for pid, tg := range b.targets.running() {
		cpu, err := process.CPUTime(pid, tg.process.StartTime)
		if err != nil {
			continue // it is gone
		}
		now := loads[uint32(pid)]
		now.start, now.cpu = tg.process.StartTime, cpu
		seen[uint32(pid)] = now
		u := uses[tg.binary]
		if before, ok := b.processes[uint32(pid)]; ok && before.start == now.start {
			u.add(now, before)
		}
		uses[tg.binary] = u
	}
	b.processes = seen
	return uses
}

func (u *usage) add(now, before processLoad) {
	if u.operations == nil {
		u.operations = map[uint32]uint64{}
	}
	u.cpu += now.cpu - before.cpu
	for kind, n := range now.operations {
		u.operations[kind] += gainOf(n, before.operations[kind])
	}
	u.emitted += gainOf(now.emitted, before.emitted)
}

// gainOf is the growth of a counter; one that has become less began anew.
func gainOf(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

func (b *backoff) judge(a *attached, u usage) {
	load := b.binaries[a.binary]
	if load == nil {
		load = &binaryLoad{estimator: estimator{costs: operationCosts(a.binary.groups)}}
		for _, part := range a.binary.parts() {
			load.decision.parts = load.decision.parts || part.library.keptAt(givenUpSQL)
		}
		b.binaries[a.binary] = load
	}
	before := load.decision
	p := load.estimator.pressure(u, before.given)
	load.decision = before.after(p, b.budget)
	given := load.decision.given
	if given == before.given {
		return
	}
	reason := a.reason
	if given > before.given {
		reason = p.reason(b.budget)
	}
	log := b.log.With("exe", a.path, "given_up", given.String())
	err := b.targets.giveUp(a, given, reason)
	switch {
	case err != nil && given < before.given:
		load.decision = decision{given: before.given, parts: before.parts, patience: before.patience}
		log.Warn("the agent cannot take up again yet what it had given up", "error", err)
	case err != nil:
		log.Warn("the agent backs off, with an error", "reason", reason, "error", err)
	case given > before.given:
		log.Warn("the agent backs off", "reason", reason)
	default:
		log.Info("the agent takes up again what it had given up")
	}
}

// attachedBinaries are those that are attached, or would be if not given up.
func (t *targets) attachedBinaries() []*attached {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var all []*attached
	for _, a := range t.byFile {
		if a.err == nil && len(a.links) > 0 {
			all = append(all, a)
		}
	}
	return all
}

// running are the targets that run, by PID.
func (t *targets) running() map[int]*target {
	t.mu.RLock()
	defer t.mu.RUnlock()
	all := make(map[int]*target, len(t.byPID))
	for pid, tg := range t.byPID {
		if tg.proc != nil && tg.goneAt.IsZero() {
			all[pid] = tg
		}
	}
	return all
}

// backoffStatus is nil if nothing is given up. The caller holds the lock of targets.
func (a *attached) backoffStatus() *BackoffStatus {
	if a.given == givenUpNothing {
		return nil
	}
	return &BackoffStatus{Level: a.given.String(), Reason: a.reason}
}
