package logtext

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/log"
)

func TestSeverityOf(t *testing.T) {
	tests := map[string]log.Severity{
		"trace": 1, "TRACE": 1, "Debug": 5, "DBG": 5, "info": 9, "INFO": 9, "notice": 10, "warn": 13, "warning": 13, "WRN": 13,
		"error": 17, "err": 17, "critical": 21, "dpanic": 18, "fatal": 21, "panic": 21, "emergency": 21,
		"INFO+2": 11, "DEBUG-3": 2, "ERROR+4": 21, "ERROR+100": 0, "WARN+8": 21, "DEBUG-9": 1,
		"": 0, "x": 0, "I": 9, "F": 21, "information": 9, "infos": 0, "INFO+": 0, "INFO 2": 0, "äöü": 0, strings.Repeat("info", 9): 0,
	}
	for in, want := range tests {
		if got := severityOf(in); got != want {
			t.Errorf("severityOf(%q) = %d, want %d", in, got, want)
		}
	}
}

func TestParseLevel(t *testing.T) {
	tests := map[string]log.Severity{
		"DEBUG": 5, "info": 9, " Warning ": 13, "ERROR": 17, "CRITICAL": 21, "FATAL": 21, "TRACE": 1, "NOTSET": 1,
		"0": 1, "10": 5, "20": 9, "30": 13, "40": 17, "50": 21, "15": 7, "-5": 1, "99": 24,
	}
	for in, want := range tests {
		if got, err := ParseLevel(in); err != nil || got != want {
			t.Errorf("ParseLevel(%q) = %d, %v, want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "loud", "I", "10.5"} {
		if got, err := ParseLevel(in); err == nil {
			t.Errorf("ParseLevel(%q) = %d", in, got)
		}
	}
}

func TestTimeValue(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC).UnixNano()
	ms := int64(time.Millisecond)
	tests := map[string]int64{
		"2026-03-04T05:06:07Z":           at,
		"2026-03-04T05:06:07.123456789Z": at + 123456789,
		"2026-03-04T06:06:07+01:00":      at,
		"2026-03-04T00:06:07.5-0500":     at + 500*ms,
		"2026-03-04 05:06:07,123":        at + 123*ms,
		"2026-03-04 05:06:07.123 UTC":    at + 123*ms,
		"2026-03-04 10:36:07 +0530":      at,
		"2026-03-04T10:36:07":            at, // no zone: the one next to the time it was seen
		"2026-03-03 19:06:07":            at,
		"2026/03/04 05:06:07":            at,
		"1772600767":                     at,
		"1772600767.25":                  at + 250*ms,
		"1772600767123":                  at + 123*ms,
		"1772600767123.5":                at + 123*ms + 500000,
		"1772600767123456":               at + 123456000,
		"1772600767123456789":            at + 123456789,
		"1.772600767e+09":                at,
		"1.772600767123e+12":             at + 123*ms,
		"2026-02-01 05:06:07":            0, // no zone and a month old
		"5":                              0,
		"17726007671234567890":           0,
		"-1772600767":                    0,
		"1772600767x":                    0,
		"":                               0,
		"2026-13-04T05:06:07Z":           0,
		"2026-03-04T25:06:07Z":           0,
		"2026-03-04T05:06:07Zx":          0,
		"2026-03-04T05:06:07+99:00":      0,
		"9999-03-04T05:06:07Z":           0,
	}
	for in, want := range tests {
		if got := timeValue(in, at+3*int64(time.Second)); got != want && (got-want > 1000 || want-got > 1000 || !strings.Contains(in, "e+")) {
			t.Errorf("timeValue(%q) = %d, want %d", in, got, want)
		}
	}
}

// TestClockWithoutDate: klog knows no year, Ltime no date, and neither a zone.
func TestClockWithoutDate(t *testing.T) {
	sylvester := time.Date(2026, 12, 31, 23, 59, 59, 0, time.UTC)
	for _, zone := range []int{-11, -5, 0, 1, 13} {
		for _, late := range []time.Duration{0, time.Second, 3 * time.Minute} {
			local := sylvester.Add(time.Duration(zone) * time.Hour)
			observed := sylvester.Add(late).UnixNano()
			c := clock{month: int(local.Month()), day: local.Day(), hour: local.Hour(), minute: local.Minute(), second: local.Second()}
			if got := c.unixNano(observed); got != sylvester.UnixNano() {
				t.Errorf("without year, zone %d, %v late: %v", zone, late, time.Unix(0, got).UTC())
			}
			c.month, c.day = 0, 0
			if got := c.unixNano(observed); got != sylvester.UnixNano() {
				t.Errorf("without date, zone %d, %v late: %v", zone, late, time.Unix(0, got).UTC())
			}
		}
	}
}

// FuzzJSON compares with encoding/json: what this reader takes for an object
// that one does too, and both read the same strings.
func FuzzJSON(f *testing.F) {
	f.Add(`{"a":"b\u00e4\n","c":[1,2.5,{"d":null}],"e":true}`)
	f.Add(`{"a":"\ud83d\ude00","b":-1e5,"c":99999999999999999999}`)
	f.Fuzz(func(t *testing.T, s string) {
		got := map[string]string{}
		j := jsonReader{s: s}
		ok := j.object(0, func(key string, v jsonValue) {
			delete(got, key)
			if v.str {
				got[key] = v.raw
			}
		})
		var want map[string]any
		err := json.Unmarshal([]byte(s), &want)
		if err == nil && want != nil && !ok && j.values < maxValues {
			t.Errorf("%q is JSON", s)
		}
		if err != nil || !ok {
			return
		}
		for key, v := range want {
			text, isText := v.(string)
			text = strings.ReplaceAll(text, "\x00", nulSign)
			if g, here := got[strings.ReplaceAll(key, "\x00", nulSign)]; isText && here && strings.ToValidUTF8(g, "") != text && !strings.Contains(text, "\uFFFD") {
				t.Errorf("%q: %q is %q, want %q", s, key, g, text)
			}
		}
	})
}

func FuzzPairs(f *testing.F) {
	f.Add(`a=b c="d e" f= g=5`)
	f.Add(`message a=b x`)
	f.Fuzz(func(t *testing.T, s string) {
		message, pairs := trailingPairs(s)
		if pairs != "" && !strings.HasSuffix(s, pairs) || !strings.HasPrefix(s, message) {
			t.Errorf("%q: %q, %q", s, message, pairs)
		}
		for rest := pairs; rest != ""; {
			p, after, ok := nextPair(rest)
			if !ok || len(after) >= len(rest) || p.key == "" && !strings.HasPrefix(rest, `""`) {
				t.Fatalf("%q: pair %+v in %q", s, p, rest)
			}
			p.typed()
			rest = after
		}
	})
}

func FuzzTime(f *testing.F) {
	f.Add("2026-03-04T05:06:07.123Z", int64(base))
	f.Add("1772600767.25", int64(base))
	f.Add("05:06:07", int64(base))
	f.Fuzz(func(t *testing.T, s string, observed int64) {
		if got := timeValue(s, observed); got != 0 && (got < minTime || got > maxTime) {
			t.Errorf("%q: %d", s, got)
		}
		var c clock
		if c.timeOfDay(s) > 0 {
			c.unixNano(observed)
		}
		fileLine(s)
		stackStart(s)
		isFunctionLine(s)
	})
}

func TestTyped(t *testing.T) {
	tests := map[string]attribute.Type{
		"5": attribute.INT64, "-5": attribute.INT64, "0": attribute.INT64, "0.5": attribute.FLOAT64, "1e+06": attribute.FLOAT64,
		"true": attribute.BOOL, "false": attribute.BOOL, "007": attribute.STRING, "1e5": attribute.STRING, "1.5ms": attribute.STRING,
		"": attribute.STRING, "-": attribute.STRING, "1.2.3.4": attribute.STRING, "99999999999999999999": attribute.STRING, "TRUE": attribute.STRING,
	}
	for in, want := range tests {
		if got := (pair{value: in}).typed().Type(); got != want {
			t.Errorf("%q is %v, want %v", in, got, want)
		}
		if got := (pair{value: in, quoted: true}).typed().Type(); got != attribute.STRING {
			t.Errorf("%q in quotes is %v", in, got)
		}
	}
}
