package logtext

import (
	"bufio"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/plainframework/agent/internal/probes/event"
)

var update = flag.Bool("update", false, "write what the tests get into the golden files")

// capture is what a real program wrote to standard error, write by write; see
// testdata/producers.
type capture struct {
	start  int64
	writes []string
}

func readCapture(t testing.TB, name string) capture {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var c capture
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if c.start == 0 {
			c.start, err = strconv.ParseInt(sc.Text(), 10, 64)
		} else {
			var s string
			s, err = strconv.Unquote(sc.Text())
			c.writes = append(c.writes, s)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if sc.Err() != nil || len(c.writes) == 0 {
		t.Fatalf("%s: no writes, %v", name, sc.Err())
	}
	return c
}

// TestGolden feeds what the libraries really write, and compares the records.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/golden/*.writes")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".writes"), func(t *testing.T) {
			c := readCapture(t, file)
			a := New(Options{})
			var b strings.Builder
			emit := func(l event.Log) { b.WriteString(show(l, c.start)) }
			now := c.start
			for _, w := range c.writes {
				now += 1000
				a.Write(Chunk{Time: now, Writer: 1, Data: []byte(w)}, emit)
			}
			a.Close(now, emit)
			want := strings.TrimSuffix(file, ".writes") + ".records"
			if *update {
				if err := os.WriteFile(want, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			golden, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			if got := b.String(); got != string(golden) {
				t.Errorf("records differ from %s\n got:\n%s\nwant:\n%s", want, got, golden)
			}
		})
	}
}

// show writes a record for people and for comparison.
func show(l event.Log, start int64) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %q", l.Severity, l.SeverityText)
	if l.Time != 0 {
		fmt.Fprintf(&b, " at %s", time.Unix(0, l.Time).UTC().Format("2006-01-02T15:04:05.999999999Z"))
		if d := time.Duration(l.Time - start); d < -2*time.Second || d > 2*time.Minute {
			fmt.Fprintf(&b, " WRONG BY %v", d)
		}
	}
	if l.TraceID.IsValid() {
		fmt.Fprintf(&b, " trace %s span %s", l.TraceID, l.SpanID)
	}
	fmt.Fprintf(&b, "\n  body %q\n", l.Body)
	for _, kv := range l.Attributes {
		if kv.Key != "log.iostream" {
			fmt.Fprintf(&b, "  %s = %s\n", kv.Key, showValue(kv.Value))
		}
	}
	return b.String()
}

func showValue(v attribute.Value) string {
	switch v.Type() {
	case attribute.STRING:
		return strconv.Quote(v.AsString())
	case attribute.MAP:
		var parts []string
		for _, kv := range v.AsMap() {
			parts = append(parts, string(kv.Key)+": "+showValue(kv.Value))
		}
		return "{" + strings.Join(parts, ", ") + "}"
	case attribute.SLICE:
		var parts []string
		for _, e := range v.AsSlice() {
			parts = append(parts, showValue(e))
		}
		return "[" + strings.Join(parts, ", ") + "]"
	}
	return fmt.Sprintf("%v %s", v.Type(), v.String())
}
