//go:build e2e

package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/plainframework/agent/internal/observer"
)

const dockerRegistry = "/usr/bin/docker-registry"

// realRequests are sent to each program; each of them is logged.
const realRequests = 20

// testRealLogs compares the records of programs of Debian with the lines that stand on
// their standard error: zap in Caddy, logrus in Docker's registry.
func (e *e2e) testRealLogs(t *testing.T) {
	t.Run("caddy", func(t *testing.T) {
		address, home := freeAddress(t), t.TempDir()
		config := filepath.Join(home, "Caddyfile")
		text := "{\n admin off\n auto_https off\n}\nhttp://" + address + " {\n log {\n  output stderr\n  format json\n }\n respond \"hello\"\n}\n"
		writeConfig(t, config, text)
		cmd := exec.Command(caddy, "run", "--config", config, "--adapter", "caddyfile")
		cmd.Env = append(os.Environ(), "HOME="+home, "XDG_CONFIG_HOME="+home, "XDG_DATA_HOME="+home)
		e.testRealLog(t, cmd, "http://"+address+"/", "msg")
	})
	t.Run("registry", func(t *testing.T) {
		address, home := freeAddress(t), t.TempDir()
		config := filepath.Join(home, "config.yml")
		writeConfig(t, config, "version: 0.1\nlog:\n  formatter: json\nstorage:\n  filesystem:\n    rootdirectory: "+home+"\nhttp:\n  addr: "+address+"\n")
		e.testRealLog(t, exec.Command(dockerRegistry, "serve", config), "http://"+address+"/v2/", "msg")
	})
}

func writeConfig(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (e *e2e) testRealLog(t *testing.T, cmd *exec.Cmd, url, message string) {
	path := filepath.Join(t.TempDir(), "stderr")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	none, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := startCmdTo(t, filepath.Base(cmd.Path), cmd, none, file)
	eventually(t, 20*time.Second, "it answers", func() bool { return statusOf(url) == http.StatusOK })
	w := e.launchAgent(t, []string{"PLAIN_CLOUD_LOG_LEVEL=DEBUG"}, "--pid", fmt.Sprint(p.pid()))
	w.waitReady(t)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for range realRequests {
		statusOf(url)
	}
	awaitLogs(t, w, realRequests)
	w.noLosses(t)
	w.stop(t)
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(after[len(before):]), "\n"), "\n")
	records := w.seen.Logs()
	if len(lines) != len(records) {
		t.Fatalf("%d lines on standard error, %d records", len(lines), len(records))
	}
	spans := bySpanID(w.seen.Spans())
	current := 0
	for i, line := range lines {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		l := records[i]
		if l.Body != fields[message] || l.Severity != logSeverities[strings.TrimSuffix(fmt.Sprint(fields["level"]), "ing")] {
			t.Errorf("record %q severity %d of line %s", l.Body, l.Severity, line)
		}
		compareFields(t, l.Attrs, fields)
		if span, ok := spans[l.SpanID]; ok && span.TraceID == l.TraceID {
			current++
		}
	}
	if current < realRequests {
		t.Errorf("%d of %d records have the span of a request", current, len(records))
	}
}

// compareFields: what a line has beside message, level and time is in the attributes,
// whatever the agent's names for it.
func compareFields(t *testing.T, attrs observer.Attrs, fields map[string]any) {
	t.Helper()
	for key, want := range fields {
		switch key {
		case "msg", "level", "ts", "time", "logger", "caller":
			continue
		}
		got, ok := attrs[key]
		if _, nested := want.(map[string]any); nested || !ok {
			if !ok {
				t.Errorf("attribute %s is missing: %v", key, attrs)
			}
			continue
		}
		if number, is := want.(float64); is {
			if fmt.Sprint(got) != fmt.Sprint(number) {
				t.Errorf("attribute %s is %v, not %v", key, got, want)
			}
		} else if s, is := want.(string); is && got != s {
			t.Errorf("attribute %s is %v, not %q", key, got, s)
		}
	}
}
