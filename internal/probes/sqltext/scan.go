package sqltext

import (
	"strings"

	"github.com/DataDog/go-sqllexer"
)

type kind uint8

const (
	space   kind = iota
	word         // bare identifier or keyword, "a.b" in one piece
	quoted       // quoted identifier
	literal      // string, number, boolean; also what the end of the text cut
	comment
	param // placeholder
	punct // one or more operator or punctuation characters
)

type token struct {
	kind kind
	text string
}

// scanner cuts a text into tokens whose texts, put together, are the text.
type scanner struct {
	d   *dialect
	src string
	out []token
	pos int // end of the last token, start of the stretch that the lexer library reads
	// wordStart is where the word begins that the byte looked at continues, or
	// -1.
	wordStart int
}

// scan cuts text into tokens, in time proportional to its length.
func scan(text string, d *dialect) []token {
	s := &scanner{d: d, src: text, out: make([]token, 0, 16+len(text)/4), wordStart: -1}
	for i := 0; i < len(text); {
		n, k := s.opaque(i)
		if n == 0 {
			if !isWordByte(text[i]) {
				s.wordStart = -1
			} else if s.wordStart < 0 {
				s.wordStart = i
			}
			i++
			continue
		}
		s.flush(i)
		s.emit(k, n)
		s.wordStart = -1
		i += n
	}
	s.flush(len(text))
	return s.out
}

// emit adds the next n bytes as a token. Pieces of one literal are joined: the
// letters before a string (N'…', _utf8'…') and what sticks to a number
// (1_000, 0b11).
func (s *scanner) emit(k kind, n int) {
	text := s.src[s.pos : s.pos+n]
	start := s.pos
	s.pos += n
	if last := len(s.out) - 1; last >= 0 {
		prev := s.out[last]
		switch {
		case k == literal && isQuote(text[0]) && prev.kind == word && isStringPrefix(prev.text):
			s.out = s.out[:last]
			start -= len(prev.text)
		case k == literal && isQuote(text[0]) && last > 0 && prev.text == "&" && strings.EqualFold(s.out[last-1].text, "u"):
			s.out = s.out[:last-1]
			start -= 2
		case (k == word || k == literal) && prev.kind == literal && isDigit(prev.text[0]) && (isWordByte(text[0]) || text[0] == '.'):
			s.out = s.out[:last]
			start -= len(prev.text)
			k = literal
		}
	}
	s.out = append(s.out, token{k, s.src[start:s.pos]})
}

// isStringPrefix tells whether w, touching a quote, is part of the string.
func isStringPrefix(w string) bool {
	if w[0] == '_' {
		return true // character set of MySQL
	}
	switch strings.ToLower(w) {
	case "e", "n", "b", "x", "q", "nq", "r", "rb", "br":
		return true
	}
	return false
}

// opaque measures the string, comment, quoted identifier or other piece at i
// that the library must not see; 0 if there is none.
func (s *scanner) opaque(i int) (int, kind) {
	switch s.src[i] {
	case 0: // the library takes it for the end
		return 1, punct
	case '\'':
		return s.quote(i)
	case '"':
		return s.doubleQuoted(i)
	case '`':
		return s.identifier(i, '`')
	case '[':
		if s.d.brackets {
			return s.identifier(i, ']')
		}
	case '-':
		return s.dash(i)
	case '#':
		if s.d.hashComment {
			return s.lineComment(i), comment
		}
		if s.d.brackets && s.wordStart < 0 { // temporary table of SQL Server
			return s.hashName(i), word
		}
	case '/':
		if s.at(i+1) == '*' {
			return s.blockComment(i), comment
		}
	case '$':
		return s.dollar(i)
	}
	return 0, 0
}

func (s *scanner) at(i int) byte {
	if i < len(s.src) {
		return s.src[i]
	}
	return 0
}

// dash measures a line comment; a "--" that is none in this dialect is two
// operators, and kept from the library, for which it always begins a comment.
func (s *scanner) dash(i int) (int, kind) {
	if s.at(i+1) != '-' {
		return 0, 0
	}
	if s.d.dashNeedsGap && i+2 < len(s.src) && s.src[i+2] > ' ' {
		return 1, punct
	}
	return s.lineComment(i), comment
}

func (s *scanner) hashName(i int) int {
	j := i + 1
	for s.at(j) == '#' || isWordByte(s.at(j)) {
		j++
	}
	return j - i
}

func (s *scanner) lineComment(i int) int {
	if n := strings.IndexByte(s.src[i:], '\n'); n >= 0 {
		return n
	}
	return len(s.src) - i
}

func (s *scanner) blockComment(i int) int {
	depth := 1
	for j := i + 2; j < len(s.src); j++ {
		switch {
		case s.src[j] == '*' && s.at(j+1) == '/':
			depth--
			j++
			if depth == 0 {
				return j + 1 - i
			}
		case s.d.nested && s.src[j] == '/' && s.at(j+1) == '*':
			depth++
			j++
		}
	}
	return len(s.src) - i
}

// identifier measures an identifier that ends with the byte end, doubled
// inside. One without an end is taken for data.
func (s *scanner) identifier(i int, end byte) (int, kind) {
	for j := i + 1; j < len(s.src); j++ {
		if s.src[j] != end {
			continue
		}
		if s.at(j+1) == end {
			j++
			continue
		}
		return j + 1 - i, quoted
	}
	return len(s.src) - i, literal
}

// quote measures the string at i, which the letters before i may change.
func (s *scanner) quote(i int) (int, kind) {
	prefix := s.prefix(i)
	if s.d.altQuote && (strings.EqualFold(prefix, "q") || strings.EqualFold(prefix, "nq")) {
		return s.altQuote(i), literal
	}
	if s.d.tripleQuote && strings.HasPrefix(s.src[i:], "'''") {
		return s.triple(i), literal
	}
	backslash := s.d.backslash || s.d.escapeStrings && strings.EqualFold(prefix, "e")
	return s.stringEnd(i, backslash), literal
}

// prefix returns the word that touches the quote at i.
func (s *scanner) prefix(i int) string {
	if s.wordStart < 0 {
		return ""
	}
	return s.src[s.wordStart:i]
}

func (s *scanner) stringEnd(i int, backslash bool) int {
	q := s.src[i]
	for j := i + 1; j < len(s.src); j++ {
		switch s.src[j] {
		case '\\':
			if backslash {
				j++
			} else if s.d.backslashUnknown && s.at(j+1) == q {
				return len(s.src) - i // nobody can say what follows
			}
		case q:
			if s.at(j+1) != q {
				return j + 1 - i
			}
			j++
		}
	}
	return len(s.src) - i
}

// altQuote measures the rest of q'[ … ]' from its quote on.
func (s *scanner) altQuote(i int) int {
	open := s.at(i + 1)
	end := open
	if k := strings.IndexByte("[{(<", open); k >= 0 && open != 0 {
		end = "]})>"[k]
	}
	for j := i + 2; j+1 < len(s.src); j++ {
		if s.src[j] == end && s.src[j+1] == '\'' {
			return j + 2 - i
		}
	}
	return len(s.src) - i
}

func (s *scanner) triple(i int) int {
	mark := s.src[i : i+3]
	for j := i + 3; j < len(s.src); j++ {
		if s.src[j] == '\\' {
			j++
		} else if strings.HasPrefix(s.src[j:], mark) {
			return j + 3 - i
		}
	}
	return len(s.src) - i
}

func (s *scanner) doubleQuoted(i int) (int, kind) {
	switch s.d.doubleQuote {
	case quotesString:
		if s.d.tripleQuote && strings.HasPrefix(s.src[i:], `"""`) {
			return s.triple(i), literal
		}
		return s.stringEnd(i, s.d.backslash), literal
	case quotesEither:
		n, k := s.identifier(i, '"')
		if s.d.backslashUnknown && strings.Contains(s.src[i:i+n], `\"`) {
			return len(s.src) - i, literal // as in stringEnd
		}
		s.flush(i)
		if k == quoted && !s.qualifies(i+n) && !namePlace(s.out) {
			k = literal
		}
		return n, k
	}
	return s.identifier(i, '"')
}

// qualifies tells whether a "." and a name follow at i.
func (s *scanner) qualifies(i int) bool {
	c := s.at(i + 1)
	return s.at(i) == '.' && (isWordByte(c) && !isDigit(c) || c == '"' || c == '`' || c == '[' || c == '*')
}

// dollar measures a dollar-quoted string or a placeholder. A '$' that is
// neither is a token of its own: the library would search for its end.
func (s *scanner) dollar(i int) (int, kind) {
	if s.wordStart >= 0 && !isDigit(s.src[s.wordStart]) {
		return 0, 0 // inside a word
	}
	j := i + 1
	if isDigit(s.at(j)) {
		for isDigit(s.at(j)) {
			j++
		}
		if s.d.dollarParam && j-i <= 6 {
			return j - i, param
		}
		for isWordByte(s.at(j)) || s.at(j) == '.' { // money, $12.50
			j++
		}
		return j - i, literal
	}
	for isWordByte(s.at(j)) && s.at(j) != '$' {
		j++
	}
	if s.d.dollarQuote && s.at(j) == '$' {
		tag := s.src[i : j+1]
		if end := strings.Index(s.src[j+1:], tag); end >= 0 {
			return j + 1 - i + end + len(tag), literal
		}
		return len(s.src) - i, literal
	}
	if j == i+1 {
		return 1, punct
	}
	return j - i, word // $name
}

// flush hands the stretch from s.pos up to end to the lexer library.
func (s *scanner) flush(end int) {
	if s.pos >= end {
		return
	}
	lexer := sqllexer.New(s.src[s.pos:end])
	for s.pos < end {
		t := lexer.Scan()
		n := len(t.Value)
		if n == 0 || s.pos+n > end || t.Value != s.src[s.pos:s.pos+n] {
			s.pieces(end) // the library skipped something: go without it
			return
		}
		switch t.Type {
		case sqllexer.SPACE:
			s.emit(space, n)
		case sqllexer.NUMBER:
			if c := t.Value[0]; n > 1 && (c == '-' || c == '+') {
				s.emit(punct, 1)
				n--
			}
			s.emit(literal, n)
		case sqllexer.BOOLEAN:
			s.emit(literal, n)
		case sqllexer.BIND_PARAMETER, sqllexer.SYSTEM_VARIABLE, sqllexer.POSITIONAL_PARAMETER:
			s.emit(param, n)
		case sqllexer.OPERATOR, sqllexer.PUNCTUATION, sqllexer.WILDCARD, sqllexer.JSON_OP, sqllexer.UNKNOWN:
			s.emit(punct, n)
		default:
			s.pieces(s.pos + n)
		}
	}
}

// pieces cuts the text up to end by hand: the library takes "price/100" for
// one identifier.
func (s *scanner) pieces(end int) {
	for s.pos < end {
		c, j := s.src[s.pos], s.pos+1
		switch {
		case c <= ' ':
			for j < end && s.src[j] <= ' ' {
				j++
			}
			s.emit(space, j-s.pos)
		case isDigit(c):
			for j < end && isWordByte(s.src[j]) {
				j++
			}
			s.emit(literal, j-s.pos)
		case isWordByte(c) || c == '#' || c == '@':
			for j < end && (isWordByte(s.src[j]) || s.src[j] == '#' || s.src[j] == '@' ||
				s.src[j] == '.' && j+1 < end && !isDigit(s.src[j+1])) {
				j++
			}
			s.emit(word, j-s.pos)
		default:
			s.emit(punct, 1)
		}
	}
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isQuote(c byte) bool { return c == '\'' || c == '"' }

func isWordByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || isDigit(c) || c == '_' || c == '$' || c >= 0x80
}
