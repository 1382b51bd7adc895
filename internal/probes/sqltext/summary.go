package sqltext

import "strings"

// maxSummary is the limit of the semantic conventions.
const maxSummary = 255

// operations are the words that a statement may begin with.
var operations = wordSet(`select insert update delete merge replace upsert create alter drop truncate grant revoke
	call exec execute begin commit rollback savepoint release start set show explain analyze vacuum copy lock unlock
	use pragma declare fetch close prepare deallocate discard listen notify unlisten do refresh reindex comment describe
	desc values table attach detach kill optimize rename load end abort reset cluster import export handler flush purge`)

// objects are what CREATE, ALTER and DROP work on; the words between the two
// are left out: CREATE UNIQUE INDEX is "CREATE INDEX".
var objects = wordSet(`table index view database schema function procedure trigger sequence type user role extension
	domain policy publication subscription server aggregate tablespace event package synonym operator rule statistics
	collation language cast conversion login stream warehouse stage dictionary keyspace`)

// fillers stand between a word that announces a target and the target.
var fillers = wordSet(`only lateral if not exists table into ignore low_priority quick delayed high_priority
	concurrently from as or recursive overwrite`)

// conflicts follow OR in SQLite's INSERT and UPDATE: INSERT OR REPLACE INTO t.
var conflicts = wordSet(`replace rollback abort fail`)

// level is the state inside one pair of parentheses.
type level struct {
	start  bool // a statement may begin here
	from   bool // FROM names tables here
	inFrom bool // a comma separates tables here
}

// summarizer collects operations and their targets in the order of the text.
type summarizer struct {
	tokens []token
	parts  []string
	levels []level
	target bool   // the next name is a target
	kind   bool   // after CREATE, ALTER, DROP: an object word comes
	with   bool   // inside WITH: names before AS ( are no tables
	op     string // the last operation, lower case
	ctes   map[string]bool
	size   int
	full   bool
}

// maxDepth bounds the parentheses that are kept track of.
const maxDepth = 64

func summarize(tokens []token) (summary, operation string) {
	s := &summarizer{tokens: tokens, levels: []level{{start: true}}}
	for i := next(tokens, -1); i < len(tokens) && !s.full; i = next(tokens, i) {
		switch t := tokens[i]; t.kind {
		case word:
			i = s.word(i)
		case quoted:
			if s.target {
				i = s.name(i)
			}
			s.top().start = false
		case punct:
			s.punct(t.text)
		default: // a literal or placeholder is never a target
			s.target, s.top().start = false, false
		}
	}
	if len(s.parts) == 0 {
		return "", ""
	}
	return strings.Join(s.parts, " "), s.parts[0]
}

func (s *summarizer) top() *level { return &s.levels[len(s.levels)-1] }

func (s *summarizer) add(part string) {
	if s.size+len(part)+1 > maxSummary+1 {
		s.full = true
		return
	}
	s.size += len(part) + 1
	s.parts = append(s.parts, part)
}

func (s *summarizer) punct(text string) {
	for _, c := range []byte(text) {
		switch c {
		case '(':
			s.target = false
			if len(s.levels) < maxDepth {
				s.levels = append(s.levels, level{start: true})
			}
		case ')':
			if len(s.levels) > 1 {
				s.levels = s.levels[:len(s.levels)-1]
			}
			if s.with && len(s.levels) == 1 {
				s.top().start = true // the statement that uses the WITH
			}
			s.target = false
		case ';':
			s.levels = append(s.levels[:0], level{start: true})
			s.target, s.with, s.kind, s.op = false, false, false, ""
		case ',':
			s.target = s.top().inFrom
		case '{': // {call p}
		default:
			s.target, s.top().start = false, false
		}
	}
}

// word handles the word at i and returns the index of the last token used.
func (s *summarizer) word(i int) int {
	text := s.tokens[i].text
	w := strings.ToLower(text)
	top := s.top()
	if w == "select" || top.start && operations[w] && s.opens(i, w) {
		s.operation(text, w)
		return i
	}
	if w == "with" && top.start {
		s.with = true
		return i
	}
	if s.with && len(s.levels) == 1 && s.cte(i, w) {
		return i
	}
	top.start = false
	switch {
	case s.kind:
		if objects[w] {
			s.add(text)
			s.kind, s.target = false, true
		}
	case s.keyword(i, w):
	case s.target:
		if fillers[w] || conflicts[w] && precededBy(s.tokens, i, "or") {
			return i
		}
		return s.name(i)
	}
	return i
}

// opens tells whether the operation word at i really begins a statement: in
// parentheses it may as well be a column or a function.
func (s *summarizer) opens(i int, w string) bool {
	n := next(s.tokens, i)
	following := ""
	if n < len(s.tokens) {
		following = strings.ToLower(s.tokens[n].text)
	}
	if len(s.levels) == 1 {
		return following != "(" || w == "values" || w == "explain" || w == "do" || w == "vacuum"
	}
	switch w {
	case "insert", "merge", "replace":
		return following == "into"
	case "delete":
		return following == "from"
	case "update":
		open := previous(s.tokens, i)
		return precededBy(s.tokens, open, "as") || precededBy(s.tokens, open, "materialized")
	}
	return false
}

func (s *summarizer) operation(text, w string) {
	s.add(text)
	s.op = w
	s.target = false
	top := s.top()
	*top = level{}
	switch w {
	case "select", "show", "fetch":
		top.from = true
	case "copy", "describe", "desc":
		s.target = true
	case "delete":
		top.from, s.target = true, true
	case "update", "insert", "replace", "merge", "upsert", "truncate", "call", "exec", "execute", "use", "pragma", "lock",
		"reindex", "table", "vacuum", "analyze", "optimize", "cluster":
		top.from, s.target = true, true
	case "create", "alter", "drop", "comment", "refresh", "rename":
		s.kind = true
	case "explain", "prepare":
		top.start = true
	}
}

// cte notes the names of WITH a AS (…), b AS (…). It returns false if the word
// is none.
func (s *summarizer) cte(i int, w string) bool {
	if w == "recursive" || w == "as" || w == "materialized" || w == "not" {
		return true
	}
	n := next(s.tokens, i)
	if n >= len(s.tokens) || !strings.EqualFold(s.tokens[n].text, "as") && s.tokens[n].text != "(" {
		return false
	}
	if s.ctes == nil {
		s.ctes = map[string]bool{}
	}
	if len(s.ctes) < maxDepth {
		s.ctes[w] = true
	}
	return true
}

// keyword handles the words inside a statement that announce or end targets.
func (s *summarizer) keyword(i int, w string) bool {
	top := s.top()
	switch w {
	case "from":
		if top.from && !precededBy(s.tokens, i, "distinct") {
			s.target, top.inFrom = true, true
		}
	case "join", "straight_join":
		s.target = true
	case "using":
		s.target = s.op == "merge" || s.op == "delete"
	case "into":
		s.target = s.op != "fetch"
	case "where", "group", "order", "having", "limit", "set", "values", "on", "union", "intersect", "except", "returning",
		"window", "for", "offset", "when", "default", "to", "with", "cross", "inner", "left", "right", "full", "natural":
		s.target = false
		top.inFrom = top.inFrom && (w == "on" || w == "cross" || w == "inner" || w == "left" || w == "right" || w == "full" || w == "natural")
		if w == "union" || w == "intersect" || w == "except" {
			top.start = true
		}
	default:
		return false
	}
	return true
}

// name adds the possibly qualified name at i and returns the index of its last
// token.
func (s *summarizer) name(i int) int {
	s.target = false
	var b strings.Builder
	b.WriteString(s.tokens[i].text)
	for i+1 < len(s.tokens) && b.Len() <= maxSummary {
		t := s.tokens[i+1]
		dotted := strings.HasSuffix(b.String(), ".")
		if t.text != "." && !(dotted && (t.kind == word || t.kind == quoted)) && !(t.kind == word && t.text[0] == '.') {
			break
		}
		b.WriteString(t.text)
		i++
	}
	if name := b.String(); !s.ctes[strings.ToLower(name)] {
		s.add(name)
	}
	return i
}
