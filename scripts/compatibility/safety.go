package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// safety keeps testdata/std under load while it collects garbage all the time, gives
// memory back, grows and shrinks stacks and is profiled 1000 times a second, and attaches
// and detaches two agents side by side. No answer may be wrong, and the program must be
// as fast afterwards as a twin that was left alone. It does so for a usual build and for one with -race.
func safety(ctx context.Context, d time.Duration) error {
	dir, err := os.MkdirTemp("", "safety")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	w := &workshop{dir: dir}
	if err := w.buildAgent(ctx); err != nil {
		return err
	}
	release := strings.TrimPrefix(runtime.Version(), "go")
	for _, k := range []kind{{name: "plain"}, {name: "race", flags: []string{"-race"}, cgo: true}} {
		path, err := w.stdProgram(ctx, build{release, runtime.GOARCH, k})
		if err != nil {
			return err
		}
		if err := w.stress(ctx, path, d/2); err != nil {
			return fmt.Errorf("%s build: %w", k.name, err)
		}
		fmt.Printf("%s build: unharmed\n", k.name)
	}
	return nil
}

// stress is safety for one build.
func (w *workshop) stress(ctx context.Context, path string, d time.Duration) error {
	p, err := startProgram(ctx, path, "-stress")
	if err != nil {
		return err
	}
	l := newLoad(ctx, p.url)
	twin, err := newTwin(ctx, path)
	if err != nil {
		return errors.Join(err, p.stop())
	}
	before, err := twin.compare(ctx, l)
	rounds := 0
	var after []float64
	if err == nil {
		rounds, err = w.attachOften(ctx, p, l, d)
	}
	if err == nil {
		after, err = twin.compare(ctx, l)
	}
	l.stop()
	err = errors.Join(err, l.err(), p.stop(), twin.stop())
	fmt.Printf("%d answers, %d rounds of two agents\n", l.good.Load(), rounds)
	if err != nil {
		return err
	}
	bare := slices.Min(before)
	fmt.Printf("answers for each one of a twin that never had an agent: before %.2f (%.2f to %.2f), after %.2f (%.2f to %.2f)\n",
		median(before), bare, slices.Max(before), median(after), slices.Min(after), slices.Max(after))
	// What the two differ by while both are bare is noise, and up to a half the least that
	// a machine must do to tell anything.
	if limit := max(bare, median(before)/2); median(after) < limit {
		return fmt.Errorf("the program is slower after the agents: %.2f answers for each of its twin, at least %.2f before", median(after), limit)
	}
	return nil
}

// bareTwin is the same program, without an agent. It stands still while nothing is compared.
type bareTwin struct{ *program }

func newTwin(ctx context.Context, path string) (*bareTwin, error) {
	p, err := startProgram(ctx, path, "-stress")
	if err != nil {
		return nil, err
	}
	return &bareTwin{p}, p.cmd.Process.Signal(syscall.SIGSTOP)
}

// compare puts the twin under the same load for a while, and returns how many answers the
// other gave for each one of the twin, some seconds at a time. What else the machine does
// meets both.
func (t *bareTwin) compare(ctx context.Context, other *load) (ratios []float64, err error) {
	if err := t.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		return nil, err
	}
	l := newLoad(ctx, t.url)
	time.Sleep(2 * time.Second)
	for range 11 {
		own, others := l.good.Load(), other.good.Load()
		time.Sleep(2 * time.Second)
		own, others = l.good.Load()-own, other.good.Load()-others
		if own == 0 {
			err = errors.New("the twin has not answered for two seconds, so nothing is proved")
			break
		}
		ratios = append(ratios, float64(others)/float64(own))
	}
	l.stop()
	return ratios, errors.Join(err, l.err(), t.cmd.Process.Signal(syscall.SIGSTOP))
}

func (t *bareTwin) stop() error {
	return errors.Join(t.cmd.Process.Signal(syscall.SIGCONT), t.program.stop())
}

func median(list []float64) float64 { return slices.Sorted(slices.Values(list))[len(list)/2] }

// attachOften starts two agents, one of which is killed and the other asked to end, again
// and again.
func (w *workshop) attachOften(ctx context.Context, p *program, l *load, d time.Duration) (rounds int, err error) {
	const watched = 5 * time.Second
	for end := time.Now().Add(d); time.Now().Before(end) && ctx.Err() == nil; rounds++ {
		a, err := startAgent(ctx, w.agent, p.cmd.Process.Pid)
		if err != nil {
			return rounds, err
		}
		b, err := startAgent(ctx, w.agent, p.cmd.Process.Pid)
		if err != nil {
			return rounds, errors.Join(err, a.stop())
		}
		time.Sleep(watched)
		seen := min(a.seen.Counts().Spans, b.seen.Counts().Spans)
		b.kill()
		if err := a.stop(); err != nil {
			return rounds, fmt.Errorf("an agent: %w", err)
		}
		if seen == 0 {
			return rounds, errors.New("an agent has seen no span, so nothing is proved")
		}
		if err := l.err(); err != nil {
			return rounds, err
		}
	}
	return rounds, ctx.Err()
}

// kill ends the agent at once.
func (a *agent) kill() {
	defer a.sink.Close()
	_ = a.cmd.Process.Kill()
	_ = wait(a.cmd, time.Second)
}

// load sends requests by several clients and checks every answer.
type load struct {
	client http.Client
	cancel context.CancelFunc
	ended  sync.WaitGroup
	good   atomic.Int64

	mu    sync.Mutex
	wrong []error
}

// answers is what testdata/std answers.
var answers = map[string]string{
	"/plain": "plain\n", "/db": "ok\n", "/stmt": "ok\n", "/tx": "ok\n", "/conn": "ok\n", "/goroutine": "ok\n", "/deep": "ok\n",
	"/fail": "no such table\n",
}

func newLoad(ctx context.Context, url string) *load {
	const clients = 4
	l := &load{client: http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: clients}}}
	ctx, l.cancel = context.WithCancel(ctx)
	for range clients {
		l.ended.Go(func() {
			for ctx.Err() == nil {
				for path, want := range answers {
					l.ask(ctx, url+path, want)
				}
			}
		})
	}
	return l
}

func (l *load) ask(ctx context.Context, url, want string) {
	got, err := l.get(ctx, url)
	switch {
	case ctx.Err() != nil: // cut off by the end
	case err == nil && got == want:
		l.good.Add(1)
	default:
		l.mu.Lock()
		defer l.mu.Unlock()
		if len(l.wrong) < 5 {
			l.wrong = append(l.wrong, fmt.Errorf("%s answers %q, want %q (%v)", url, got, want, err))
		}
	}
}

func (l *load) get(ctx context.Context, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	res, err := l.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 1<<16))
	return string(body), err
}

func (l *load) err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.wrong...)
}

func (l *load) stop() {
	l.cancel()
	l.ended.Wait()
}
