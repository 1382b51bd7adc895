package gobin

import (
	"errors"
	"flag"
	"testing"
)

var allBuildsFlag = flag.Bool("gobin.builds", false, "also read -race, unoptimized and C-linked builds of everything: minutes, and a C compiler")

// otherBuilds returns ways to build that change code or tables.
func otherBuilds() []target {
	list := []target{
		{extra: "-gcflags=database/sql=-N -l"},
		// Code and types in one segment, as C linkers for arm64 have it.
		{cgo: true, extra: "-ldflags=-linkmode=external -extldflags=-Wl,-z,noseparate-code"},
	}
	if *allBuildsFlag {
		list = append(list,
			target{extra: "-race", cgo: true},
			target{extra: "-gcflags=all=-N -l"},
			target{extra: "-gcflags=all=-l"},
			target{cgo: true},
			target{cgo: true, pie: true, strip: true},
			target{cgo: true, extra: "-buildmode=c-shared"},
			target{env: "GOAMD64=v3"},
		)
	}
	return list
}

// TestOtherBuilds: layouts are right in every kind of build, and every hook
// either has a site before its arguments change or is told to be inlined.
func TestOtherBuilds(t *testing.T) {
	for _, tg := range otherBuilds() {
		tg.version, tg.arch = "local", "amd64"
		t.Run(tg.String(), func(t *testing.T) {
			compareFields(t, tg)
			b := open(t, tg)
			for _, h := range entryHooks {
				fn, err := b.Func(h.name)
				var inlined *InlinedError
				if errors.As(err, &inlined) {
					t.Logf("%v", err)
					continue
				}
				if err != nil {
					t.Error(err)
					continue
				}
				s, err := b.EntrySite(fn)
				if err != nil {
					t.Error(err)
					continue
				}
				checkEntry(t, b, fn, s, minor(t, b))
			}
			for _, h := range callHooks {
				if v := minor(t, b); v < h.from || h.until != 0 && v >= h.until {
					continue
				}
				for _, fn := range b.lookupAll(h.fn) {
					s, err := h.site(b, fn)
					var site *SiteError
					switch {
					case err == nil && *tableFlag:
						t.Logf("%s: %s%s", h.name, s, places(b, s, h.results))
					case errors.As(err, &site):
						t.Logf("%s: %v", h.name, err)
					case err != nil:
						t.Errorf("%s: %v", h.name, err)
					}
				}
			}
		})
	}
}
