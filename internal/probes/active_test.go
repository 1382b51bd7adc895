package probes

import (
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
)

// TestReadActive reads requests from memory that says anything.
func TestReadActive(t *testing.T) {
	layout := &bpf.AgentNethttpLayout{ResponseReq: 8, RequestMethod: 0, RequestTls: 64}
	// memory holds a response at 0x1000, its request at 0x2000 and a text at 0x3000.
	memory := func(text string, textLen, request, tls uint64) map[uint64][]byte {
		m := map[uint64][]byte{0x1000: make([]byte, 64), 0x2000: make([]byte, 128), 0x3000: []byte(text)}
		binary.LittleEndian.PutUint64(m[0x1000][8:], request)
		binary.LittleEndian.PutUint64(m[0x2000][0:], 0x3000)
		binary.LittleEndian.PutUint64(m[0x2000][8:], textLen)
		binary.LittleEndian.PutUint64(m[0x2000][64:], tls)
		return m
	}
	long := strings.Repeat("A", 4096)
	tests := []struct {
		name   string
		memory map[uint64][]byte
		want   activeKind
	}{
		{"GET", memory("GET", 3, 0x2000, 0), activeKind{"GET", "http"}},
		{"TLS", memory("PATCH", 5, 0x2000, 0xc000), activeKind{"PATCH", "https"}},
		{"no method is GET", memory("", 0, 0x2000, 0), activeKind{"GET", "http"}},
		{"made up", memory("BREW", 4, 0x2000, 0), activeKind{"_OTHER", "http"}},
		{"too long", memory(long, 4096, 0x2000, 1), activeKind{"_OTHER", "https"}},
		{"longer than memory", memory("GET", 1<<63, 0x2000, 0), activeKind{"_OTHER", "http"}},
		{"text not there", memory("GET", 30, 0x2000, 0), activeKind{"_OTHER", "http"}},
		{"request not there", memory("GET", 3, 0x9000, 1), unreadable},
		{"no request", memory("GET", 3, 0, 1), unreadable},
		{"address wraps", memory("GET", 3, ^uint64(0)-7, 1), unreadable},
		{"nothing there", nil, unreadable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			read := func(addr uint64, b []byte) error {
				for at, page := range tt.memory {
					if addr >= at && addr-at <= uint64(len(page)) && uint64(len(b)) <= uint64(len(page))-(addr-at) {
						copy(b, page[addr-at:])
						return nil
					}
				}
				return errors.New("fault")
			}
			if got := readActive(read, layout, 0x1000); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

// TestActiveRequests counts the open requests of a real process.
func TestActiveRequests(t *testing.T) {
	s := startService(t)
	out := &sink{}
	a := startAgentOn(t, Options{PIDs: []int{s.pid}}, out, &lines{})
	collect := func() map[string]int64 {
		out.numbers = nil
		a.collect.collect()
		got := map[string]int64{}
		for _, n := range out.numbers {
			if n.Kind != event.UpDownCounter || n.Process.PID != s.pid || n.Start == 0 || n.End < n.Start {
				t.Errorf("not as it should be: %+v", n)
			}
			got[describe([]event.Number{n})] = n.Value
		}
		return got
	}
	expect := func(when string, want ...string) {
		t.Helper()
		got := collect()
		for _, w := range want {
			if _, ok := got["http.server.active_requests "+w]; !ok {
				t.Errorf("%s: no %q in %v", when, w, got)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d series, want %d: %v", when, len(got), len(want), got)
		}
	}
	expect("before the first request")

	var held sync.WaitGroup
	for method, n := range map[string]int{"GET": 3, "POST": 2, "BREW": 1} {
		for range n {
			held.Go(func() { s.send(t, method, "/hold") })
		}
	}
	waitFor(t, "six requests are open", func() bool {
		open, err := a.collect.active.open()
		return err == nil && len(open[uint32(s.pid)]) == 6
	})
	expect("six are open", "GET http=3", "POST http=2", "_OTHER http=1")
	s.send(t, "PUT", "/plain")
	expect("one more has ended", "GET http=3", "POST http=2", "_OTHER http=1", "PUT http=0")
	s.send(t, "GET", "/release")
	held.Wait()
	waitFor(t, "none is open", func() bool {
		open, err := a.collect.active.open()
		return err == nil && len(open) == 0
	})
	expect("all have ended", "GET http=0", "POST http=0", "_OTHER http=0", "PUT http=0")

	if err := a.targets.giveUp(a.targets.attachedBinaries()[0], givenUpAll, "test"); err != nil {
		t.Fatal(err)
	}
	expect("not probed any more")
}

// TestMostActiveRequests: what is beyond the bound counts, without its method.
func TestMostActiveRequests(t *testing.T) {
	s := startService(t)
	a := startAgentOn(t, Options{PIDs: []int{s.pid}}, &sink{}, &lines{})
	tg := a.targets.find(s.pid)
	kinds := a.collect.active.inspect(tg, make([]response, maxActiveReads))
	if len(kinds) != maxActiveReads {
		t.Fatalf("%d of %d", len(kinds), maxActiveReads)
	}
	for _, k := range kinds {
		if k != unreadable {
			t.Fatalf("a response at address 0 is %v", k)
		}
	}
	if a.collect.active.mute[tg.process] {
		t.Error("the process answers, if only with errors")
	}
}
