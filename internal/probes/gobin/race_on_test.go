//go:build race

package gobin

// raceEnabled widens limits on time: the race detector slows down tenfold.
const raceEnabled = true
