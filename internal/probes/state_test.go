package probes

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
)

// bpfDir is a new directory of a BPF filesystem.
func bpfDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to pin maps")
	}
	dir := fmt.Sprintf("/sys/fs/bpf/plain-agent-unit-%d-%s", os.Getpid(), t.Name())
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openState(t *testing.T, dir string, log *lines) *State {
	t.Helper()
	s, err := OpenState(dir, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestStateOfAnother is a predecessor that had another ring: what it left is counted by
// number, not read.
func TestStateOfAnother(t *testing.T) {
	dir, log := bpfDir(t), &lines{}
	s := startService(t)
	state := openState(t, dir, log)
	o := Options{PIDs: []int{s.pid}, State: state}
	a := startAgentOn(t, o, &sink{}, log)
	const requests = 20
	for range requests {
		s.send(t, "GET", "/plain")
	}
	waitFor(t, "records in the ring", func() bool {
		return a.targets.counters()[bpf.AgentCounterCOUNT_EMITTED] >= requests
	})
	emitted := a.targets.counters()[bpf.AgentCounterCOUNT_EMITTED]
	state.ledger.set(wordContract, 42)
	a.Close()
	state.Close()

	o.State = openState(t, dir, log)
	b := startAgentOn(t, o, &sink{}, log)
	got := b.Status()
	if got.Losses["incompatible"] != emitted || got.State.Inherited || !got.State.Kept || got.Spans.Emitted != 0 {
		t.Errorf("%d records were left: %+v", emitted, got)
	}
	if log.count("is dropped: it was of another version") != 1 {
		t.Error("the log does not say so")
	}
}

// TestStateInherited is a predecessor that was killed, twice, in one process: spans that
// were in the ring are exported, those that were read are counted as lost, a request that
// was open is unfinished, histograms are exported once.
func TestStateInherited(t *testing.T) {
	dir, log := bpfDir(t), &lines{}
	s := startService(t)
	var handed, measured uint64
	for life := range 3 {
		out := &sink{}
		state := openState(t, dir, log)
		a := startAgentOn(t, Options{Exes: []string{s.exe}, State: state, Handed: func() uint64 { return handed + uint64(len(out.spans)) }}, out, log)
		handed += uint64(len(out.spans))
		status := a.Status()
		want := map[string]uint64{}
		if life > 0 {
			want["crash"] = uint64(life) * 5
			if len(out.spans) != 10 {
				t.Errorf("life %d: %d spans in the ring, want 10", life, len(out.spans))
			}
		}
		if status.Losses["crash"] != want["crash"] || status.State.Inherited != (life > 0) {
			t.Errorf("life %d: %+v", life, status)
		}
		emitted := a.targets.counters()[bpf.AgentCounterCOUNT_EMITTED]
		send := func(n uint64) {
			for range n {
				s.send(t, "GET", "/plain")
			}
			emitted += n
			waitFor(t, "records", func() bool { return a.targets.counters()[bpf.AgentCounterCOUNT_EMITTED] == emitted })
		}
		send(5)
		a.collect.collect() // settled at once: this sink is no Settler
		for _, p := range out.points {
			for _, n := range p.Counts {
				measured += n
			}
		}
		// Read, and gone with the agent.
		a.ring.SetDeadline(time.Now())
		for read := 0; read < 5; {
			record, err := a.ring.Read()
			if err != nil {
				t.Fatal(err)
			}
			header, _, err := recordAs[bpf.AgentRecordHeader](record.RawSample)
			if err == nil && header.Kind != uint32(bpf.AgentRecordKindRECORD_EXEC) {
				read++
			}
		}
		send(10)
		a.Close()
		state.Close()
	}
	out := &sink{}
	state := openState(t, dir, log)
	a := startAgentOn(t, Options{Exes: []string{s.exe}, State: state, Handed: func() uint64 { return handed + uint64(len(out.spans)) }}, out, log)
	a.collect.collect()
	for _, p := range out.points {
		for _, n := range p.Counts {
			measured += n
		}
	}
	if measured != 45 {
		t.Errorf("%d requests measured of 45", measured)
	}
	a.Close()
	state.Release()
	state.Close()
	left, err := filepath.Glob(dir + "/*")
	if err != nil || len(left) != 1 || filepath.Base(left[0]) != "ledger" {
		t.Errorf("released, and %v is left, %v", left, err)
	}
	next := openState(t, dir, log)
	if next.before.state != lifeEnded || next.ledger.get(wordCrash) != 0 {
		t.Errorf("after a good end: %+v", next.before)
	}
}

// TestStateWithoutBPFFilesystem: nothing is kept, and it says why; the lock holds all the
// same.
func TestStateWithoutBPFFilesystem(t *testing.T) {
	log := &lines{}
	dir := filepath.Join(t.TempDir(), "state")
	s := openState(t, dir, log)
	if s.keeps() || s.Book(0) != nil {
		t.Error("keeps something")
	}
	status := s.status(map[string]uint64{})
	if status.Kept || !strings.Contains(status.Reason, "mount") {
		t.Errorf("status %+v", status)
	}
	if _, err := OpenState(dir, slog.New(slog.NewTextHandler(log, nil))); !errors.Is(err, ErrInUse) {
		t.Errorf("a second agent: %v", err)
	}
	var none *State
	none.Release()
	none.beat()
	if err := none.Close(); err != nil || none.status(nil).Kept {
		t.Errorf("no state: %v", err)
	}
	if s := openState(t, StateOff, log); s.status(nil).Reason != "switched off by PLAIN_AGENT_STATE_DIR" {
		t.Errorf("off: %+v", s.status(nil))
	}
}

// TestContract changes with what both sides must agree on, and with nothing else.
func TestContract(t *testing.T) {
	hash := func(change func(*bpf.AgentMapSpecs)) uint64 {
		spec, err := bpf.LoadAgent()
		if err != nil {
			t.Fatal(err)
		}
		var maps bpf.AgentMapSpecs
		if err := spec.Assign(&maps); err != nil {
			t.Fatal(err)
		}
		change(&maps)
		h, err := contractOf(spec)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	same := hash(func(*bpf.AgentMapSpecs) {})
	if again := hash(func(*bpf.AgentMapSpecs) {}); again != same {
		t.Error("not the same twice")
	}
	if other := hash(func(m *bpf.AgentMapSpecs) { m.Ring.MaxEntries *= 2 }); other == same {
		t.Error("the same with another ring")
	}
	if other := hash(func(m *bpf.AgentMapSpecs) { m.Types.MaxEntries *= 2 }); other != same {
		t.Error("another with a map that is not kept")
	}
}

func TestCard(t *testing.T) {
	p := &event.Process{PID: 7, StartTime: 9, Resource: []attribute.KeyValue{
		attribute.String("service.name", "shop"), attribute.Int("process.pid", 7), attribute.Bool("b", true),
		attribute.StringSlice("list", []string{"x", "y"}), attribute.String("huge", strings.Repeat("h", 5000)),
	}}
	dir := bpfDir(t)
	s := openState(t, dir, &lines{})
	if err := s.openOwnMaps(); err != nil {
		t.Fatal(err)
	}
	s.saveCard(p, 3)
	var card cardRecord
	if err := s.cards.Lookup(uint32(7), &card); err != nil {
		t.Fatal(err)
	}
	got := card.process(7, "/shop")
	have := attribute.NewSet(got.Resource...)
	want := attribute.NewSet(p.Resource[:4]...)
	if have.Equivalent() != want.Equivalent() || got.StartTime != 9 || card.Binary != 3 {
		t.Errorf("got %+v", got)
	}
	card.Length = 1 << 30
	card.process(7, "/shop") // a number from outside
}
