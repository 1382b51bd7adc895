package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// quiet is how long the sink must be silent before its spans are counted: more
// than the agent keeps a batch waiting.
const quiet = 1500 * time.Millisecond

// bare is the rate that stands for "no agent".
const bare = -1.0

// sample is one measurement of one path.
type sample struct {
	load
	appCPU   float64 // us a request
	agentCPU float64 // us a request
	got      received
}

// key names what is measured.
type key struct {
	path string
	rate float64 // or bare
}

// result is everything that was measured; what is of one key is in the order of the
// rounds.
type result struct {
	cfg     config
	samples map[key][]sample // at full speed
	steady  map[key][]pair
	traps   map[key]trapCount
	calibration
	firstSpan []time.Duration // from the agent's start to its first request
	rss, peak int64           // highest of the agent, bytes
	// loadBefore is the machine's load average before the run: what was not
	// this benchmark's.
	loadBefore string
	polling    bool // idle cores do not halt
	losses     map[string]float64
}

// trapCount is of one counted run.
type trapCount struct {
	perRequest float64
	nsPerRun   float64
}

type bench struct {
	cfg    config
	dir    string
	script string
	shop   *process // which the agent is to find
	url    string
	// And one that it is not to find.
	bareShop *process
	bareURL  string
	sink     *sink
	res      *result
}

func newBench(ctx context.Context, cfg config) (_ *bench, err error) {
	b := &bench{cfg: cfg, res: &result{cfg: cfg, loadBefore: loadAverage(), samples: map[key][]sample{}, steady: map[key][]pair{}, traps: map[key]trapCount{}, losses: map[string]float64{}}}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.dir, err = os.MkdirTemp("", "bench"); err != nil {
		return nil, fmt.Errorf("make folder: %w", err)
	}
	b.script = filepath.Join(b.dir, "wrk.lua")
	if err := os.WriteFile(b.script, []byte(wrkScript), 0o644); err != nil {
		return nil, fmt.Errorf("write wrk script: %w", err)
	}
	if b.sink, err = startSink(); err != nil {
		return nil, err
	}
	if b.shop, b.url, err = startShop(ctx, cfg, b.dir); err != nil {
		return nil, err
	}
	b.bareShop, b.bareURL, err = startBareShop(ctx, cfg, b.dir)
	return b, err
}

func (b *bench) close() {
	for _, shop := range []*process{b.shop, b.bareShop} {
		if shop != nil {
			shop.stop()
		}
	}
	if b.sink != nil {
		b.sink.close()
	}
	if b.dir != "" {
		_ = os.RemoveAll(b.dir) // a temporary folder
	}
}

// measure takes the rounds: in each, the bare shop and every rate, in an order
// that turns round, so that a slow drift of the machine meets all alike.
func (b *bench) measure(ctx context.Context) (*result, error) {
	conditions := append([]float64{bare}, b.cfg.rates...)
	for round := range b.cfg.rounds {
		for i := range conditions {
			rate := conditions[(i+round)%len(conditions)]
			fmt.Fprintf(os.Stderr, "round %d of %d, %s\n", round+1, b.cfg.rounds, conditionName(rate))
			if err := b.condition(ctx, rate, round == 0); err != nil {
				return nil, fmt.Errorf("%s: %w", conditionName(rate), err)
			}
		}
	}
	return b.res, nil
}

func conditionName(rate float64) string {
	if rate == bare {
		return "bare"
	}
	return fmt.Sprintf("agent at %g", rate)
}

// condition measures every path once, with the agent unless the rate is bare.
func (b *bench) condition(ctx context.Context, rate float64, countTraps bool) error {
	var a *agent
	if rate != bare {
		var err error
		if a, err = b.attach(ctx, rate); err != nil {
			return err
		}
		defer a.stop()
	}
	for _, r := range requests {
		s, err := b.one(ctx, r, a)
		if err != nil {
			return fmt.Errorf("%s: %w", r.path, err)
		}
		k := key{r.path, rate}
		b.res.samples[k] = append(b.res.samples[k], s)
	}
	if a == nil {
		return nil
	}
	if err := b.steady(ctx, rate); err != nil {
		return fmt.Errorf("steady load: %w", err)
	}
	if err := b.readStatus(ctx, a); err != nil {
		return err
	}
	if countTraps {
		return b.countTraps(ctx, a, rate)
	}
	return nil
}

// attach starts the agent beside a trickle of requests and takes the time until
// the first span is out.
func (b *bench) attach(ctx context.Context, rate float64) (*agent, error) {
	first, begin := b.sink.expect(), time.Now()
	trickle, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for trickle.Err() == nil {
			_ = get(trickle, b.url+"/plain") // the measurement itself will tell
			time.Sleep(20 * time.Millisecond)
		}
	}()
	a, err := startAgent(ctx, b.cfg, b.dir, b.sink.url, rate)
	if err != nil {
		return nil, err
	}
	if rate == 1 {
		select {
		case <-first:
			b.res.firstSpan = append(b.res.firstSpan, time.Since(begin))
		case <-time.After(15 * time.Second):
			a.stop()
			return nil, fmt.Errorf("no span within 15 s; the agent says: %s", a.lastWords())
		}
	}
	return a, nil
}

// one measures one path, again if something held the load up.
func (b *bench) one(ctx context.Context, r request, a *agent) (sample, error) {
	for try := 1; ; try++ {
		s, err := b.once(ctx, r, a)
		if err != nil || !s.stalled(b.cfg.duration) {
			return s, err
		}
		if try == 3 {
			return s, fmt.Errorf("three runs of wrk took too long, the last one %.1f s: is something else running?", s.US/1e6)
		}
		fmt.Fprintf(os.Stderr, "%s: wrk took %.1f s; once more\n", r.path, s.US/1e6)
	}
}

// once measures one path: a second to warm up, then the measurement, then the
// wait for the agent to send everything, whose CPU time counts too.
func (b *bench) once(ctx context.Context, r request, a *agent) (sample, error) {
	var s sample
	if _, err := runWrk(ctx, b.cfg, b.script, b.url+r.path, time.Second); err != nil {
		return s, err
	}
	b.sink.settle(b.wait(a))
	if _, err := b.sink.count(); err != nil {
		return s, err
	}
	before, err := b.cpu(a)
	if err != nil {
		return s, err
	}
	if s.load, err = runWrk(ctx, b.cfg, b.script, b.url+r.path, b.cfg.duration); err != nil {
		return s, err
	}
	app, err := b.shop.cpu()
	if err != nil {
		return s, err
	}
	b.sink.settle(b.wait(a))
	after, err := b.cpu(a)
	if err != nil {
		return s, err
	}
	s.appCPU = micros(app-before.app) / float64(s.Requests)
	s.agentCPU = micros(after.agent-before.agent) / float64(s.Requests)
	if a != nil {
		now, peak := a.memory()
		b.res.rss, b.res.peak = max(b.res.rss, now), max(b.res.peak, peak)
	}
	s.got, err = b.sink.count()
	return s, err
}

// wait is how long the sink must be quiet; without an agent nothing comes.
func (b *bench) wait(a *agent) time.Duration {
	if a == nil {
		return 100 * time.Millisecond
	}
	return quiet
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

type cpuTimes struct{ app, agent time.Duration }

func (b *bench) cpu(a *agent) (t cpuTimes, err error) {
	if t.app, err = b.shop.cpu(); err != nil || a == nil {
		return t, err
	}
	t.agent, err = a.cpu()
	return t, err
}

// countTraps loads each path for a second while the kernel counts the runs of
// the agent's programs.
func (b *bench) countTraps(ctx context.Context, a *agent, rate float64) error {
	counting, err := enableCounting()
	if err != nil {
		return err
	}
	defer counting.Close()
	for _, r := range requests {
		before, err := trapsOf(a.pid())
		if err != nil {
			return err
		}
		l, err := runWrk(ctx, b.cfg, b.script, b.url+r.path, time.Second)
		if err != nil {
			return err
		}
		after, err := trapsOf(a.pid())
		if err != nil {
			return err
		}
		runs := float64(after.runs - before.runs)
		b.res.traps[key{r.path, rate}] = trapCount{
			perRequest: runs / float64(l.Requests),
			nsPerRun:   float64(after.time-before.time) / max(runs, 1),
		}
	}
	return nil
}

// readStatus adds up what the agent says it lost, by reason.
func (b *bench) readStatus(ctx context.Context, a *agent) error {
	body, err := fetch(ctx, a.status+"/status")
	if err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	var status any
	if err := json.Unmarshal(body, &status); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	addLosses(status, b.res.losses)
	return nil
}

// addLosses finds the objects "lost" and "losses" wherever they stand, and adds
// their numbers.
func addLosses(v any, sum map[string]float64) {
	switch v := v.(type) {
	case []any:
		for _, e := range v {
			addLosses(e, sum)
		}
	case map[string]any:
		for name, inner := range v {
			reasons, ok := inner.(map[string]any)
			if !ok || (name != "lost" && name != "losses") {
				addLosses(inner, sum)
				continue
			}
			for reason, n := range reasons {
				if n, ok := n.(float64); ok && n > 0 {
					sum[reason] += n
				}
			}
		}
	}
}
