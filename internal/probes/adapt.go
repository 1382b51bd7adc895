package probes

import (
	"fmt"
	"time"

	"github.com/plainframework/agent/bpf"
)

// A trap costs about as much as everything that its program does. Some are needed only
// by some programs, and which ones shows when they run. These hooks are attached and
// detached by what the kernel counts; spans are the same either way, but for the first
// requests after a program changes its ways (choiceRoute says which).
type choice string

const (
	// choiceRoute is the probe where ServeMux matches. It is needed where the pattern is
	// set on a copy of the request: middleware before the mux that calls WithContext,
	// TimeoutHandler. It begins attached, and is detached when routeProof requests in a
	// row had the pattern on the request itself. Should a request end without a route
	// after all, it comes back for good; that request, and those until then, a second's
	// worth, have none.
	choiceRoute choice = "route"

	// choiceReturn ends queries of Tx and Conn at the RET of the method, single-stepped;
	// choiceRows at a place that queries of DB and Stmt pass as well, for nothing. Both are
	// right, also at once; which one is cheaper depends on how many there are.
	choiceReturn choice = "tx return"
	choiceRows   choice = "tx rows"
)

// while says for people when the hooks of a choice are attached; "": always.
func (c choice) while() string {
	switch c {
	case choiceRoute:
		return "while requests do not carry their route themselves"
	case choiceReturn:
		return "while queries of transactions and connections are few"
	case choiceRows:
		return "while queries of transactions and connections are many"
	}
	return ""
}

const (
	adaptEvery = time.Second
	routeProof = 10000 // ROUTE_COUNTED of bpf/nethttp.bpf.c

	// A single-stepped RET costs up to 12 µs under a hypervisor: at this many queries a
	// second, a hundredth of a CPU. Back well below, so that it does not swing.
	manyDirect = 1000
	fewDirect  = 300
)

// chosen tells whether hooks of a choice are to be attached.
func (b *executable) chosen(c choice) bool {
	b.adaptMu.Lock()
	defer b.adaptMu.Unlock()
	return !b.unchosen[c]
}

// choiceUsage is what the kernel counts of one binary.
type choiceUsage struct {
	routeSame, routeOther, routeMissing uint32
	directQueries                       uint64 // since the start
}

// adaptation decides for one binary what is attached.
type adaptation struct {
	routeNeeded bool
	lastDirect  uint64
}

// after says which choices to detach, given what is detached now.
func (a *adaptation) after(u choiceUsage, elapsed time.Duration, off map[choice]bool) map[choice]bool {
	next := map[choice]bool{}
	a.routeNeeded = a.routeNeeded || u.routeOther > 0 || u.routeMissing > 0 && off[choiceRoute]
	next[choiceRoute] = !a.routeNeeded && u.routeSame >= routeProof

	rate := float64(u.directQueries-a.lastDirect) / elapsed.Seconds()
	a.lastDirect = u.directQueries
	rows := !off[choiceRows]
	if rate > manyDirect {
		rows = true
	} else if rate < fewDirect {
		rows = false
	}
	next[choiceRows], next[choiceReturn] = !rows, rows
	return next
}

// adaptAll looks at what every binary's probes were good for.
func (t *targets) adaptAll(now time.Time) {
	elapsed := now.Sub(t.adaptedAt)
	if elapsed < adaptEvery {
		return
	}
	t.adaptedAt = now
	t.mu.RLock()
	var all []*attached
	for _, a := range t.byFile {
		if a.binary != nil {
			all = append(all, a)
		}
	}
	t.mu.RUnlock()
	for _, a := range all {
		if err := t.adapt(a, elapsed); err != nil {
			t.log.Warn("probes stay as they are", "exe", a.path, "error", err)
		}
	}
}

func (t *targets) adapt(a *attached, elapsed time.Duration) error {
	u, err := t.kernel.usage(a.binary.id)
	if err != nil {
		return err
	}
	b := a.binary
	b.adaptMu.Lock()
	before := b.unchosen
	next := a.adaptation.after(u, elapsed, before)
	changed := false
	for c, off := range next {
		changed = changed || off != before[c]
	}
	b.unchosen = next
	b.adaptMu.Unlock()
	if !changed {
		return nil
	}
	t.log.Debug("probes follow what the program does", "exe", a.path, "detached", fmt.Sprint(next))
	t.changing.Lock()
	defer t.changing.Unlock()
	if t.isDetached() {
		return nil
	}
	t.mu.RLock()
	given := a.given
	t.mu.RUnlock()
	return t.put(a, given)
}

// usage reads the counts of a binary.
func (k *kernel) usage(id uint32) (u choiceUsage, err error) {
	var http bpf.AgentNethttpLayout
	var sql bpf.AgentSqlLayout
	if err := k.mapOf("nethttp_layouts").Lookup(id, &http); err != nil {
		return u, fmt.Errorf("read counts of net/http: %w", err)
	}
	if err := k.mapOf("sql_layouts").Lookup(id, &sql); err != nil {
		return u, fmt.Errorf("read counts of database/sql: %w", err)
	}
	return choiceUsage{http.RouteSame, http.RouteOther, http.RouteMissing, sql.DirectQueries}, nil
}
