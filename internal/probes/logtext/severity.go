package logtext

import (
	"fmt"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/log"
)

// severityOf reads a level as the Go logging libraries write it, in any case:
// "info", "WARN", "ERR", and "INFO+2" of log/slog. 0 if it is none.
func severityOf(s string) log.Severity {
	if len(s) < 3 || len(s) > 16 {
		return oneLetter(s)
	}
	var buf [16]byte
	n := 0
	for ; n < len(s) && isAlpha(s[n]); n++ {
		buf[n] = s[n] | 0x20
	}
	base := severityWord(string(buf[:n])) // does not allocate: it only switches
	if base == 0 || n == len(s) {
		return base
	}
	// log/slog: a level between two names is the lower one plus a number.
	if s[n] != '+' && s[n] != '-' {
		return 0
	}
	d, err := strconv.Atoi(s[n:])
	if err != nil || d < -64 || d > 64 {
		return 0
	}
	return clampSeverity(int(base) + d)
}

func clampSeverity(n int) log.Severity {
	return log.Severity(min(max(n, int(log.SeverityTrace1)), int(log.SeverityFatal4)))
}

func severityWord(s string) log.Severity {
	switch s {
	case "trace", "trc", "trac":
		return log.SeverityTrace1
	case "debug", "dbg", "dbug", "debu":
		return log.SeverityDebug1
	case "info", "inf", "information", "informational":
		return log.SeverityInfo1
	case "notice":
		return log.SeverityInfo2
	case "warn", "warning", "wrn":
		return log.SeverityWarn1
	case "error", "err", "erro", "eror":
		return log.SeverityError1
	case "dpanic": // of zap: worse than an error, fatal only in development
		return log.SeverityError2
	case "fatal", "ftl", "fata", "panic", "pnc", "pani", "critical", "crit", "alert", "emergency", "emerg":
		return log.SeverityFatal1
	}
	return 0
}

// oneLetter reads the level of klog and of zerolog's shortest form.
func oneLetter(s string) log.Severity {
	if len(s) != 1 {
		return 0
	}
	switch s[0] {
	case 'T':
		return log.SeverityTrace1
	case 'D':
		return log.SeverityDebug1
	case 'I':
		return log.SeverityInfo1
	case 'W':
		return log.SeverityWarn1
	case 'E':
		return log.SeverityError1
	case 'F':
		return log.SeverityFatal1
	}
	return 0
}

// ParseLevel reads the setting of the least severity that is exported: the
// name of a level, or a number of Python's logging module (10 debug, 20 info,
// 30 warning, 40 error, 50 critical, others in between).
func ParseLevel(s string) (log.Severity, error) {
	s = strings.TrimSpace(s)
	if n, err := strconv.Atoi(s); err == nil {
		// Four severities lie between two levels of Python, ten apart.
		return clampSeverity(1 + min(max(n, 0), 60)*4/10), nil
	}
	if strings.EqualFold(s, "notset") {
		return log.SeverityTrace1, nil
	}
	if sev := severityOf(s); sev != 0 && len(s) > 1 {
		return sev, nil
	}
	return 0, fmt.Errorf("log level %q is neither a name (TRACE, DEBUG, INFO, WARN, ERROR, FATAL) nor a number", s)
}

func isAlpha(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isWord(c byte) bool { return isAlpha(c) || isDigit(c) || c == '_' }
