package config

import "testing"

func TestColour(t *testing.T) {
	for env, want := range map[string]bool{"TERM=xterm": true, "NO_COLOR=": true, "NO_COLOR=1": false, "TERM=dumb": false} {
		if got := Colour([]string{env}); got != want {
			t.Errorf("%s: %v", env, got)
		}
	}
}
