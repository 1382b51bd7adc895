package export

import (
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

// shelf is memory that outlives a pipeline. After cut bytes no more are written, as when
// the process is killed in the middle.
type shelf struct {
	books [signalCount][BookSize]byte
	cut   int
}

func (s *shelf) of(signal int) Memory { return shelfBook{s, signal} }

type shelfBook struct {
	*shelf
	signal int
}

func (b shelfBook) ReadAt(p []byte, off int64) (int, error) {
	return copy(p, b.books[b.signal][off:]), nil
}

func (b shelfBook) WriteAt(p []byte, off int64) (int, error) {
	if b.cut >= 0 {
		p = p[:min(len(p), b.cut)]
	}
	return copy(b.books[b.signal][off:], p), nil
}

// killed runs a pipeline that is killed: nothing is flushed, and nobody is told.
func (s *shelf) killed(t *testing.T, rc *receiver, use func(*Pipeline)) {
	t.Helper()
	cfg := config.Default()
	cfg.Export.URL, cfg.Export.Token, cfg.Export.SpoolDir = "http://endpoint.test", testToken, config.SpoolOff
	p, err := New(cfg, discard(&logBuffer{}), func(o *options) { o.base = rc }, WithBook(s.of))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context()) }()
	use(p)
	synctest.Wait()
	s.cut = 0 // from here on nothing reaches the shelf
	p.abandon()
	<-done
	s.cut = -1
}

// TestBookAcrossKills: what an agent that was killed had in memory is counted by the
// next; what it had exported is not counted again; collections are made again.
func TestBookAcrossKills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down atomic.Bool
		rc := &receiver{answer: func(http.ResponseWriter, *http.Request, []byte) int {
			if down.Load() {
				return 503
			}
			return 200
		}}
		s := &shelf{cut: -1}
		var settled atomic.Int64
		point := []event.Histogram{{Process: shop, Scope: netHTTP, Name: "h", Counts: []uint64{1}}}
		s.killed(t, rc, func(p *Pipeline) {
			p.Spans(makeSpans(10, "a"))
			p.MetricsSettled(point, nil, func() { settled.Add(1) })
			time.Sleep(2 * time.Second)
			down.Store(true)
			p.Spans(makeSpans(7, "b"))
			p.MetricsSettled(point, nil, func() { settled.Add(100) })
			time.Sleep(2 * time.Second)
		})
		if settled.Load() != 1+100 { // the second by abandon, which a killed agent does not get to
			t.Errorf("settled %d", settled.Load())
		}
		down.Store(false)
		s.killed(t, rc, func(p *Pipeline) {
			p.Spans(makeSpans(3, "c"))
			time.Sleep(2 * time.Second)
			expect(t, p, "traces", 20, 13, map[string]int64{"crash": 7})
			if n := p.Handed(); n != 20 {
				t.Errorf("%d spans were handed over", n)
			}
			m := balanced(t, p, "metrics")
			if m.Received != 1 || m.Exported != 1 || m.MaybeTwice != 1 {
				t.Errorf("metrics %+v", m)
			}
		})
	})
}

// TestBookTorn writes a page at every length: what is read is the new one or the one
// before, never anything else.
func TestBookTorn(t *testing.T) {
	for cut := range pageSize + 1 {
		s := &shelf{cut: -1}
		l := newLane(signalLogs, 1, 0, 1)
		l.book = &book{memory: s.of(int(signalLogs))}
		for i := range int64(5) {
			l.received, l.exported = i, i
			l.book.write(l)
		}
		s.cut = cut
		l.received, l.exported = 5, 5
		l.book.write(l)
		p, ok := (&book{memory: s.of(int(signalLogs))}).read()
		want := int64(4)
		if cut == pageSize {
			want = 5
		}
		// The sum's last bytes may be the same by chance.
		if !ok || p.Received != p.Exported || p.Received != want && (p.Received != 5 || cut < pageSize-4) {
			t.Fatalf("cut at %d: read %+v, %v", cut, p, ok)
		}
	}
}

// TestBookOfNobody: no page, a page of other reasons, and memory that cannot be read are
// all a fresh start.
func TestBookOfNobody(t *testing.T) {
	s := &shelf{cut: -1}
	if _, ok := (&book{memory: s.of(0)}).read(); ok {
		t.Error("read an empty book")
	}
	if _, ok := (&book{memory: broken{}}).read(); ok {
		t.Error("read a broken book")
	}
	l := newLane(signalSpans, 1, 0, 1)
	l.book = &book{memory: broken{}}
	l.restore(5)
	if l.received != 5 || l.spooled != 5 {
		t.Errorf("received %d, spooled %d of 5 in the spool", l.received, l.spooled)
	}
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error)  { return 0, io.ErrUnexpectedEOF }
func (broken) WriteAt([]byte, int64) (int, error) { return 0, errors.New("no") }
