package logtext

import "strings"

// continues tells whether line belongs to the record that its writer began
// with the text held. sameWrite says that both came in one write.
func continues(held string, kind format, line string, sameWrite bool) bool {
	if line == "" {
		// An empty line is part of a stack trace or of nothing; the end of a
		// record is trimmed.
		return kind != formatJSON && (sameWrite || isCrashStart(held))
	}
	switch line[0] {
	case ' ', '\t':
		return kind != formatJSON || !strings.HasSuffix(held, "}")
	case '}', ']', ')':
		return isClosing(line) && (strings.Contains(held, "\n") || strings.HasSuffix(held, "{") || strings.HasSuffix(held, "[") || strings.HasSuffix(held, "("))
	}
	if isCrashStart(held) && crashGoesOn(line) {
		return true
	}
	if kind == formatJSON {
		return false
	}
	last := held[strings.LastIndexByte(held, '\n')+1:]
	if isStackLine(line, last) {
		return true
	}
	// The rest of a message with line breaks comes in the same write. A line
	// with a beginning of its own is a record of its own, from a buffered
	// writer.
	return sameWrite && kind != formatPlain && kindOf(line) == formatPlain
}

// isClosing tells whether the line holds nothing but closing brackets.
func isClosing(line string) bool {
	return strings.Trim(line, "}]),; ") == ""
}

// isStackLine tells whether line goes on with the stack trace that last is a
// line of.
func isStackLine(line, last string) bool {
	switch {
	case strings.HasPrefix(last, "goroutine ") && strings.HasSuffix(last, ":"):
		return true // the function on top
	case strings.HasPrefix(last, "\t") || last == "":
		// After a place: the caller, or another goroutine. Between goroutines
		// stands an empty line.
		return isFunctionLine(line) || strings.HasPrefix(line, "goroutine ") || strings.HasPrefix(line, "created by ") || strings.HasPrefix(line, "...")
	}
	return false
}

// isFunctionLine tells whether a line of a stack trace names a function:
// "main.(*T).f(0x1, …)" or "main.f", "created by main.f in goroutine 1".
func isFunctionLine(s string) bool {
	s = strings.TrimPrefix(s, "created by ")
	if i := strings.Index(s, " in goroutine "); i > 0 {
		s = s[:i]
	}
	name := s
	if strings.HasSuffix(s, ")") {
		if i := strings.LastIndexByte(s, '('); i > 0 {
			name = s[:i]
		}
	}
	if len(name) > 512 || !strings.Contains(name, ".") {
		return name == "panic"
	}
	for _, c := range []byte(name) {
		if !isWord(c) && c < 0x80 && strings.IndexByte("./*()-[]{}·~%, ", c) < 0 {
			return false
		}
	}
	// A sentence has a space where a name has none.
	return !strings.Contains(name, " ") || strings.Contains(name, "[") && !strings.Contains(name[:strings.IndexByte(name, '[')], " ")
}
