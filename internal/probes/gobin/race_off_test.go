//go:build !race

package gobin

const raceEnabled = false
