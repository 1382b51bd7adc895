package probes

import (
	"sort"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
)

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
		switch {
		case a.err != nil && isNoTarget(a.err) && !a.named:
			s.Others++ // most programs of a node
			continue
		case a.err != nil:
			b.State, b.Reason = "refused", a.err.Error()
		default:
			b.GoVersion, b.Groups = a.binary.info.GoVersion().String(), a.binary.groups
			b.Backoff = a.backoffStatus()
		}
		s.Binaries = append(s.Binaries, b)
	}
	sort.Slice(s.Binaries, func(i, j int) bool { return s.Binaries[i].Path < s.Binaries[j].Path })
	for pid, tg := range t.byPID {
		ts := TargetStatus{PID: pid, Exe: tg.process.Exe, Service: serviceName(tg.process), State: "attached"}
		t.countTarget(&ts, tg)
		if !tg.goneAt.IsZero() {
			ts.State = "gone"
		}
		s.Targets = append(s.Targets, ts)
	}
	for pid, j := range t.judged {
		a := t.byFile[j.exe]
		switch {
		case !j.waiting.IsZero():
			s.Targets = append(s.Targets, TargetStatus{PID: pid, Exe: j.facts.Exe, State: "waiting", Reason: "the cluster does not know its container yet"})
		case !j.chosen && a != nil && a.binary != nil:
			s.Targets = append(s.Targets, TargetStatus{PID: pid, Exe: j.facts.Exe, State: "refused", Reason: j.reason})
		}
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
	spell(&total, &s.Spans, s.Losses)
}

// countTarget fills in where the spans of one process went.
func (t *targets) countTarget(s *TargetStatus, tg *target) {
	var p bpf.AgentProcess
	if t.kernel.mapOf("processes").Lookup(uint32(s.PID), &p) != nil {
		return // it has done nothing yet
	}
	s.Spans.Decoded, s.Losses = tg.decoded.Load(), map[string]uint64{}
	spell(&p.Counters, &s.Spans, s.Losses)
}

// spell names the kernel's counts.
func spell(counts *[bpf.AgentCounterCOUNTERS]uint64, spans *SpanCounts, losses map[string]uint64) {
	spans.Emitted = counts[bpf.AgentCounterCOUNT_EMITTED]
	spans.SampledOut = counts[bpf.AgentCounterCOUNT_SAMPLED_OUT]
	for i, name := range counterNames {
		if name != "" && counts[i] > 0 {
			losses[name] = counts[i]
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
