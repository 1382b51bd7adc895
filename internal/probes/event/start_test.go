package event

import (
	"testing"
	"time"
)

func TestStartFollowsTheClock(t *testing.T) {
	const begin, minute = int64(1_000_000 * time.Hour), time.Minute
	for name, c := range map[string]struct {
		now                   int64
		wall, monotonic, want time.Duration // want: from begin
	}{
		"as always":               {begin + int64(minute), minute, minute, 0},
		"slow":                    {begin + int64(minute), minute - time.Second/2, minute, 0},
		"set forward":             {begin + int64(time.Hour), time.Hour, minute, time.Hour - minute},
		"set back":                {begin - int64(time.Hour), -time.Hour, minute, -time.Hour - minute},
		"set back while nobody":   {begin - int64(time.Hour), minute, minute, -time.Hour - 1},
		"set back by very little": {begin - 10, -10, 10, -11},
	} {
		s := Start{unix: begin}
		if s.follow(c.now, c.wall, c.monotonic); s.unix != begin+int64(c.want) || s.unix >= c.now {
			t.Errorf("%s: it starts at %v, and it is %v; want %v", name, time.Duration(s.unix-begin), time.Duration(c.now-begin), c.want)
		}
	}
	now := time.Now()
	s := StartAt(now.UnixNano(), now)
	time.Sleep(time.Millisecond)
	for range 3 {
		if got := s.At(time.Now()); got != now.UnixNano() {
			t.Errorf("it has moved by %v", time.Duration(got-now.UnixNano()))
		}
	}
}
