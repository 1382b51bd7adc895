package probes

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
)

// collection is one hand-over of metrics. Until it is settled, that is until each of its
// points is exported, spooled or counted as lost, the kernel is the only place that is
// sure to have them. So only then is noted how far the histograms are exported, and is
// deleted what belongs to processes that are gone. If the agent is killed before, the
// next one collects the same again.
type collection struct {
	baselines map[bpf.AgentSeriesKey]bpf.AgentHistogram // of series that gained
	retired   map[int]*target                           // their last is in it
	until     int64
	done      bool
}

// settled notes what is exported. An earlier collection that is not settled holds up
// later ones, for their baselines include it.
func (c *collector) settled(done *collection) {
	c.mu.Lock()
	defer c.mu.Unlock()
	done.done = true
	for len(c.pending) > 0 && c.pending[0].done {
		p := c.pending[0]
		c.pending = c.pending[1:]
		if err := c.state.saveBaselines(p.baselines); err != nil {
			c.log.Warn("if the agent is killed now, the next one exports some metrics twice", "error", err)
		}
		c.state.note(wordCollected, uint64(p.until))
		c.free(p.retired)
	}
}

// free deletes what the kernel keeps of processes whose metrics are exported. The caller
// holds mu.
func (c *collector) free(processes map[int]*target) {
	if len(processes) == 0 {
		return
	}
	var dead []bpf.AgentSeriesKey
	series := c.kernel.mapOf("all_series")
	err := eachInBatches(series, func(key *bpf.AgentSeriesKey, _ *bpf.AgentSeries) {
		if tg, ok := processes[int(key.Tgid)]; ok && c.targets.is(int(key.Tgid), tg) {
			dead = append(dead, *key)
		}
	})
	if err != nil {
		c.log.Warn("series of processes that are gone stay in the kernel", "error", err)
	}
	for pid, tg := range processes {
		if c.targets.is(pid, tg) {
			for _, m := range c.metrics {
				dead = append(dead, overflowKey(uint32(pid), m))
			}
		}
	}
	for i := range dead {
		// What came since it was read is of whoever has the number now.
		if last, err := c.kernel.takeSeries(&dead[i]); err == nil { // the overflow has none
			c.addSeries(&dead[i], &last, event.Exemplar{})
		}
		delete(c.seen, dead[i])
		c.state.dropBaseline(&dead[i])
	}
	for pid, tg := range processes {
		if tg != nil {
			c.targets.drop(pid, tg)
		}
	}
}

// takeSeries removes a series, and returns what the kernel had of it.
func (k *kernel) takeSeries(key *bpf.AgentSeriesKey) (s bpf.AgentSeries, err error) {
	series := k.mapOf("all_series")
	if k.mode != attachLookup {
		return s, series.LookupAndDelete(key, &s)
	}
	// Linux before 5.14 has no such call.
	if err = series.Lookup(key, &s); err != nil {
		return s, err
	}
	return s, series.Delete(key)
}

// is tells whether a process is still this target; nil is any.
func (t *targets) is(pid int, tg *target) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return tg == nil || t.byPID[pid] == tg
}

// saw notes a reading of a histogram.
func (c *collector) saw(key bpf.AgentSeriesKey, h bpf.AgentHistogram) {
	c.seen[key] = h
	if c.changed != nil && c.state.keeps() {
		c.changed[key] = h
	}
}

// overflowKey stands for the overflow histogram of a process; no series has it.
func overflowKey(tgid uint32, m *metric) bpf.AgentSeriesKey {
	return bpf.AgentSeriesKey{Tgid: tgid, Kind: m.kind, Text: ^uint64(0), ErrorType: ^uint64(0)}
}

// inherit goes on where the agent before was with its exports.
func (c *collector) inherit() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := map[bpf.AgentSeriesKey]bool{}
	err := eachInBatches(c.kernel.mapOf("all_series"), func(key *bpf.AgentSeriesKey, _ *bpf.AgentSeries) {
		known[*key] = true
	})
	if err != nil {
		return err
	}
	err = eachInBatches(c.kernel.mapOf("processes"), func(tgid *uint32, _ *bpf.AgentProcess) {
		for _, m := range c.metrics {
			known[overflowKey(*tgid, m)] = true
		}
	})
	if err != nil {
		return err
	}
	var orphans []bpf.AgentSeriesKey
	err = eachInBatches(c.state.baselines, func(key *bpf.AgentSeriesKey, h *bpf.AgentHistogram) {
		if known[*key] {
			c.seen[*key] = *h
		} else {
			orphans = append(orphans, *key)
		}
	})
	for i := range orphans {
		c.state.dropBaseline(&orphans[i])
	}
	now := time.Now()
	if until := int64(c.state.ledger.get(wordCollected)); until > 0 && until < now.UnixNano() {
		c.last = event.StartAt(until, now)
	}
	return err
}

func (s *State) saveBaselines(changed map[bpf.AgentSeriesKey]bpf.AgentHistogram) error {
	if !s.keeps() || len(changed) == 0 {
		return nil
	}
	keys := make([]bpf.AgentSeriesKey, 0, len(changed))
	values := make([]bpf.AgentHistogram, 0, len(changed))
	for k, h := range changed {
		keys, values = append(keys, k), append(values, h)
	}
	if _, err := s.baselines.BatchUpdate(keys, values, &ebpf.BatchOptions{}); err != nil {
		return fmt.Errorf("note how far metrics are exported: %w", err)
	}
	return nil
}

func (s *State) dropBaseline(key *bpf.AgentSeriesKey) {
	if s.keeps() {
		_ = s.baselines.Delete(key) // it may have none
	}
}
