package config

import (
	"slices"
	"testing"
	"time"
)

func TestMergeTakesWhatCanChange(t *testing.T) {
	before, next := Default(), Default()
	next.Targets.Exes = []string{"/new"}
	next.Traces.SampleRate = 0.25
	next.Logs.Redact = []string{"x"}
	next.Agent.LogLevel = "debug"
	next.Export.URL = "http://elsewhere"
	next.Probes.RingSize *= 2
	next.Metrics.Interval = time.Second
	merged, later := before.Merge(next)
	if want := []string{"export.url", "metrics.interval", "probes.ring_size"}; !slices.Equal(later, want) {
		t.Errorf("later %v, want %v", later, want)
	}
	if merged.Traces.SampleRate != 0.25 || merged.Targets.Exes[0] != "/new" || merged.Logs.Redact[0] != "x" || merged.Agent.LogLevel != "debug" {
		t.Errorf("merged %+v", merged)
	}
	if merged.Export.URL != before.Export.URL || merged.Probes != before.Probes || before.Traces.SampleRate != 1 {
		t.Error("something else changed")
	}
	if got := merged.Changed(merged); len(got) != 0 {
		t.Errorf("differs from itself: %v", got)
	}
}

// TestReloadableKeysExist keeps the list in step with the table.
func TestReloadableKeysExist(t *testing.T) {
	for _, r := range reloadable {
		if !slices.ContainsFunc(Settings, func(s Setting) bool { return s.Key == r || len(s.Key) > len(r) && s.Key[:len(r)+1] == r+"." }) {
			t.Errorf("no setting %s", r)
		}
	}
}

// TestTokenFileIsNoChange: the token is read again by itself.
func TestTokenFileIsNoChange(t *testing.T) {
	a, b := Default(), Default()
	a.Export.Token, a.Export.TokenFromFile = "one", true
	b.Export.Token, b.Export.TokenFromFile = "two", true
	if got := a.Changed(b); len(got) != 0 {
		t.Errorf("changed %v", got)
	}
	b.Export.TokenFromFile = false
	if got := a.Changed(b); !slices.Equal(got, []string{"export.token"}) {
		t.Errorf("changed %v", got)
	}
}
