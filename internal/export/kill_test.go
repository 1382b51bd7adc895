package export

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes/event"
)

// victimVariable makes the test binary an agent that is to be killed: it sends
// spans to the URL that the variable holds, with the spool and the first span's
// number behind it, and says how many are spooled.
const victimVariable = "EXPORT_TEST_VICTIM"

func victim() {
	var url, dir string
	var first int
	fmt.Sscanf(os.Getenv(victimVariable), "%s %s %d", &url, &dir, &first)
	cfg := config.Default()
	cfg.Export.URL, cfg.Export.Token, cfg.Export.SpoolDir = url, testToken, dir
	cfg.Export.BatchDelay = 10 * time.Millisecond
	p, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("error", err)
		return
	}
	go p.Run(context.Background())
	for i := range 1000 {
		p.Spans(named(first+i, 1))
		time.Sleep(5 * time.Millisecond)
		s := p.Stats().Signals["traces"]
		fmt.Println("spooled", s.Spooled-s.Restored, s.Queued)
	}
}

// TestSIGKILL kills a real process while its endpoint is down, twice: what it
// has said was spooled arrives, once.
func TestSIGKILL(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	rc := &receiver{answer: func(http.ResponseWriter, *http.Request, []byte) int {
		if down.Load() {
			return 503
		}
		return 200
	}}
	srv := httptest.NewServer(rc)
	defer srv.Close()
	dir := t.TempDir()
	var spooled, unknown int
	for run := range 2 {
		s, q := killed(t, fmt.Sprint(srv.URL, " ", dir, " ", run*1000))
		spooled, unknown = spooled+s, unknown+q
	}
	nowhere(t, dir, testToken)
	down.Store(false)
	cfg := config.Default()
	cfg.Export.URL, cfg.Export.Token, cfg.Export.SpoolDir = srv.URL, testToken, dir
	p, err := New(cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	restored := p.Stats().Signals["traces"].Restored
	stop := start(t, p)
	p.Spans([]event.Span{named(9999, 1)[0]})
	for deadline := time.Now().Add(10 * time.Second); p.Stats().Signals["traces"].Spooled > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	stop()
	arrived(t, rc, int(restored)+1)
	// A batch may have gone to the disk after the process has last said so.
	if spooled < 100 || int(restored) < spooled || int(restored) > spooled+unknown+2*cfg.Export.BatchSize {
		t.Errorf("%d were spooled and %d on their way, %d were found", spooled, unknown, restored)
	}
	expect(t, p, "traces", restored+1, restored+1, map[string]int64{})
	t.Logf("%d spooled, %d on their way at the kill, %d restored", spooled, unknown, restored)
}

// killed runs a victim until it has spooled something, kills it, and returns
// what it said last.
func killed(t *testing.T, args string) (spooled, queued int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), victimVariable+"="+args)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	lines := bufio.NewScanner(out)
	for dead := false; lines.Scan(); {
		var s, q int
		if n, _ := fmt.Sscanf(lines.Text(), "spooled %d %d", &s, &q); n != 2 {
			if !dead || !strings.HasPrefix("spooled", lines.Text()) {
				t.Errorf("the victim says %q", lines.Text())
			}
			continue
		}
		spooled, queued = s, q
		if spooled >= 100 && !dead {
			dead = true
			cmd.Process.Kill()
		}
	}
	return spooled, queued
}
