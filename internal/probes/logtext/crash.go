package logtext

import (
	"strings"

	"go.opentelemetry.io/otel/log"
)

// crashStarts begin what the runtime writes when it gives up. See
// printpanics, throw, fatal and sighandler in package runtime (Go 1.18–1.27).
var crashStarts = []string{"panic: ", "fatal error: ", "runtime: ", "unexpected fault address ", "SIG"}

// isCrashStart tells whether text may be the beginning of a crash.
func isCrashStart(text string) bool {
	if text == "" || strings.IndexByte("pfruS", text[0]) < 0 {
		return false
	}
	for _, p := range crashStarts {
		if strings.HasPrefix(text, p) {
			return p != "SIG" || isSignal(text)
		}
	}
	return false
}

// isCrashWord tells whether data is what the runtime writes first of all when
// it gives up: it writes each word by itself, which nobody else does.
func isCrashWord(data string) bool {
	return data == "panic: " || data == "fatal error: "
}

// crashGoesOn tells whether line can follow what begins as a crash does and
// has no stack yet. Once there is a stack, anything can.
func crashGoesOn(line string) bool {
	for _, p := range [...]string{"goroutine ", "[signal ", "PC=", "runtime stack:", "panic: ", "fatal error: ", "runtime: ", "runtime."} {
		if strings.HasPrefix(line, p) {
			return true
		}
	}
	return false
}

// startsStack tells whether the stacks of a crash begin with line.
func startsStack(line string) bool {
	return strings.HasPrefix(line, "goroutine ") || line == "runtime stack:" || strings.HasPrefix(line, "runtime.throw(")
}

// isSignal recognises "SIGSEGV: segmentation violation".
func isSignal(text string) bool {
	i := 3
	for i < len(text) && i < 12 && text[i] >= 'A' && text[i] <= 'Z' {
		i++
	}
	return i > 4 && strings.HasPrefix(text[i:], ": ")
}

// crash reads the runtime's last words. It returns false if the text is not
// that: a program may write "panic: " itself, and unless it is certain that
// it did not, there must be a stack.
func (r *record) crash(text string, certain bool) bool {
	stack := crashStack(text)
	if stack < 0 {
		if !certain {
			return false
		}
		stack = len(text) // GOTRACEBACK=none
	}
	head := strings.TrimRight(text[:stack], "\n")
	r.stack = text[stack:]
	r.message(head)
	r.sev = log.SeverityFatal1
	for line := range strings.Lines(head) {
		line = strings.TrimSuffix(line, "\n")
		// Of panics during panics the last one counts, it is indented.
		inner := strings.TrimPrefix(line, "\t")
		switch msg, isPanic := strings.CutPrefix(inner, "panic: "); {
		case isPanic:
			r.sevText, r.err, r.errType = "panic", msg, panicType(msg)
		case strings.HasPrefix(line, "fatal error: "):
			r.sevText, r.errType = "fatal error", "fatal error"
			r.err = line[len("fatal error: "):]
		case r.err == "" && isSignal(line) && strings.HasPrefix(line, "SIG"):
			r.sevText = "signal"
			r.errType, r.err, _ = strings.Cut(line, ": ")
		case strings.HasPrefix(line, "[signal "), strings.HasPrefix(line, "PC="):
		case r.sevText == "panic": // a message of several lines
			r.err += "\n" + inner // Go 1.23 and later indent them
		}
	}
	for _, mark := range []string{" [recovered]", " [recovered, repanicked]", " [recovered, reraised]"} {
		r.err = strings.TrimSuffix(r.err, mark)
	}
	if r.errType == "" { // only "runtime: …"
		r.errType, r.err = "fatal error", strings.TrimPrefix(head, "runtime: ")
	}
	r.finish()
	return true
}

// crashStack returns where the stacks begin, or -1.
func crashStack(text string) int {
	best := -1
	for _, mark := range []string{"\ngoroutine ", "\nruntime stack:\n", "\nruntime.throw("} {
		if i := strings.Index(text, mark); i >= 0 && (best < 0 || i+1 < best) {
			best = i + 1
		}
	}
	return best
}

// panicType tells the type of a panic's value from how the runtime prints it:
// "main.T{…}" cannot be had, but "(main.T) {…}", "main.T(5)" for basic kinds
// and "runtime error: …" can. "panic" if it cannot be told.
func panicType(msg string) string {
	if strings.HasPrefix(msg, "runtime error: ") {
		return "runtime.Error"
	}
	name := msg
	switch {
	case strings.HasPrefix(msg, "("): // (main.T) 0xc000012345, (main.T) {…}
		end := strings.IndexByte(msg, ')')
		if end < 0 {
			return "panic"
		}
		name = msg[1:end]
	case strings.HasSuffix(msg, ")"): // main.T("text"), main.T(5)
		i := strings.IndexByte(msg, '(')
		if i <= 0 {
			return "panic"
		}
		name = msg[:i]
	default:
		return "panic"
	}
	for _, c := range []byte(name) {
		if !isWord(c) && strings.IndexByte("./*-[]", c) < 0 {
			return "panic"
		}
	}
	if name == "" || !strings.Contains(name, ".") && !builtinType[name] {
		return "panic"
	}
	return name
}

var builtinType = map[string]bool{
	"bool": true, "int": true, "int8": true, "int16": true, "int32": true, "int64": true,
	"uint": true, "uint8": true, "uint16": true, "uint32": true, "uint64": true, "uintptr": true,
	"float32": true, "float64": true, "complex64": true, "complex128": true, "string": true,
}
