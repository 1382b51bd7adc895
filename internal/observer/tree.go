package observer

import (
	"cmp"
	"slices"
	"time"

	"go.opentelemetry.io/otel/trace"
)

// tree is what is known of one trace. A trace whose spans have not all arrived,
// or whose root is in another place, has several roots.
type tree struct {
	id    trace.TraceID
	roots []*node
	logs  []Log // of spans that are not here
}

// node is a span with what belongs under it, each in order of time.
type node struct {
	span     Span
	children []*node
	logs     []Log
}

// buildTree joins the spans and log records of one trace. Nothing is lost: a
// span without its parent becomes a root, and so does one of a circle.
func buildTree(id trace.TraceID, spans []Span, logs []Log) tree {
	t := tree{id: id}
	nodes := make([]*node, len(spans))
	byID := make(map[trace.SpanID]*node, len(spans))
	for i, s := range spans {
		nodes[i] = &node{span: s}
		if byID[s.SpanID] == nil { // a span may arrive twice: its first copy has the children
			byID[s.SpanID] = nodes[i]
		}
	}
	slices.SortStableFunc(nodes, func(a, b *node) int { return a.span.Start.Compare(b.span.Start) })
	for _, n := range nodes {
		if parent := byID[n.span.ParentID]; parent != nil && !descends(parent, n, byID) {
			parent.children = append(parent.children, n)
		} else {
			t.roots = append(t.roots, n)
		}
	}
	logs = slices.Clone(logs)
	slices.SortStableFunc(logs, func(a, b Log) int { return a.when().Compare(b.when()) })
	for _, l := range logs {
		if n := byID[l.SpanID]; n != nil {
			n.logs = append(n.logs, l)
		} else {
			t.logs = append(t.logs, l)
		}
	}
	return t
}

// descends tells whether from is n or hangs below it, by the parent ids. The
// walk is bounded, for ids can make any circle; a chain that is deeper counts as
// one.
func descends(from, n *node, byID map[trace.SpanID]*node) bool {
	for range 256 {
		if from == n {
			return true
		}
		up := byID[from.span.ParentID]
		if up == nil {
			return false
		}
		from = up
	}
	return true
}

// start is when the trace's first span or record began.
func (t tree) start() time.Time {
	var first time.Time
	earlier := func(at time.Time) {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	for _, r := range t.roots {
		earlier(r.span.Start)
	}
	for _, l := range t.logs {
		earlier(l.when())
	}
	return first
}

// service is the service that the trace is shown under: that of its first part.
func (t tree) service() string {
	if len(t.roots) > 0 {
		return t.roots[0].span.Service()
	}
	return t.logs[0].Service()
}

// item is one thing that stands under a span: a child, a record or an event.
type item struct {
	at    time.Time
	child *node
	log   *Log
	event *Event
}

// items returns what stands under a span, in order of time.
func (n *node) items() []item {
	out := make([]item, 0, len(n.children)+len(n.logs)+len(n.span.Events))
	for _, c := range n.children {
		out = append(out, item{at: c.span.Start, child: c})
	}
	for i := range n.logs {
		out = append(out, item{at: n.logs[i].when(), log: &n.logs[i]})
	}
	for i := range n.span.Events {
		out = append(out, item{at: n.span.Events[i].Time, event: &n.span.Events[i]})
	}
	slices.SortStableFunc(out, func(a, b item) int { return a.at.Compare(b.at) })
	return out
}

// width is the longest title in the tree, each counted with its indent.
func (n *node) width(indent int, parentService string) int {
	w := indent + len([]rune(clean(n.title(parentService), maxName)))
	for _, c := range n.children {
		w = max(w, c.width(indent+3, n.span.Service()))
	}
	return w
}

// title is the span's name, with the service where it is not the parent's.
func (n *node) title(parentService string) string {
	if s := n.span.Service(); s != "" && s != parentService {
		return s + ": " + n.span.Name
	}
	return n.span.Name
}

func byStart(a, b tree) int {
	return cmp.Or(a.start().Compare(b.start()), slices.Compare(a.id[:], b.id[:]))
}
