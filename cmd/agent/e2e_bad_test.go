//go:build e2e

package main

import (
	"bytes"
	"debug/elf"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// testBadInput: each gives one clear sentence and a non-zero exit, or a reason
// in /status while the agent stays up.
func (e *e2e) testBadInput(t *testing.T) {
	sleep := startProc(t, "sleep", nil, "sleep", "60")
	hello := e.buildText(t, "hello", "package main\nimport \"time\"\nfunc main() { time.Sleep(time.Minute) }\n", nil)
	hello32 := e.buildText(t, "hello32", "package main\nimport \"time\"\nfunc main() { time.Sleep(time.Minute) }\n", []string{"GOARCH=386"})
	old := filepath.Join(e.dir, "old")
	patchVersion(t, e.shop, old)
	cut := filepath.Join(e.dir, "cut")
	copyFile(t, e.shop, cut)
	if err := os.Truncate(cut, 100_000); err != nil {
		t.Fatal(err)
	}
	text := filepath.Join(e.dir, "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	helloProc, hello32Proc := startProc(t, "hello", nil, hello), startProc(t, "hello32", nil, hello32)
	oldProc := e.startShop(t, old)

	for _, tt := range []struct {
		name string
		args []string
		want []string // all must be in the sentence
	}{
		{"no such process", []string{"--pid", "4194303"}, []string{"4194303", "does not exist"}},
		{"not Go", []string{"--pid", fmt.Sprint(sleep.pid())}, []string{"not", "Go"}},
		{"not Go, by path", []string{"--exe", "/bin/sleep"}, []string{"not", "Go"}},
		{"nothing to instrument", []string{"--pid", fmt.Sprint(helloProc.pid())}, []string{"net/http", "database/sql"}},
		{"32-bit", []string{"--pid", fmt.Sprint(hello32Proc.pid())}, []string{"32"}},
		{"Go before 1.18", []string{"--pid", fmt.Sprint(oldProc.pid())}, []string{"1.17", "1.18"}},
		{"cut ELF file", []string{"--exe", cut}, []string{"cut"}},
		{"not an ELF file", []string{"--exe", text}, []string{"ELF"}},
		{"a folder", []string{"--exe", e.dir}, []string{"directory"}},
		{"the agent itself", []string{"--exe", e.agent}, []string{"agent"}},
		{"nothing named", nil, []string{"--pid", "--exe"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := e.launchAgent(t, nil, tt.args...)
			reason := a.refusal(t)
			for _, want := range tt.want {
				if !strings.Contains(strings.ToLower(reason), strings.ToLower(want)) {
					t.Errorf("%q does not say %q", reason, want)
				}
			}
			if a.seen.Counts().Spans > 0 {
				t.Error("and yet there are spans")
			}
		})
	}
	if !oldProc.running() || !helloProc.running() || !hello32Proc.running() || !sleep.running() {
		t.Error("a process that was refused has died")
	}
	t.Run("does not exist yet", e.testWaits)
	t.Run("dies meanwhile", e.testDiesMeanwhile)
	t.Run("config", e.testBadConfig)
	t.Run("no privileges", e.testUnprivileged)
	t.Run("no token", e.testNoToken)
}

// refusal is the agent's sentence: its last line if it has ended, or the reason
// in /status.
func (w *watcher) refusal(t *testing.T) string {
	t.Helper()
	eventually(t, 20*time.Second, "the agent has ended or is ready", func() bool {
		return !w.running() || statusOf(w.status+"/readyz") == http.StatusOK
	})
	if !w.running() {
		if w.err == nil {
			t.Error("the agent ended with exit status 0")
		}
		lines := strings.Split(strings.TrimSpace(w.output()), "\n")
		if strings.Contains(w.output(), "goroutine ") {
			t.Errorf("the agent crashed:\n%s", w.output())
		}
		return lines[len(lines)-1]
	}
	status, text := w.readStatus(t)
	var reasons []string
	for _, target := range status.Probes.Targets {
		reasons = append(reasons, target.Reason)
	}
	for _, b := range status.Probes.Binaries {
		reasons = append(reasons, b.Reason)
		for _, g := range b.Groups {
			reasons = append(reasons, g.Library+": "+g.Reason)
		}
	}
	w.stop(t)
	all := strings.TrimSpace(strings.Join(reasons, " | "))
	if strings.Trim(all, "| ") == "" {
		t.Errorf("no reason in /status:\n%s", text)
	}
	return all
}

func (e *e2e) buildText(t *testing.T, name, text string, env []string) string {
	t.Helper()
	dir := filepath.Join(e.dir, "src-"+name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, content := range map[string]string{"main.go": text, "go.mod": "module " + name + "\n\ngo 1.22\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return e.build(t, name, dir, env)
}

// patchVersion writes a copy of a Go binary that says it is of Go 1.17.
func patchVersion(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	section := f.Section(".go.buildinfo")
	if section == nil {
		t.Fatal("no .go.buildinfo in the shop")
	}
	info := data[section.Offset : section.Offset+section.FileSize]
	at := bytes.Index(info, []byte("go1."))
	if at < 0 {
		t.Fatal("no version in the shop's build info")
	}
	copy(info[at:], "go1.17")
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

// testWaits: an executable that is not there yet is waited for.
func (e *e2e) testWaits(t *testing.T) {
	path := filepath.Join(e.dir, "later")
	a := e.startAgent(t, "--exe", path)
	if _, text := a.readStatus(t); !strings.Contains(text, "waiting") {
		t.Errorf("/status does not say that it waits:\n%s", text)
	}
	copyFile(t, e.shop, path)
	shop := e.startShop(t, path)
	eventually(t, 10*time.Second, "spans of the process that came later", func() bool {
		statusOf(shop.url + "/plain")
		return a.seen.Counts().Spans > 0
	})
	a.finish(t)
}

// testDiesMeanwhile kills the target at many points of the attaching.
func (e *e2e) testDiesMeanwhile(t *testing.T) {
	for i := range 8 {
		shop := e.startShop(t, e.shop)
		a := e.launchAgent(t, nil, "--pid", fmt.Sprint(shop.pid()))
		time.Sleep(time.Duration(i*15) * time.Millisecond)
		shop.kill()
		eventually(t, 20*time.Second, "the agent has ended or is ready", func() bool {
			return !a.running() || statusOf(a.status+"/readyz") == http.StatusOK
		})
		if strings.Contains(a.output(), "goroutine ") {
			t.Fatalf("the agent crashed:\n%s", a.output())
		}
		if a.running() {
			a.stop(t)
		}
	}
}

// testBadConfig: all mistakes are told at once.
func (e *e2e) testBadConfig(t *testing.T) {
	file := filepath.Join(e.dir, "bad.yaml")
	if err := os.WriteFile(file, []byte("traces:\n  sample_rate: 2\nexprot:\n  url: x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a := e.launchAgent(t, []string{"PLAIN_CLOUD_EXPORT_URL=not a url"}, "--config", file, "--pid", "1")
	if !a.ends(10*time.Second) || a.err == nil {
		t.Fatalf("the agent did not refuse: %v\n%s", a.err, a.output())
	}
	for _, want := range []string{"exprot", "sample_rate", "PLAIN_CLOUD_EXPORT_URL"} {
		if !strings.Contains(a.output(), want) {
			t.Errorf("%q is not in:\n%s", want, a.output())
		}
	}
	if strings.Contains(a.output(), testToken) {
		t.Error("the token is in the output")
	}
}

// testUnprivileged: a user without capabilities is told what is missing.
func (e *e2e) testUnprivileged(t *testing.T) {
	shop := e.startShop(t, e.shop)
	cmd := exec.Command(e.agent, "run", "--pid", fmt.Sprint(shop.pid()), "--status", "")
	cmd.Env = []string{"PLAIN_CLOUD_EXPORT_TOKEN=x", "PLAIN_CLOUD_EXPORT_URL=http://127.0.0.1:9"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}} // nobody
	p := startCmd(t, "agent", cmd)
	if !p.ends(10*time.Second) || p.err == nil {
		t.Fatalf("the agent did not refuse: %v\n%s", p.err, p.output())
	}
	if !strings.Contains(p.output(), "CAP_") && !strings.Contains(p.output(), "root") {
		t.Errorf("no capability is named:\n%s", p.output())
	}
	if n := strings.Count(strings.TrimSpace(p.output()), "\n"); n > 2 {
		t.Errorf("%d lines are not one sentence:\n%s", n+1, p.output())
	}
}

// testNoToken: the agent is a no-op that is healthy, attaches nothing, and says
// so once.
func (e *e2e) testNoToken(t *testing.T) {
	shop := e.startShop(t, e.shop)
	a := e.launchAgent(t, []string{"PLAIN_CLOUD_EXPORT_TOKEN="}, "--exe", e.shop)
	a.waitReady(t)
	if code := statusOf(a.status + "/healthz"); code != http.StatusOK {
		t.Errorf("/healthz answers %d", code)
	}
	for range perPath {
		statusOf(shop.url + "/items/7")
	}
	if n := patched(t, shop.pid()); n != 0 {
		t.Errorf("%d traps in the shop", n)
	}
	if n := strings.Count(a.output(), "no token"); n != 1 || !strings.Contains(a.output(), "PLAIN_CLOUD_EXPORT_TOKEN") {
		t.Errorf("the missing token is mentioned %d times:\n%s", n, a.output())
	}
	if spans := a.finish(t); len(spans) > 0 {
		t.Errorf("%d spans without a token", len(spans))
	}
}
