package export

import (
	"flag"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/export/spool/spooltest"
)

var (
	chaosRounds = flag.Int("chaos.rounds", 0, "rounds of TestChaos, in all parts together; 0 for what fits into a few seconds")
	chaosSeed   = flag.Uint64("chaos.seed", 0, "seed of TestChaos; 0 for a new one")
)

// chaosTime is what each part of TestChaos takes if it is not told otherwise.
const chaosTime = 3 * time.Second

// campaign is many runs of an agent on one spool, with its ledger.
type campaign struct {
	t        *testing.T
	dir      string
	rand     *rand.Rand
	end      *chaosEndpoint
	certain  bool // nothing happens that the sender cannot be sure of
	marks    bool // the disk may refuse to mark
	sent     int
	lost     int64 // counted by the pipelines, or in memory when one was killed
	vanished int64 // of the newest records, which only the test knows of
	twice    int64 // deliveries that may have been repeated
	spooled  int64 // at the end of the run before
	rounds   int
	kills    int
	unmarked int64
	damaged  bool // files were, after the run before
	clock    *wallClock
}

// TestChaos runs an agent again and again on one spool, with everything going
// wrong: the endpoint, the disk, the end of the process, the files, the clock. Each time
// it starts; at the end each span has arrived once, or is counted.
func TestChaos(t *testing.T) {
	seed := *chaosSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-chaos.seed=%d", seed)
	clock := openWallClock(t)
	modes := []string{"certain answers", "doubtful answers", "doubtful answers and marks"}
	for i, mode := range modes {
		t.Run(mode, func(t *testing.T) {
			c := &campaign{t: t, dir: t.TempDir(), certain: mode == "certain answers", marks: strings.HasSuffix(mode, "marks"),
				rand: rand.New(rand.NewPCG(seed, uint64(2*i))), clock: clock}
			c.end = &chaosEndpoint{rand: rand.New(rand.NewPCG(seed, uint64(2*i+1))), kinds: allKinds, open: map[int]bool{}, clock: clock}
			if c.certain {
				c.end.kinds = takesAndHangs
			}
			c.run((*chaosRounds + len(modes) - 1) / len(modes))
			c.check()
		})
	}
}

// settled rounds are behind the first peak of memory.
const settledRounds = 10

// run does the rounds, and compares what the process holds at the end with what it held
// near the beginning.
func (c *campaign) run(rounds int) {
	var before held
	round, began := 0, time.Now()
	for ; round < rounds || *chaosRounds == 0 && time.Since(began) < chaosTime; round++ {
		synctest.Test(c.t, func(t *testing.T) { c.round(t, round, false) })
		if round == settledRounds {
			before = c.holds()
		}
		if c.t.Failed() {
			c.t.Fatalf("in round %d", round)
		}
	}
	synctest.Test(c.t, func(t *testing.T) { c.round(t, round, true) })
	if after := c.holds(); before.heap != 0 {
		c.t.Logf("after %d rounds %v, after %d rounds %v", settledRounds, before, round, after)
		if after.heap > before.heap+4<<20 || after.files > before.files+2 || after.goroutines > before.goroutines+2 {
			c.t.Errorf("it grows")
		}
	}
}

// diskFault makes operations fail at random, for a while.
func (c *campaign) diskFault() func(string) error {
	r := rand.New(rand.NewPCG(c.rand.Uint64(), 3))
	why := []error{syscall.ENOSPC, syscall.EROFS, syscall.EIO}[r.IntN(3)]
	ops := map[string]bool{"write": r.IntN(2) == 0, "create": r.IntN(3) == 0, "sync": r.IntN(3) == 0, "truncate": r.IntN(3) == 0, "read": r.IntN(4) == 0}
	start := true
	ops["mark"] = c.marks && r.IntN(4) == 0
	return func(op string) error {
		if op == "list" { // the spool is being opened
			start = true
		} else if op == "create" || op == "write" {
			start = false
		}
		if ops[op] && !(start && op == "read") && r.IntN(2) == 0 {
			return why
		}
		return nil
	}
}

// round is one run of the agent.
func (c *campaign) round(t *testing.T, round int, last bool) {
	c.end.calm = last
	c.rounds++
	var fault func(string) error
	if !last && c.rand.IntN(3) == 0 {
		fault = c.diskFault()
	}
	c.clock.jump(c.rand) // while there was no agent
	p, disk, _ := newSpoolPipeline(t, c.end, c.dir, fault, func(cfg *config.Config) {
		cfg.Export.BatchSize = 20
		cfg.Export.SpoolSize = 1 << 20
		cfg.Export.RetryFor = time.Duration(c.rand.IntN(60)) * time.Second
	})
	start := p.Stats().Signals["traces"]
	// Damage to the newest record makes it vanish; damage to the mark of one
	// that was sent makes it come back, to be counted as lost.
	gone := c.spooled - start.Restored
	if (gone > 0 || gone < -c.unmarked) && !c.damaged {
		t.Errorf("%d items were in the spool, %d are: %+v", c.spooled, start.Restored, p.Stats().Spool)
	}
	c.vanished += gone
	done := make(chan error, 1)
	go func() { done <- p.Run(t.Context()) }()
	if last {
		time.Sleep(time.Hour)
	} else {
		c.load(p)
	}
	if kill := !last && c.rand.IntN(2) == 0; kill {
		c.kill(p, disk)
	} else if err := p.Shutdown(t.Context()); err != nil && fault == nil {
		t.Errorf("shutdown: %v", err)
	} else {
		c.book(balanced(t, p, "traces"), p)
	}
	<-done
	if !last {
		c.damage()
	}
}

// load sends spans for some minutes.
func (c *campaign) load(p *Pipeline) {
	for range 1 + c.rand.IntN(40) {
		n := 1 + c.rand.IntN(100)
		if c.rand.IntN(40) == 0 {
			n = 20_000 // a third of what the spool takes
		}
		spans := named(c.sent, n)
		c.sent += n
		c.end.expect(c.sent)
		p.Spans(spans)
		if c.rand.IntN(10) == 0 {
			c.clock.jump(c.rand)
		}
		time.Sleep(time.Duration(c.rand.IntN(10_000)) * time.Millisecond)
		balanced(c.t, p, "traces")
		if age := p.Stats().Spool.OldestAge; age < 0 {
			c.t.Errorf("the spool is %v s old", age)
		}
	}
}

// kill ends the run as SIGKILL would, at a moment when nothing moves: what hangs
// goes on to hang.
func (c *campaign) kill(p *Pipeline, disk *spooltest.Disk) {
	synctest.Wait()
	s := balanced(c.t, p, "traces")
	c.kills++
	c.book(s, p)
	c.lost += s.Queued
	c.end.mu.Lock()
	for _, fresh := range c.end.open {
		if fresh {
			c.lost-- // it is in memory, but it has arrived
		}
	}
	c.end.mu.Unlock()
	disk.Kill()
	p.abandon()
}

func (c *campaign) book(s SignalStats, p *Pipeline) {
	c.lost += s.LostTotal()
	c.spooled = s.Spooled
	c.twice += s.MaybeTwice
	c.unmarked += p.Stats().Spool.Unmarked
}

// damage spoils the files between two runs.
func (c *campaign) damage() {
	var err error
	c.damaged = true
	switch c.rand.IntN(7) {
	case 0:
		err = spooltest.FlipBit(c.dir, c.rand)
	case 1:
		err = spooltest.Tear(c.dir, c.rand)
	case 2:
		err = spooltest.Blank(c.dir, c.rand)
	case 3: // no damage
		c.damaged, err = false, spooltest.Redate(c.dir, c.rand)
	default:
		c.damaged = false
	}
	if err != nil {
		c.t.Error(err)
	}
}

// check compares what has arrived with what was counted.
func (c *campaign) check() {
	var missing, silent, again int64 // silent: arrived, but nobody was told
	for i := range c.sent {
		answered, taken := int(c.end.answered[i]), int(c.end.taken[i])
		switch {
		case answered+taken == 0:
			missing++
		case answered == 0:
			silent++
		}
		again += int64(max(answered+taken-1, 0))
	}
	lost := c.lost + c.vanished
	c.t.Logf("%d rounds, %d spans, %d kills, %d jumps of the clock: %d missing, %d counted as lost (%d of them vanished with the newest record), %d arrived unknown, %d arrived again, %d counted as maybe twice, %d unmarked",
		c.rounds, c.sent, c.kills, c.clock.takeJumps(), missing, lost, c.vanished, silent, again, c.twice, c.unmarked)
	if lost < missing-c.unmarked || lost > missing+silent+c.unmarked {
		c.t.Errorf("%d spans are missing, %d are counted as lost; %d arrived without an answer", missing, lost, silent)
	}
	if again > c.twice+c.unmarked {
		c.t.Errorf("%d deliveries too many, %d counted", again, c.twice+c.unmarked)
	}
	if c.certain && (again > 0 || lost != missing) {
		c.t.Errorf("with certain answers: %d arrived again; %d missing, %d counted", again, missing, lost)
	}
	if c.sent == 0 || missing == int64(c.sent) {
		c.t.Error("nothing has arrived")
	}
}
