package logtext

import (
	"math"
	"strings"
	"time"
)

// Bounds of the times that are believed: what lies outside is a number of some
// other kind.
const (
	minTime = 946684800 * int64(time.Second)  // 2000
	maxTime = 4102444800 * int64(time.Second) // 2100
)

// epochTime reads a number of seconds, milliseconds, microseconds or
// nanoseconds since 1970, told apart by their size, with any fraction, to the
// nanosecond. 0 if it is none.
func epochTime(s string) int64 {
	var n int64
	i := 0
	for ; i < len(s) && isDigit(s[i]); i++ {
		if n > math.MaxInt64/10-1 {
			return 0
		}
		n = n*10 + int64(s[i]-'0')
	}
	unit := unitOf(n)
	if i == 0 || unit == 0 {
		return scientific(s)
	}
	ns := n * unit
	if i < len(s) && s[i] == '.' {
		for i++; i < len(s) && isDigit(s[i]); i++ {
			unit /= 10
			ns += int64(s[i]-'0') * unit
		}
	}
	if i != len(s) {
		return scientific(s)
	}
	return believed(ns)
}

// unitOf tells the nanoseconds of the unit that makes n a time of this century.
func unitOf(n int64) int64 {
	for unit := int64(time.Second); unit >= 1; unit /= 1000 {
		if n >= minTime/unit && n <= maxTime/unit {
			return unit
		}
	}
	return 0
}

// scientific reads what encoding/json makes of a large float: 1.7e+09.
func scientific(s string) int64 {
	if !strings.ContainsAny(s, "eE") {
		return 0
	}
	f, ok := parseFloat(s)
	if !ok || f < 0 || f > math.MaxInt64/2 {
		return 0
	}
	whole, frac := math.Modf(f)
	unit := unitOf(int64(whole))
	if unit == 0 {
		return 0
	}
	return believed(int64(whole)*unit + int64(frac*float64(unit)))
}

func believed(ns int64) int64 {
	if ns < minTime || ns > maxTime {
		return 0
	}
	return ns
}

// digits reads the n digits at s[i:], -1 if they are none.
func digits(s string, i, n int) int {
	if i < 0 || i+n > len(s) {
		return -1
	}
	v := 0
	for _, c := range []byte(s[i : i+n]) {
		if !isDigit(c) {
			return -1
		}
		v = v*10 + int(c-'0')
	}
	return v
}

// clock is what a line says of its time: each part is there or not.
type clock struct {
	year, month, day     int // year 0: not stated
	hour, minute, second int
	ns                   int
	zone                 int // seconds east of UTC
	zoned                bool
}

// dateTime reads a date and time at the start of s, such as
// 2006-01-02T15:04:05.000Z, 2006-01-02 15:04:05,000 +0100 or 2006/01/02
// 15:04:05, and returns its length; 0 if there is none.
func dateTime(s string) (clock, int) {
	var c clock
	if len(s) < 19 || s[4] != '-' && s[4] != '/' || s[7] != s[4] || s[10] != 'T' && s[10] != ' ' {
		return c, 0
	}
	c.year, c.month, c.day = digits(s, 0, 4), digits(s, 5, 2), digits(s, 8, 2)
	if c.year < 1970 || c.month < 1 || c.month > 12 || c.day < 1 || c.day > 31 {
		return c, 0
	}
	n := c.timeOfDay(s[11:])
	if n == 0 {
		return c, 0
	}
	i := 11 + n
	return c, i + c.zoneAt(s[i:])
}

// timeOfDay reads 15:04:05 with an optional fraction and returns its length.
func (c *clock) timeOfDay(s string) int {
	if len(s) < 8 || s[2] != ':' || s[5] != ':' {
		return 0
	}
	c.hour, c.minute, c.second = digits(s, 0, 2), digits(s, 3, 2), digits(s, 6, 2)
	if c.hour < 0 || c.hour > 23 || c.minute < 0 || c.minute > 59 || c.second < 0 || c.second > 60 {
		return 0
	}
	i := 8
	if i+1 < len(s) && (s[i] == '.' || s[i] == ',') && isDigit(s[i+1]) {
		unit := int(time.Second)
		for i++; i < len(s) && isDigit(s[i]); i++ {
			unit /= 10
			c.ns += int(s[i]-'0') * unit
		}
	}
	return i
}

// zoneAt reads Z, +01:00, +0100, +01, " +0100" and " UTC".
func (c *clock) zoneAt(s string) int {
	if s == "" {
		return 0
	}
	if s[0] == 'Z' {
		c.zoned = true
		return 1
	}
	if strings.HasPrefix(s, " UTC") {
		c.zoned = true
		return 4
	}
	i := 0
	if s[0] == ' ' {
		i = 1
	}
	if i >= len(s) || s[i] != '+' && s[i] != '-' {
		return 0
	}
	sign := 1
	if s[i] == '-' {
		sign = -1
	}
	h, m, n := digits(s, i+1, 2), digits(s, i+4, 2), i+6
	if h < 0 || h > 15 {
		return 0
	}
	if i+3 < len(s) && s[i+3] != ':' || m < 0 {
		if m, n = digits(s, i+3, 2), i+5; m < 0 {
			m, n = 0, i+3
		}
	}
	c.zone, c.zoned = sign*(h*3600+m*60), true
	return n
}

// unixNano turns the clock into a time. What the line does not say, the year
// or the zone of its process, follows from the time at which it was observed:
// a line is written in the moments after its time.
func (c *clock) unixNano(observed int64) int64 {
	seen := time.Unix(0, observed).UTC()
	year, month, day := c.year, time.Month(c.month), c.day
	if month == 0 {
		year, month, day = seen.Date()
	} else if year == 0 {
		year = seen.Year()
		if d := int(seen.Month()) - c.month; d > 6 { // written in January, seen in December
			year++
		} else if d < -6 {
			year--
		}
	}
	ns := time.Date(year, month, day, c.hour, c.minute, c.second, c.ns, time.UTC).UnixNano()
	if c.zoned {
		return believed(ns - int64(c.zone)*int64(time.Second))
	}
	const quarter = int64(15 * time.Minute) // zones differ by quarters of an hour
	diff := observed - ns + quarter/2
	steps := diff / quarter
	if diff < 0 && diff%quarter != 0 {
		steps-- // round down
	}
	if c.month != 0 && (steps < -60 || steps > 60) {
		return 0 // an old line, or a clock that is wrong: nobody can say
	}
	return believed(ns + steps*quarter)
}

// timeValue reads the time in a field: text or a number.
func timeValue(s string, observed int64) int64 {
	if c, n := dateTime(s); n > 0 && n == len(s) {
		return c.unixNano(observed)
	}
	return epochTime(s)
}
