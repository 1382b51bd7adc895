package config

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/log"
)

// Secret is a string that must not be seen: whatever prints, logs or marshals
// it gets a placeholder. [Secret.Reveal] is the one way to its text.
type Secret string

const redacted = "[redacted]"

// Reveal returns the text, for the place that sends it.
func (s Secret) Reveal() string { return string(s) }

// String tells only whether there is a secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return redacted
}

// Format covers every verb, so that %x or %d reveal nothing either.
func (s Secret) Format(f fmt.State, _ rune) { io.WriteString(f, s.String()) }

// GoString is what %#v prints.
func (s Secret) GoString() string { return strconv.Quote(s.String()) }

// LogValue is what slog prints.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText serves JSON, YAML and XML alike.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalJSON is MarshalText in quotes.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(strconv.Quote(s.String())), nil }

// UnmarshalText takes the text as it is.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = Secret(text)
	return nil
}

// Bytes is a size in memory or on disk.
type Bytes int64

// String prints the size in the largest unit that divides it.
func (b Bytes) String() string {
	for _, u := range byteUnits {
		if u.suffix != "" && b != 0 && int64(b)%u.factor == 0 {
			return strconv.FormatInt(int64(b)/u.factor, 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(b), 10)
}

// byteUnits are tried in this order; decimal and binary names mean the same,
// because a buffer size is never meant in powers of ten.
var byteUnits = []struct {
	suffix string
	factor int64
}{
	{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"GB", 1 << 30}, {"MB", 1 << 20}, {"KB", 1 << 10},
	{"G", 1 << 30}, {"M", 1 << 20}, {"K", 1 << 10},
	{"B", 1}, {"", 1},
}

// UnmarshalText understands 8388608, 8MiB, 8MB, 8 M.
func (b *Bytes) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	for _, u := range byteUnits {
		if len(s) < len(u.suffix) || !strings.EqualFold(s[len(s)-len(u.suffix):], u.suffix) {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(s[:len(s)-len(u.suffix)]), 10, 64)
		if err != nil || n < 0 || n > (1<<40)/u.factor {
			return errors.New("not a size")
		}
		*b = Bytes(n * u.factor)
		return nil
	}
	return errors.New("not a size")
}

// Percent is a share of something, as a fraction: 0.02 is 2 %.
type Percent float64

// UnmarshalText understands "2%", "0.5 %" and "off". A bare number other than
// 0 is refused, because 2 and 0.02 are both likely and far apart.
func (p *Percent) UnmarshalText(text []byte) error {
	s := strings.TrimSpace(string(text))
	if s == "" || s == "0" || strings.EqualFold(s, "off") || strings.EqualFold(s, "false") {
		*p = 0
		return nil
	}
	num, ok := strings.CutSuffix(s, "%")
	if !ok {
		return errors.New("no percent sign")
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(num), 64)
	if err != nil || !(f >= 0 && f <= 100) {
		return errors.New("not a percentage")
	}
	*p = Percent(f / 100)
	return nil
}

// String is the inverse of UnmarshalText.
func (p Percent) String() string {
	if p == 0 {
		return "off"
	}
	return strconv.FormatFloat(float64(p)*100, 'g', -1, 64) + "%"
}

// Severity is a minimum severity of log records, an OpenTelemetry severity
// number.
type Severity log.Severity

const severityInfo = Severity(log.SeverityInfo)

var severityNames = map[string]log.Severity{
	"NOTSET": log.SeverityTrace, "TRACE": log.SeverityTrace, "DEBUG": log.SeverityDebug,
	"INFO": log.SeverityInfo, "NOTICE": log.SeverityInfo2,
	"WARN": log.SeverityWarn, "WARNING": log.SeverityWarn,
	"ERROR": log.SeverityError, "CRITICAL": log.SeverityFatal, "FATAL": log.SeverityFatal,
}

// UnmarshalText takes a level name, or one of Python's integers: 10 debug,
// 20 info, 30 warning, 40 error, 50 critical. A level between two of them maps
// to the numbers that OpenTelemetry has in between.
func (s *Severity) UnmarshalText(text []byte) error {
	name := strings.ToUpper(strings.TrimSpace(string(text)))
	if sev, ok := severityNames[name]; ok {
		*s = Severity(sev)
		return nil
	}
	n, err := strconv.Atoi(name)
	switch {
	case err != nil || n < 0 || n > 1000:
		return errors.New("not a level")
	case n < 10:
		*s = Severity(log.SeverityTrace)
	case n >= 50:
		*s = Severity(log.SeverityFatal)
	default:
		*s = Severity(1 + 4*(n/10) + min(n%10, 3))
	}
	return nil
}

// String is the name of the severity in OpenTelemetry.
func (s Severity) String() string { return log.Severity(s).String() }
