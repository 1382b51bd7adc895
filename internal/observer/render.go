package observer

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Limits of what is shown of one item, in characters.
const (
	maxName   = 48
	maxDetail = 160
	// maxNested bounds how deep a tree is drawn.
	maxNested = 40
)

// paint is a terminal style (SGR parameters).
type paint string

const (
	faint  paint = "2"
	bold   paint = "1"
	red    paint = "31"
	green  paint = "32"
	yellow paint = "33"
	cyan   paint = "36"
)

// renderer writes traces, records and points as text. Everything that came over
// the wire passes [clean], so that it cannot steer the terminal.
type renderer struct {
	b      strings.Builder
	colour bool
	utc    bool // for tests; else times are local
}

func (r *renderer) in(p paint, text string) string {
	if !r.colour || p == "" || text == "" {
		return text
	}
	return "\x1b[" + string(p) + "m" + text + "\x1b[0m"
}

func (r *renderer) clock(t time.Time) string {
	if r.utc {
		t = t.UTC()
	}
	return t.Format("15:04:05.000")
}

// tree writes one trace: a head line, then its spans.
func (r *renderer) tree(t tree) {
	service, width := t.service(), 0
	for _, n := range t.roots {
		width = max(width, n.width(0, service))
	}
	fmt.Fprintf(&r.b, "%s  %s  %s\n", r.in(faint, r.clock(t.start())), r.in(cyan, clean(cmp.Or(service, "unknown service"), maxName)), r.in(faint, t.id.String()))
	for _, n := range t.roots {
		r.span(n, "  ", "  ", 2+min(width, maxName+12), service, 0)
	}
	for i := range t.logs {
		fmt.Fprintf(&r.b, "  %s\n", r.logLine(&t.logs[i]))
	}
}

// span writes a span's line behind first, and what stands under it behind rest.
func (r *renderer) span(n *node, first, rest string, column int, service string, depth int) {
	title := clean(n.title(service), maxName)
	pad := strings.Repeat(" ", max(column-len([]rune(first))-len([]rune(title)), 0))
	style := bold
	if n.span.Status == codes.Error {
		style = red
	}
	line := fmt.Sprintf("%s%s%s  %s  %s", r.in(faint, first), r.in(style, title), pad,
		r.in(faint, fmt.Sprintf("%8s", duration(n.span.Duration()))), r.detail(n.span))
	r.b.WriteString(strings.TrimRight(line, " ") + "\n")
	if depth >= maxNested {
		return
	}
	items := n.items()
	for i, it := range items {
		branch, below := "├─ ", "│  "
		if i == len(items)-1 {
			branch, below = "└─ ", "   "
		}
		switch {
		case it.child != nil:
			r.span(it.child, rest+branch, rest+below, column, n.span.Service(), depth+1)
		case it.log != nil:
			fmt.Fprintf(&r.b, "%s%s\n", r.in(faint, rest+branch), r.logLine(it.log))
		default:
			fmt.Fprintf(&r.b, "%s%s\n", r.in(faint, rest+branch), r.eventLine(it.event))
		}
	}
}

// detail is what one wants to know of a span at a glance.
func (r *renderer) detail(s Span) string {
	var parts []string
	add := func(p paint, text string) {
		if text = clean(text, maxDetail); text != "" {
			parts = append(parts, r.in(p, text))
		}
	}
	status, problem := s.Attrs.Text("http.response.status_code"), s.Attrs.Text("error.type")
	statusPaint := green
	if status >= "4" {
		statusPaint = yellow
	}
	if s.Status == codes.Error {
		statusPaint = red
	}
	switch {
	case s.Attrs.Text("db.system.name") != "":
		add(faint, s.Attrs.Text("db.system.name"))
		add("", s.Attrs.Text("db.query.text"))
	case s.Attrs.Text("http.request.method") != "":
		add(statusPaint, status)
		add("", target(s))
	case s.Attrs.Text("rpc.system.name") != "":
		add(statusPaint, s.Attrs.Text("rpc.response.status_code"))
	default:
		add("", keyValues(s.Attrs, 4))
	}
	if problem != status {
		add(red, problem)
	}
	if s.StatusMessage != problem {
		add(red, s.StatusMessage)
	}
	return strings.Join(parts, "  ")
}

// target is what the request asked for: the URL of a client, the path and query
// of a server.
func target(s Span) string {
	if s.Kind == trace.SpanKindClient {
		return s.Attrs.Text("url.full")
	}
	if q := s.Attrs.Text("url.query"); q != "" {
		return s.Attrs.Text("url.path") + "?" + q
	}
	return s.Attrs.Text("url.path")
}

func (r *renderer) logLine(l *Log) string {
	name, style := "LOG", faint
	switch n := l.Severity; {
	case n >= 21:
		name, style = "FATAL", red
	case n >= 17:
		name, style = "ERROR", red
	case n >= 13:
		name, style = "WARN", yellow
	case n >= 9:
		name, style = "INFO", green
	case n >= 5:
		name = "DEBUG"
	case n >= 1:
		name = "TRACE"
	}
	line := r.in(style, name) + " " + clean(textOf(l.Body), maxDetail)
	attrs := maps.Clone(l.Attrs)
	delete(attrs, "log.iostream") // standard error, of all of them
	if kv := keyValues(attrs, 6); kv != "" {
		line += "  " + r.in(faint, clean(kv, maxDetail))
	}
	return line
}

func (r *renderer) eventLine(e *Event) string {
	if e.Name == "exception" {
		return r.in(red, clean(e.Attrs.Text("exception.type")+": "+e.Attrs.Text("exception.message"), maxDetail))
	}
	return clean(e.Name+" "+keyValues(e.Attrs, 4), maxDetail)
}

// looseLog writes a record that belongs to no trace.
func (r *renderer) looseLog(l *Log) {
	fmt.Fprintf(&r.b, "%s  %s  %s\n", r.in(faint, r.clock(l.when())), r.in(cyan, clean(l.Service(), maxName)), r.logLine(l))
}

// point writes one metric point.
func (r *renderer) point(p *Point) {
	fmt.Fprintf(&r.b, "%s  %s  %s  ", r.in(faint, r.clock(p.End)), r.in(cyan, clean(p.Service(), maxName)), r.in(bold, clean(p.Name, maxName)))
	if kv := keyValues(p.Attrs, 6); kv != "" {
		fmt.Fprintf(&r.b, "%s  ", clean(kv, maxDetail))
	}
	if p.Kind != HistogramPoint {
		fmt.Fprintf(&r.b, "%g %s\n", p.Value, clean(p.Unit, 16))
		return
	}
	mean := 0.0
	if p.Count > 0 {
		mean = p.Sum / float64(p.Count)
	}
	shown := fmt.Sprintf("%g %s", mean, clean(p.Unit, 16))
	if p.Unit == "s" {
		shown = duration(time.Duration(mean * float64(time.Second)))
	}
	fmt.Fprintf(&r.b, "%d, mean %s\n", p.Count, shown)
}

// keyValues lists up to n attributes, sorted by key.
func keyValues(a Attrs, n int) string {
	keys := make([]string, 0, len(a))
	for k := range a {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	more := ""
	if len(keys) > n {
		keys, more = keys[:n], " …"
	}
	for i, k := range keys {
		keys[i] = k + "=" + a.Text(k)
	}
	return strings.Join(keys, " ") + more
}

func textOf(v any) string { return Attrs{"": v}.Text("") }

func duration(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.2f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f s", d.Seconds())
}

// clean makes text from the wire safe and short: white space becomes one blank,
// other control and invisible characters a dot, and what is over limit is cut.
func clean(s string, limit int) string {
	var b strings.Builder
	n, blank := 0, false
	for _, c := range s {
		switch {
		case unicode.IsSpace(c):
			blank = n > 0
			continue
		case !unicode.IsPrint(c):
			c = '·'
		}
		if blank {
			b.WriteByte(' ')
			n++
			blank = false
		}
		if n >= limit {
			b.WriteRune('…')
			break
		}
		b.WriteRune(c)
		n++
	}
	return b.String()
}
