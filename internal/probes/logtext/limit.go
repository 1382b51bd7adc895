package logtext

import "time"

const (
	defaultRate  = 1000
	defaultBurst = 5000
	// summaryEvery is how often the lines dropped are reported.
	summaryEvery = 10 * time.Second
)

// limiter is a bucket of lines that fills with time. It knows only the times
// that it is told, those of the kernel.
type limiter struct {
	rate, burst float64 // rate 0: no limit
	level       float64
	last        int64

	dropped     uint64 // lines since the last summary
	lastSummary int64
}

func (l *limiter) init(rate, burst int) {
	if rate < 0 {
		return
	}
	if rate == 0 {
		rate = defaultRate
	}
	if burst <= 0 {
		burst = defaultBurst
	}
	l.rate, l.burst = float64(rate), float64(burst)
	l.level = l.burst
}

// open tells whether a record may pass at the given time. What a record costs
// is taken once it is known to be kept.
func (l *limiter) open(now int64) bool {
	if l.rate == 0 {
		return true
	}
	if now < l.last-int64(clockSet) {
		l.last = now
	}
	if now > l.last {
		if l.last != 0 {
			l.level = min(l.burst, l.level+l.rate*float64(now-l.last)/float64(time.Second))
		}
		l.last = now
	}
	return l.level >= 1
}

func (l *limiter) take(lines uint64) { l.level -= float64(lines) }

// summary returns how many lines were dropped since the last one, when it is
// time to report them, else 0.
func (l *limiter) summary(now int64) uint64 {
	if l.dropped == 0 || l.lastSummary != 0 && now >= l.lastSummary && now-l.lastSummary < int64(summaryEvery) {
		return 0
	}
	n := l.dropped
	l.dropped, l.lastSummary = 0, now
	return n
}
