// Package plan is what the two sides of a guest agree about: scripts/vm, which boots it,
// and its first process, scripts/vm/init.
package plan

import "time"

// File is where the plan is in the guest.
const File = "/plan.json"

// Plan is what a guest runs, one step after the other.
type Plan struct {
	// Nonce begins every line that the guest says by itself, so that no output of a step
	// is taken for one: "NONCE begin NAME", "NONCE exit NAME CODE", and at the end
	// "NONCE done".
	Nonce string
	Steps []Step
}

// Step is one program.
type Step struct {
	Name    string // without spaces
	Dir     string // made if missing
	Command []string
	Limit   time.Duration // then it is killed
}
