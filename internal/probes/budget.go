package probes

import (
	"fmt"
	"time"
)

// givenUp says what is given up for a binary whose processes pay too much for their
// probes; each step includes those before it.
type givenUp int

const (
	givenUpNothing givenUp = iota
	givenUpSpans           // nothing is emitted; all is measured
	givenUpSQL             // queries are not probed
	givenUpAll             // nothing is probed
)

func (g givenUp) String() string {
	return [...]string{"nothing", "spans", "sql", "all"}[g]
}

// keptAt tells whether a library's probes stay when that much is given up.
func (l *library) keptAt(given givenUp) bool {
	at := l.givenUp
	if at == givenUpNothing {
		at = givenUpAll
	}
	return given < at
}

// What a hit costs the app: trap, program and the way back. These are constants, from a
// virtual machine, where two emulated hits and a span were 4 to 5 µs, and a single-stepped
// hit 10 to 13 µs. On bare metal they are less, so there the agent backs off early.
const (
	emulatedCost   = 1500 * time.Nanosecond
	singleStepCost = 12 * time.Microsecond
	spanCost       = time.Microsecond // more, if a span is emitted
)

const (
	budgetInterval = 5 * time.Second
	// leastCPU is what a binary's processes use in an interval at least, for a share
	// of it to say anything: CPU time comes in ticks of 10 ms.
	leastCPU = 50 * time.Millisecond

	overIntervals  = 2 // above the budget: one step more is given up
	quietIntervals = 6 // below half of it: one step less
	// Where nothing that is probed tells what a step back would cost, it is tried,
	// after a time that doubles if it was too early.
	leastPatience = 12
	mostPatience  = 120
)

// pressure is what the probes of a binary cost in an interval, as a share of the CPU
// time of its processes.
type pressure struct {
	share   float64 // now
	next    float64 // with one step less given up, estimated
	unknown bool    // next could not be estimated
}

// decision is what is given up for a binary, and how it came to that. Counts are of
// intervals.
type decision struct {
	given givenUp
	parts bool // something is probed besides SQL: without SQL there is still something

	over, quiet int // running
	since       int // since the last step
	patience    int // until a step back is tried; 0: leastPatience
	tried       bool
}

// after is the decision at the end of one more interval.
func (d decision) after(p pressure, budget float64) decision {
	d.since++
	d.patience = max(d.patience, leastPatience)
	if p.share > budget {
		d.quiet = 0
		if d.over++; d.over >= overIntervals && d.given < givenUpAll {
			return d.more()
		}
		return d
	}
	d.over = 0
	switch {
	case d.given == givenUpNothing:
	case p.unknown:
		d.quiet = 0
		if d.since >= d.patience {
			return d.less(true)
		}
	case p.next < budget/2:
		if d.quiet++; d.quiet >= quietIntervals {
			return d.less(false)
		}
	default:
		d.quiet = 0
	}
	return d
}

func (d decision) more() decision {
	patience := leastPatience
	if d.tried && d.since <= quietIntervals {
		patience = min(2*d.patience, mostPatience)
	}
	given := d.given + 1
	if given == givenUpSQL && !d.parts {
		given++
	}
	return decision{given: given, parts: d.parts, patience: patience}
}

func (d decision) less(tried bool) decision {
	given := d.given - 1
	if given == givenUpSQL && !d.parts {
		given--
	}
	return decision{given: given, parts: d.parts, patience: d.patience, tried: tried}
}

// usage is what the processes of one binary did in an interval.
type usage struct {
	cpu        time.Duration
	operations map[uint32]uint64 // by kind of their records
	emitted    uint64
}

// operationCost is what an operation of one kind costs.
type operationCost struct {
	library *library
	traps   time.Duration
}

// operationCosts computes from a binary's probe sites what each kind of operation
// costs: it passes one site of every program, and of those the cheapest, for the others
// are passed only after errors. A query in a transaction passes one more.
func operationCosts(groups []GroupStatus) map[uint32]operationCost {
	costs := map[uint32]operationCost{}
	for _, lib := range libraries {
		for _, g := range groups {
			if g.Library != lib.name || g.State != groupAttached {
				continue
			}
			programs := map[string]time.Duration{}
			for _, h := range g.Hooks {
				if h.Address == "" {
					continue
				}
				cost := singleStepCost
				if h.Emulated {
					cost = emulatedCost
				}
				if have, ok := programs[h.Program]; !ok || cost < have {
					programs[h.Program] = cost
				}
			}
			var sum time.Duration
			for _, cost := range programs {
				sum += cost
			}
			for _, m := range lib.metrics {
				costs[m.kind] = operationCost{lib, max(sum, costs[m.kind].traps)}
			}
			if lib.serves != nil { // it comes later in the table
				for _, m := range lib.serves.metrics {
					costs[m.kind] = operationCost{lib.serves, costs[m.kind].traps + sum}
				}
			}
		}
	}
	return costs
}

// estimator turns usage into pressure. It remembers what was seen when more was probed.
type estimator struct {
	costs map[uint32]operationCost

	emitted float64       // spans for each operation
	sql     time.Duration // cost of what givenUpSQL takes out, for each operation that stays
	known   bool          // that there was any that stays
	cpu     time.Duration // of the last interval in which anything was probed
}

func (e *estimator) pressure(u usage, given givenUp) pressure {
	var cost, sqlCost time.Duration
	var all, stay uint64
	for kind, n := range u.operations {
		c, ok := e.costs[kind]
		if !ok {
			continue
		}
		cost += time.Duration(n) * c.traps
		all += n
		if c.library.keptAt(givenUpSQL) {
			stay += n
		} else {
			sqlCost += time.Duration(n) * c.traps
		}
	}
	cost += time.Duration(u.emitted) * spanCost
	if u.cpu < leastCPU {
		return pressure{} // too little happens to cost anybody much
	}
	e.remember(u, given, all, stay, sqlCost)

	p := pressure{share: share(cost, u.cpu)}
	switch given {
	case givenUpSpans:
		p.next = share(cost+time.Duration(float64(all)*e.emitted*float64(spanCost)), u.cpu)
	case givenUpSQL:
		p.next, p.unknown = share(cost+time.Duration(stay)*e.sql, u.cpu), !e.known
	case givenUpAll:
		// The share need not fall with the load, but a load that has fallen by
		// half is reason enough to look.
		p.unknown = u.cpu > e.cpu/2
	}
	return p
}

func (e *estimator) remember(u usage, given givenUp, all, stay uint64, sqlCost time.Duration) {
	if given < givenUpAll {
		e.cpu = u.cpu
	}
	if given == givenUpNothing && all > 0 {
		e.emitted = float64(u.emitted) / float64(all)
	}
	if given < givenUpSQL && stay > 0 {
		e.sql, e.known = sqlCost/time.Duration(stay), true
	}
}

func share(cost, cpu time.Duration) float64 { return float64(cost) / float64(cpu) }

func (p pressure) reason(budget float64) string {
	return fmt.Sprintf("the probes cost about %.1f %% of the CPU time of its processes, which is more than %.3g %%", 100*p.share, 100*budget)
}
