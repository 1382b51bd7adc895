package probes

import (
	"bytes"
	"time"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
)

// maxHeld spans and pieces of logs wait for the cluster at most; what comes then goes out without waiting.
const maxHeld = 4096

// holding is what waits for the cluster to know its container, so that the first spans of
// a pod have the resource of the later ones. Only the reader uses it.
type holding struct {
	items   int
	targets []heldTarget
}

type heldTarget struct {
	target *target
	spans  []event.Span
	logs   []heldLog
}

type heldLog struct {
	record bpf.AgentStderrRecord
	text   []byte
	offset int64 // from its clock to Unix time
}

// put keeps a copy of the span; false if there is no room.
func (h *holding) put(tg *target, span *event.Span) bool {
	if h.items >= maxHeld {
		return false
	}
	h.items++
	of := h.of(tg)
	of.spans = append(of.spans, *span)
	return true
}

// putLog does so with a piece of what was written to standard error.
func (h *holding) putLog(tg *target, r *bpf.AgentStderrRecord, text []byte, offset int64) bool {
	if h.items >= maxHeld {
		return false
	}
	h.items++
	of := h.of(tg)
	of.logs = append(of.logs, heldLog{*r, bytes.Clone(text), offset})
	return true
}

func (h *holding) of(tg *target) *heldTarget {
	for i := range h.targets {
		if h.targets[i].target == tg {
			return &h.targets[i]
		}
	}
	h.targets = append(h.targets, heldTarget{target: tg})
	return &h.targets[len(h.targets)-1]
}

// letGo hands over what need not wait any longer: its container is known, or it has waited
// long enough. At the zero time that is all of it.
func (r *reader) letGo(now time.Time) {
	kept := r.held.targets[:0]
	for _, h := range r.held.targets {
		tg := r.targets.now(h.target)
		if tg != nil && !now.IsZero() && tg.holds(now) {
			kept = append(kept, h)
			continue
		}
		r.held.items -= len(h.spans) + len(h.logs)
		if tg == nil {
			r.skip(uint64(len(h.spans)))
			continue
		}
		for i := range h.spans {
			h.spans[i].Process = tg.process
		}
		if len(h.spans) > 0 {
			r.sink.Spans(h.spans)
		}
		for i := range h.logs {
			r.logs.write(tg, &h.logs[i].record, h.logs[i].text, h.logs[i].offset)
		}
	}
	clear(r.held.targets[len(kept):])
	r.held.targets = kept
}
