package logtext

import (
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
)

// format is what the beginning of a line looks like.
type format uint8

const (
	formatPlain  format = iota
	formatJSON          // {"level":…
	formatKlog          // I0102 15:04:05.067890 4711 file.go:12] message
	formatStdlog        // 2006/01/02 15:04:05 message, with a prefix of the program or none
	formatISO           // 2006-01-02T15:04:05.000Z …, of zap's console and of hclog
	formatPairs         // time=… level=… msg=…
	formatShort         // INFO[0000] message, 3:04PM INF message, [INFO] message
)

// kindOf is classify for a line that may have colours.
func kindOf(line string) format {
	if strings.IndexByte(line, 0x1b) >= 0 {
		line = withoutColour(line)
	}
	return classify(line)
}

// classify tells by the first bytes of a line how a record begins with it. It
// is cheap: each line is asked twice.
func classify(s string) format {
	if s == "{" {
		return formatJSON
	}
	if len(s) < 3 {
		return formatPlain
	}
	switch c := s[0]; {
	case c == '{':
		return formatJSON
	case isDigit(c):
		return classifyDigit(s)
	case c == '[':
		if i := strings.IndexByte(s, ']'); i > 0 && severityOf(s[1:i]) != 0 {
			return formatShort
		}
	case isAlpha(c) || c == '"':
		if isKlog(s) {
			return formatKlog
		}
		if i := strings.IndexAny(s, "= "); i > 0 && s[i] == '=' {
			return formatPairs
		}
		if levelPrefix(s) > 0 {
			return formatShort
		}
	}
	if stdlogAt(s) >= 0 {
		return formatStdlog
	}
	return formatPlain
}

func classifyDigit(s string) format {
	if c, n := dateTime(s); n > 0 {
		if s[4] == '/' && !c.zoned {
			return formatStdlog
		}
		return formatISO
	}
	var c clock
	if n := c.timeOfDay(s); n > 0 && n < len(s) && s[n] == ' ' {
		return formatStdlog // flags without a date
	}
	if i := strings.IndexByte(s, '\t'); i > 9 && i < 32 && epochTime(s[:i]) != 0 {
		return formatISO // zap's console with epoch time
	}
	if kitchen(s) > 0 {
		return formatShort
	}
	return formatPlain
}

// isKlog recognises Lmmdd hh:mm:ss.
func isKlog(s string) bool {
	return len(s) > 21 && oneLetter(s[:1]) != 0 && s[5] == ' ' && s[8] == ':' && s[11] == ':' &&
		digits(s, 1, 4) > 100 && digits(s, 6, 2) >= 0
}

// stdlogAt finds the date of package log after a short prefix; -1 if there is
// none.
func stdlogAt(s string) int {
	const maxPrefix = 40
	for i := 1; i < maxPrefix && i+19 <= len(s); i++ {
		if s[i+4] == '/' && isDigit(s[i]) && s[i+7] == '/' && !isDigit(s[i-1]) {
			if _, n := dateTime(s[i:]); n > 0 {
				return i
			}
		}
	}
	return -1
}

// kitchen measures the time of zerolog's console, "3:04PM ".
func kitchen(s string) int {
	i := strings.IndexByte(s[:min(len(s), 8)], ' ')
	if i < 6 || s[i-1] != 'M' || s[i-2] != 'A' && s[i-2] != 'P' || s[i-5] != ':' || digits(s, i-4, 2) < 0 {
		return 0
	}
	return i + 1
}

// levelPrefix measures "INFO[0000] " of logrus, "INFO: " and "INFO " at the
// start of s; the level must be in capitals, for "error: x" is how command
// line tools talk.
func levelPrefix(s string) int {
	i := 0
	for i < len(s) && i < 10 && s[i] >= 'A' && s[i] <= 'Z' {
		i++
	}
	if i < 3 || i >= len(s) || severityOf(s[:i]) == 0 {
		return 0
	}
	switch s[i] {
	case '[':
		if j := strings.IndexByte(s[i:min(len(s), i+32)], ']'); j > 0 {
			return i
		}
	case ':', ' ', '\t', '+', '-':
		return i
	}
	return 0
}

func (r *record) klog(first, rest string) {
	var c clock
	c.month, c.day = digits(first, 1, 2), digits(first, 3, 2)
	n := c.timeOfDay(first[6:])
	end := strings.Index(first, "] ")
	if c.month < 1 || c.month > 12 || c.day < 1 || c.day > 31 || n == 0 || end < 6+n {
		return
	}
	r.time = c.unixNano(r.observed)
	r.sevText, r.sev = first[:1], oneLetter(first[:1])
	fields := strings.Fields(first[6+n : end]) // thread and place
	if len(fields) > 0 {
		if file, line := fileLine(fields[len(fields)-1]); line > 0 {
			r.file, r.line = file, line
		}
	}
	msg := first[end+2:]
	if strings.HasPrefix(msg, `"`) { // structured: "message" key="value"
		text, n := quotedText(msg)
		if tail := strings.TrimLeft(msg[n:], " "); n > 0 && r.allPairs(tail) {
			r.message(text)
			r.more(r.klogData(rest))
			return
		}
	}
	r.message(msg)
	r.more(rest)
}

// klogData takes the value of several lines that the last pair announced with
// "<": indented by a tab, and closed by " >".
func (r *record) klogData(rest string) string {
	last := len(r.attrs) - 1
	end := strings.Index(rest, "\n >")
	if last < 0 || end < 0 || r.attrs[last].Value.AsString() != "<" || !strings.HasPrefix(rest, "\t") {
		return rest
	}
	value := strings.ReplaceAll(rest[1:end], "\n\t", "\n")
	r.attrs[last].Value = attribute.StringValue(value)
	return strings.TrimPrefix(rest[end+len("\n >"):], "\n")
}

// allPairs takes the pairs of s if it holds nothing else.
func (r *record) allPairs(s string) bool {
	for rest := s; rest != ""; {
		_, after, ok := nextPair(rest)
		if !ok {
			return false
		}
		rest = after
	}
	r.takePairs(s)
	return true
}

func (r *record) takePairs(s string) {
	for s != "" {
		p, after, ok := nextPair(s)
		if !ok {
			return
		}
		r.pair(p)
		s = after
	}
}

func (r *record) stdlog(first, rest string) {
	prefix := ""
	if !isDigit(first[0]) {
		i := max(stdlogAt(first), 0)
		prefix, first = first[:i], first[i:]
	}
	c, n := dateTime(first)
	if n == 0 {
		if n = c.timeOfDay(first); n == 0 {
			return
		}
	}
	r.time = c.unixNano(r.observed)
	msg := strings.TrimPrefix(first[n:], " ")
	msg = r.place(msg, ": ") // log.Lshortfile
	r.std = prefix == ""
	r.leveled(msg)
	if prefix != "" {
		if sev := severityOf(strings.Trim(prefix, " []:<>")); sev != 0 && r.sev == 0 {
			r.sev, r.sevText = sev, strings.Trim(prefix, " []:<>")
		} else {
			r.body = prefix + r.body
		}
	}
	r.more(rest)
}

// servedPanic recognises the handler panic that net/http recovered and logged.
func (r *record) servedPanic() {
	after, ok := strings.CutPrefix(r.body, "http: panic serving ")
	if !ok {
		return
	}
	_, msg, ok := strings.Cut(after, ": ")
	if !ok {
		return
	}
	if r.sev == 0 {
		r.sev = log.SeverityError1
	}
	r.err, r.errType = msg, panicType(msg)
}

// leveled takes a message that may begin with a level: "[INFO] x", "INFO x"
// of log/slog's default handler, "INFO: x"; and end with pairs, if it does.
func (r *record) leveled(msg string) {
	if level, after, ok := bracketLevel(msg); ok {
		r.sev, r.sevText = severityOf(level), level
		r.withPairs(r.place(strings.TrimLeft(after, " "), ": ")) // hclog may say where
		return
	}
	n := levelPrefix(msg)
	if n == 0 {
		r.message(msg)
		return
	}
	word := msg[:n]
	if c := msg[n]; c == '+' || c == '-' {
		end := strings.IndexByte(msg, ' ')
		if end < 0 || severityOf(msg[:end]) == 0 {
			r.message(msg)
			return
		}
		word, n = msg[:end], end
	}
	r.sev, r.sevText = severityOf(word), word
	after := strings.TrimPrefix(msg[n:], ":")
	if strings.HasPrefix(after, "[") { // seconds since the start, of logrus
		if i := strings.IndexByte(after, ']'); i > 0 {
			after = r.place(after[i+1:], " ")
			if f, msg, ok := strings.Cut(after, "() "); ok && r.file != "" && !strings.Contains(f, " ") {
				r.function, after = f, msg
			}
		}
	}
	r.withPairs(strings.TrimLeft(after, " \t"))
}

// place takes the place in the code before the separator, if msg begins with
// one, and returns the rest.
func (r *record) place(msg, separator string) string {
	if at, after, ok := strings.Cut(msg, separator); ok {
		if file, line := fileLine(at); line > 0 {
			r.file, r.line = file, line
			return after
		}
	}
	return msg
}

func bracketLevel(msg string) (level, after string, ok bool) {
	if !strings.HasPrefix(msg, "[") {
		return "", "", false
	}
	i := strings.IndexByte(msg[:min(len(msg), 12)], ']')
	if i < 2 || severityOf(strings.TrimSpace(msg[1:i])) == 0 {
		return "", "", false
	}
	return strings.TrimSpace(msg[1:i]), msg[i+1:], true
}

// withPairs takes "message key=value".
func (r *record) withPairs(s string) {
	if !strings.Contains(s, "=") {
		r.message(s)
		return
	}
	message, pairs := trailingPairs(s)
	// The message first: a pair may be called so too.
	r.message(strings.TrimSuffix(strings.TrimRight(message, " "), ":")) // hclog: "message: key=value"
	r.takePairs(pairs)
}

func (r *record) short(first, rest string) {
	if n := kitchen(first); n > 0 {
		r.zerolog(first[n:])
	} else {
		r.leveled(first)
	}
	r.more(rest)
}

// zerolog takes the rest of a line of zerolog's console, after the time:
// "INF file.go:12 > message key=value".
func (r *record) zerolog(s string) {
	level, after, _ := strings.Cut(s, " ")
	if sev := severityOf(level); sev != 0 {
		r.sev, r.sevText = sev, level
	} else if level != "???" { // a record without level
		r.message(s)
		return
	}
	r.withPairs(r.place(after, " > "))
}

// console takes a line that begins with a full date: of zap's console, whose
// columns are separated by tabs, of hclog, or of zerolog's console.
func (r *record) console(first, rest string) {
	c, n := dateTime(first)
	if n > 0 {
		r.time = c.unixNano(r.observed)
	} else if n = strings.IndexByte(first, '\t'); n > 0 {
		r.time = epochTime(first[:n])
	}
	if n < 0 || n >= len(first) || first[n] != ' ' && first[n] != '\t' {
		r.time = 0
		return
	}
	if first[n] == ' ' {
		after := strings.TrimLeft(first[n:], " ")
		if level, _, _ := strings.Cut(after, " "); len(level) == 3 && severityOf(level) != 0 {
			r.zerolog(after)
		} else {
			r.leveled(after)
		}
		r.more(rest)
		return
	}
	r.columns(strings.Split(first[n+1:], "\t"))
	r.more(rest)
}

// columns takes the columns of zap's console after the time: level, name of
// the logger, place, message, fields as JSON; all but the message optional.
func (r *record) columns(cols []string) {
	if sev := severityOf(cols[0]); sev != 0 {
		r.sev, r.sevText = sev, cols[0]
		cols = cols[1:]
	}
	for i := 0; i < 2 && i < len(cols)-1; i++ {
		file, line := fileLine(cols[i])
		if line == 0 {
			continue
		}
		r.file, r.line = file, line
		if i == 1 {
			r.put(attribute.String("logger", cols[0]))
		}
		cols = cols[i+1:]
		break
	}
	if last := len(cols) - 1; last >= 1 && strings.HasPrefix(cols[last], "{") {
		r.message(strings.Join(cols[:last], "\t"))
		saved := *r
		j := jsonReader{s: cols[last]}
		if j.object(0, r.field) && j.i == len(j.s) {
			return
		}
		*r = saved
	}
	r.message(strings.Join(cols, "\t"))
}
