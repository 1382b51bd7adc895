package gobin

import (
	"sync"
	"testing"
)

// TestConcurrentUse: a Binary may be asked from several goroutines, and
// always answers the same.
func TestConcurrentUse(t *testing.T) {
	b := open(t, target{version: "local", arch: "amd64", strip: true, pie: true})
	want := answers(b)
	if len(want) < len(entryHooks)+10 {
		t.Fatalf("only %d answers", len(want))
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got := answers(b)
			for i := range want {
				if got[i] != want[i] {
					t.Errorf("%s, then %s", want[i], got[i])
				}
			}
		})
	}
	wg.Wait()
}

// answers asks for fields, sites and types, and returns what came as text.
func answers(b *Binary) []string {
	var out []string
	for _, h := range entryHooks {
		fn, err := b.Func(h.name)
		if err != nil {
			out = append(out, err.Error())
			continue
		}
		s, err := b.EntrySite(fn)
		if err != nil {
			out = append(out, err.Error())
			continue
		}
		out = append(out, s.String())
	}
	for _, r := range required {
		f, err := b.Field(r.name, "ctx")
		if err != nil {
			out = append(out, err.Error())
			continue
		}
		out = append(out, f.Type)
	}
	list, err := b.ContextTypes()
	if err != nil {
		out = append(out, err.Error())
	}
	for _, c := range list {
		out = append(out, c.Name)
	}
	return out
}
