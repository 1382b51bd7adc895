package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// safety keeps testdata/std under load while it collects garbage all the time, gives
// memory back, grows and shrinks stacks and is profiled 1000 times a second, and attaches
// and detaches two agents side by side. No answer may be wrong, and the program must be
// as fast afterwards as before. It does so for a usual build and for one with -race.
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
	before := l.rate(3 * time.Second)
	rounds, err := w.attachOften(ctx, p, l, d)
	after := l.rate(3 * time.Second)
	l.stop()
	err = errors.Join(err, l.err(), p.stop())
	fmt.Printf("%d answers, %d rounds of two agents; %.0f answers a second before, %.0f after\n", l.good.Load(), rounds, before, after)
	if after < before/10 { // other work of the machine makes the rest
		err = errors.Join(err, fmt.Errorf("%.0f answers a second before the agents, %.0f after them", before, after))
	}
	return err
}

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

// rate is how many good answers come in a second.
func (l *load) rate(d time.Duration) float64 {
	from := l.good.Load()
	time.Sleep(d)
	return float64(l.good.Load()-from) / d.Seconds()
}

func (l *load) stop() {
	l.cancel()
	l.ended.Wait()
}
