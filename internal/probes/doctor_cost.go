package probes

import (
	"fmt"
	"time"
)

// Operation is what one kind of operation costs its process.
type Operation struct {
	Library string `json:"library"`
	Name    string `json:"name"`
	Traps   int    `json:"traps"`
	// Sometimes is how many more there are while the agent finds them useful.
	Sometimes int `json:"sometimes,omitempty"`
	Stepped   int `json:"stepped"` // of Traps, those that the kernel does not emulate
	// CostNs is what Traps and a span take of CPU time, on a virtual machine.
	CostNs int64 `json:"cost_ns"`
}

// operationsOf counts the traps that operations pass: one site of every program of
// their group, as in operationCosts, and those of libraries that serve theirs.
func operationsOf(groups []GroupStatus) []Operation {
	var out []Operation
	seen := map[string]bool{} // several libraries are parts of one
	for _, lib := range libraries {
		if name := lib.operation(); name != "" && !seen[lib.name] {
			seen[lib.name] = true
			op := Operation{Library: lib.name, Name: name}
			if op.count(groups); op.Traps > 0 {
				out = append(out, op)
			}
		}
	}
	return out
}

// count adds up what an operation passes in a binary.
func (op *Operation) count(groups []GroupStatus) {
	metrics := false
	for _, g := range groups {
		if g.Library == op.Library && g.State == groupAttached {
			op.passes(g)
		}
	}
	for _, lib := range libraries {
		metrics = metrics || lib.name == op.Library && len(lib.metrics) > 0
		if lib.serves == nil || lib.serves.name != op.Library {
			continue
		}
		more := Operation{}
		for _, g := range groups {
			if g.Library == lib.name && g.State == groupAttached {
				more.passes(g)
			}
		}
		op.Sometimes += more.Traps + more.Sometimes // of the requests that come that way
	}
	cost := time.Duration(op.Traps-op.Stepped)*emulatedCost + time.Duration(op.Stepped)*singleStepCost
	if metrics && op.Traps > 0 {
		cost += spanCost
	}
	op.CostNs = int64(cost)
}

// passes makes op the one with more traps of what it is and what a group makes of it.
func (op *Operation) passes(g GroupStatus) {
	type program struct{ always, emulated bool }
	programs := map[string]program{}
	for _, h := range g.Hooks {
		if h.Address == "" {
			continue
		}
		p := programs[h.Program]
		p.always = p.always || h.While == ""
		p.emulated = p.emulated || h.Emulated
		programs[h.Program] = p
	}
	var traps, sometimes, stepped int
	for _, p := range programs {
		if !p.always {
			sometimes++
			continue
		}
		traps++
		if !p.emulated {
			stepped++
		}
	}
	if traps > op.Traps {
		op.Traps, op.Sometimes, op.Stepped = traps, sometimes, stepped
	}
}

// operation is what passes a library's probes, in a word or two; "" if that is what
// passes another's.
func (l *library) operation() string {
	if len(l.metrics) == 0 {
		return map[string]string{goRuntime.name: "go statement", standardError.name: "write to a file"}[l.name]
	}
	switch l.metrics[0].name {
	case "http.server.request.duration", "http.client.request.duration":
		return "request"
	case "db.client.operation.duration":
		return "query"
	case "rpc.server.call.duration", "rpc.client.call.duration":
		return "call"
	}
	return "operation"
}

func (op Operation) String() string {
	s := fmt.Sprintf("%d traps", op.Traps)
	if op.Traps == 1 {
		s = "1 trap"
	}
	if op.Sometimes > 0 {
		s += fmt.Sprintf(" (%d more at times)", op.Sometimes)
	}
	if op.Stepped > 0 {
		s += fmt.Sprintf(", %d of them single-stepped", op.Stepped)
	}
	return s + fmt.Sprintf(", about %.1f µs of CPU time on a virtual machine", float64(op.CostNs)/1000)
}
