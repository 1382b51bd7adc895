package event

import "time"

// Start is when that which points count has begun. The wall clock may be set while it
// counts; points must begin before they end all the same, or endpoints refuse them.
type Start struct {
	unix int64     // ns
	read time.Time // when it was last compared with the clock
}

// StartAt is a start at a Unix time in ns, which may be long before now.
func StartAt(unix int64, now time.Time) Start { return Start{unix, now} }

// clockSet is by how much the wall clock leaves monotonic time between two looks if
// somebody has set it. Less is its daily business, and moves no start.
const clockSet = time.Second

// At returns the start as the clock of now has it, in ns of Unix time, which is before
// now.
func (s *Start) At(now time.Time) int64 {
	s.follow(now.UnixNano(), time.Duration(now.UnixNano()-s.read.UnixNano()), now.Sub(s.read))
	s.read = now
	return s.unix
}

// follow is At, where so much has passed by the two clocks.
func (s *Start) follow(now int64, wall, monotonic time.Duration) {
	if set := wall - monotonic; set > clockSet || set < -clockSet {
		s.unix += int64(set)
	}
	s.unix = min(s.unix, now-1)
}
