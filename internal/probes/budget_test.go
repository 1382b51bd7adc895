package probes

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/plainframework/agent/bpf"
)

// TestDecision plays intervals: each letter is one, and the digit behind a bar is what is
// given up then.
//
//	O  above the budget
//	o  below it, but one step less would not be
//	q  quiet: one step less would cost less than half of the budget
//	?  below it, what one step less would cost is unknown
func TestDecision(t *testing.T) {
	const budget = 0.02
	letters := map[rune]pressure{
		'O': {share: 0.03, next: 0.04},
		'o': {share: 0.015, next: 0.015},
		'q': {share: 0.001, next: 0.009},
		'?': {share: 0.001, unknown: true},
	}
	rep := strings.Repeat
	tests := []struct{ name, play string }{
		{"one bad interval", "O|0 o|0 O|0 q|0 O|0"},
		{"two running", "OO|1"},
		{"in this order", "OO|1 OO|2 OO|3"},
		{"no further", "OO|1 OO|2 OO|3 OOOO|3"},
		{"each step is given its time", "OO|1 O|1 o|1 O|1 O|2"},
		{"nothing to take up again", "qqqqqqqqqqqqqq|0"},
		{"quiet for 30 s", "OO|1 qqqqq|1 q|0"},
		{"not quiet all the time", "OO|1 qqqqq|1 o|1 qqqqq|1 q|0"},
		{"bad in between", "OO|1 qqqqq|1 O|1 qqqqq|1 q|0"},
		{"back one step at a time", "OO|1 OO|2 OO|3 qqqqqq|2 qqqqq|2 q|1 qqqqq|1 q|0"},
		{"below the budget, but not by half", "OO|1 " + rep("o", 100) + "|1"},
		{"unknown is tried after a minute", "OO|1 OO|2 OO|3 " + rep("?", 11) + "|3 ?|2"},
		{"too early: twice the time", "OO|1 OO|2 OO|3 " + rep("?", 12) + "|2 OO|3 " + rep("?", 23) + "|3 ?|2"},
		{"and again", "OO|1 OO|2 OO|3 " + rep("?", 12) + "|2 OO|3 " + rep("?", 24) + "|2 OO|3 " + rep("?", 47) + "|3 ?|2"},
		{"went well for a while: a minute again", "OO|1 OO|2 OO|3 " + rep("?", 12) + "|2 oooooOO|3 " + rep("?", 11) + "|3 ?|2"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := decision{parts: true}
			for _, act := range strings.Fields(tt.play) {
				intervals, want, _ := strings.Cut(act, "|")
				for _, letter := range intervals {
					d = d.after(letters[letter], budget)
				}
				if int(d.given) != int(want[0]-'0') {
					t.Fatalf("after %q of %q: %v is given up, want step %s", act, tt.play, d.given, want)
				}
			}
		})
	}

	t.Run("longest wait", func(t *testing.T) {
		d := decision{given: givenUpAll, parts: true}
		for range 20 {
			for d.given == givenUpAll {
				d = d.after(letters['?'], budget)
			}
			d = d.after(letters['O'], budget).after(letters['O'], budget)
		}
		if d.patience != mostPatience {
			t.Errorf("patience is %d intervals, want %d", d.patience, mostPatience)
		}
	})
	t.Run("nothing but SQL", func(t *testing.T) {
		var d decision
		for i, want := range []givenUp{givenUpNothing, givenUpSpans, givenUpSpans, givenUpAll} {
			if d = d.after(letters['O'], budget); d.given != want {
				t.Fatalf("interval %d: %v is given up, want %v", i, d.given, want)
			}
		}
		for range quietIntervals {
			d = d.after(letters['q'], budget)
		}
		if d.given != givenUpSpans {
			t.Errorf("%v is given up, want spans", d.given)
		}
	})
}

const (
	httpKind = uint32(bpf.AgentNethttpKindRECORD_HTTP_SERVER)
	sqlKind  = uint32(bpf.AgentSqlKindRECORD_SQL)
)

func TestOperationCosts(t *testing.T) {
	site := func(program string, emulated bool) HookStatus {
		return HookStatus{Program: program, Address: "0x1", Emulated: emulated}
	}
	server := GroupStatus{Library: "net/http", State: "attached", Hooks: []HookStatus{
		site("end", true), site("end", true), {Program: "route", Reason: "inlined"}, site("begin", true),
	}}
	routed := server
	routed.Hooks = append([]HookStatus{site("route", true)}, server.Hooks...)
	retry := GroupStatus{Library: "database/sql", State: "attached", Hooks: []HookStatus{
		site("end", false), site("end", true), site("begin", true), site("begin", true),
	}}
	returns := GroupStatus{Library: "database/sql", State: "attached", Hooks: []HookStatus{
		site("end", false), site("end", false), site("begin", true),
	}}
	uncovered := returns
	uncovered.State = "uncovered"
	tests := []struct {
		name      string
		groups    []GroupStatus
		http, sql time.Duration
	}{
		{"two sites a request", []GroupStatus{server}, 2 * emulatedCost, 0},
		{"three with the route", []GroupStatus{routed}, 3 * emulatedCost, 0},
		{"rare sites do not count", []GroupStatus{server, retry}, 2 * emulatedCost, 2 * emulatedCost},
		{"the dearest group", []GroupStatus{retry, returns}, 0, emulatedCost + singleStepCost},
		{"a group that is not attached", []GroupStatus{retry, uncovered}, 0, 2 * emulatedCost},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			costs := operationCosts(tt.groups)
			if costs[httpKind].traps != tt.http || costs[sqlKind].traps != tt.sql {
				t.Errorf("a request costs %v and a query %v, want %v and %v", costs[httpKind].traps, costs[sqlKind].traps, tt.http, tt.sql)
			}
		})
	}
}

// TestPressure gives an estimator intervals, and looks at the last one.
func TestPressure(t *testing.T) {
	costs := map[uint32]operationCost{
		httpKind: {&netHTTP, 3 * time.Microsecond},
		sqlKind:  {&databaseSQL, 2 * time.Microsecond},
	}
	type interval struct {
		given              givenUp
		cpu                time.Duration
		requests, queries  uint64
		emitted            uint64
		share, next        float64
		unknown, checkNext bool
	}
	const ms = time.Millisecond
	// 1000 requests are 3 ms, 2000 queries 4 ms, 3000 spans 3 ms.
	busy := interval{given: givenUpNothing, cpu: 1000 * ms, requests: 1000, queries: 2000, emitted: 3000, share: 0.010}
	tests := []struct {
		name      string
		intervals []interval
	}{
		{"all of it", []interval{busy}},
		{"an idle process", []interval{{cpu: 40 * ms, requests: 1000, emitted: 1000, share: 0}}},
		{"without spans", []interval{busy,
			{given: givenUpSpans, cpu: 1000 * ms, requests: 500, queries: 1000, share: 0.0035, next: 0.0050, checkNext: true}}},
		{"sampled at one half", []interval{
			{given: givenUpNothing, cpu: 1000 * ms, requests: 1000, queries: 2000, emitted: 1500, share: 0.0085},
			{given: givenUpSpans, cpu: 1000 * ms, requests: 1000, queries: 2000, share: 0.0070, next: 0.0085, checkNext: true}}},
		{"without SQL", []interval{busy,
			{given: givenUpSQL, cpu: 1000 * ms, requests: 500, share: 0.0015, next: 0.0035, checkNext: true}}},
		{"nothing to compare with", []interval{
			{given: givenUpSpans, cpu: 1000 * ms, queries: 2000, share: 0.004, next: 0.004, checkNext: true},
			{given: givenUpSQL, cpu: 1000 * ms, unknown: true}}},
		{"nothing is seen", []interval{busy, {given: givenUpAll, cpu: 1000 * ms, unknown: true}}},
		{"nothing is seen, half of the load", []interval{busy, {given: givenUpAll, cpu: 490 * ms, checkNext: true}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := estimator{costs: costs}
			for i, in := range tt.intervals {
				p := e.pressure(usage{
					cpu: in.cpu, emitted: in.emitted,
					operations: map[uint32]uint64{httpKind: in.requests, sqlKind: in.queries, 99: 5},
				}, in.given)
				if math.Abs(p.share-in.share) > 1e-9 {
					t.Errorf("interval %d: share is %v, want %v", i, p.share, in.share)
				}
				if p.unknown != in.unknown || in.checkNext && math.Abs(p.next-in.next) > 1e-9 {
					t.Errorf("interval %d: next is %v, unknown %v, want %v, %v", i, p.next, p.unknown, in.next, in.unknown)
				}
			}
		})
	}
}

func TestGainOf(t *testing.T) {
	for _, tt := range []struct{ before, now, want uint64 }{{0, 5, 5}, {5, 9, 4}, {9, 9, 0}, {9, 4, 4}} {
		if got := gainOf(tt.now, tt.before); got != tt.want {
			t.Errorf("from %d to %d: %d, want %d", tt.before, tt.now, got, tt.want)
		}
	}
}
