package main

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/config"
)

func (f *fakeProbes) changes() []config.Config {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]config.Config(nil), f.changed...)
}

func soon(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// TestReload: a signal or a changed file puts new settings in force, those that can
// change; wrong ones change nothing, and the agent says so.
func TestReload(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("")
	r := newTestRun(t, nil)
	base, reloads := r.cfg, make(chan os.Signal, 1)
	var mu sync.Mutex
	next, loadErr := base, error(nil)
	set := func(cfg config.Config, err error) {
		mu.Lock()
		defer mu.Unlock()
		next, loadErr = cfg, err
	}
	r.file, r.fileSeen, r.reloads = file, fileState(file), reloads
	r.load = func() (config.Config, error) {
		mu.Lock()
		defer mu.Unlock()
		return next, loadErr
	}
	url, end := r.begin(t)
	waitFor(t, url, `"active"`)

	reloads <- syscall.SIGHUP
	soon(t, "no change is noticed", func() bool { return strings.Contains(r.output(), "no setting has changed") })

	changed := base
	changed.Traces.SampleRate, changed.Export.URL = 0.5, "http://elsewhere"
	set(changed, nil)
	reloads <- syscall.SIGHUP
	soon(t, "the rate is in force", func() bool { c := r.probes.changes(); return len(c) == 1 && c[0].Traces.SampleRate == 0.5 })
	soon(t, "the log says what is not", func() bool {
		return strings.Contains(r.output(), "started again\" settings=export.url") && strings.Contains(r.output(), "now=traces.sample_rate")
	})
	if got := r.probes.changes()[0].Export.URL; got != base.Export.URL {
		t.Errorf("the endpoint is %s now", got)
	}

	set(config.Config{}, errors.New("traces.sample_rate is 7"))
	write("traces: {sample_rate: 7}\n")
	soon(t, "the error is said", func() bool { return strings.Contains(r.output(), "traces.sample_rate is 7") })

	changed.Targets.PIDs = nil
	set(changed, nil)
	write("# no targets\n\n")
	soon(t, "that there are no targets is said", func() bool { return strings.Contains(r.output(), "nothing to instrument") })
	if n := len(r.probes.changes()); n != 1 {
		t.Errorf("%d changes", n)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
}

// TestNotify is systemd's side of the protocol.
func TestNotify(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notify")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	t.Setenv("WATCHDOG_USEC", "100000")
	t.Setenv("WATCHDOG_PID", "")
	told := make(chan string, 1000)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := socket.Read(buf)
			if err != nil {
				close(told)
				return
			}
			told <- string(buf[:n])
		}
	}()
	next := func(skip string) string {
		t.Helper()
		for {
			select {
			case s := <-told:
				if s != skip {
					return s
				}
			case <-time.After(5 * time.Second):
				t.Fatal("systemd is told nothing")
			}
		}
	}
	r := newTestRun(t, nil)
	reloads := make(chan os.Signal, 1)
	r.notify, r.reloads, r.load = &notifier{r.logger}, reloads, func() (config.Config, error) { return r.cfg, nil }
	_, end := r.begin(t)
	if got := next("WATCHDOG=1"); got != "READY=1" {
		t.Errorf("first told %q", got)
	}
	pings := 0
	for range 3 {
		if next("") == "WATCHDOG=1" {
			pings++
		}
	}
	if pings != 3 {
		t.Errorf("%d pings", pings)
	}
	reloads <- syscall.SIGHUP
	if got := next("WATCHDOG=1"); !strings.HasPrefix(got, "RELOADING=1\nMONOTONIC_USEC=") {
		t.Errorf("told %q", got)
	}
	if got := next("WATCHDOG=1"); got != "READY=1" {
		t.Errorf("told %q", got)
	}
	if err := end(); err != nil {
		t.Error(err)
	}
	if got := next("WATCHDOG=1"); got != "STOPPING=1" {
		t.Errorf("last told %q", got)
	}
}
