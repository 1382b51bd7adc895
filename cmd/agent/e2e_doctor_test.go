//go:build e2e

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/internal/probes"
)

// testDoctor: what the dry run says is what the agent does, and attaches nothing.
func (e *e2e) testDoctor(t *testing.T) {
	t.Run("caddy", func(t *testing.T) {
		d := e.doctor(t, true, "--exe", caddy)
		got := d.Targets[0]
		if got.State != "instrumented" || got.Go != "go1.19.8" || !got.Stripped || got.PIE || got.Arch != "amd64" {
			t.Errorf("%+v", got)
		}
		e.sameAsAgent(t, got)
		e.text(t, caddy, "would be instrumented", "built with go1.19.8", "runtime goroutines: would be seen",
			"os stderr: would be seen", "1 of 1 executables")
	})
	t.Run("exporter", func(t *testing.T) {
		got := e.doctor(t, true, "--exe", exporter).Targets[0]
		if got.State != "instrumented" || !got.Stripped || len(got.Operations) < 3 {
			t.Errorf("%+v", got)
		}
		e.sameAsAgent(t, got)
	})
	t.Run("stripped Go 1.27", func(t *testing.T) {
		path := e.build(t, "target127", "../../internal/probes/testdata/target", []string{"GOTOOLCHAIN=go1.27.4"}, "-ldflags=-s -w", "-buildmode=pie")
		got := e.doctor(t, true, "--exe", path).Targets[0]
		if got.State != "instrumented" || got.Go != "go1.27.4" || !got.Stripped || !got.PIE {
			t.Errorf("%+v", got)
		}
		e.sameAsAgent(t, got)
	})
	t.Run("C program", func(t *testing.T) {
		d := e.doctor(t, false, "--exe", "/bin/sleep")
		if got := d.Targets[0]; got.State != "refused" || !strings.HasPrefix(got.Reason, "not a Go executable") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("none of the libraries", func(t *testing.T) {
		gofmt, err := exec.LookPath("gofmt")
		if err != nil {
			t.Fatal(err)
		}
		if got := e.doctor(t, false, "--exe", gofmt).Targets[0]; got.State != "refused" || !strings.HasPrefix(got.Reason, "nothing to instrument") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("no such file", func(t *testing.T) {
		if got := e.doctor(t, false, "--exe", "/none").Targets[0]; !strings.Contains(got.Reason, "no such file") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("no such process", func(t *testing.T) {
		if got := e.doctor(t, false, "--pid", "4194303").Targets[0]; !strings.Contains(got.Reason, "does not exist") {
			t.Errorf("%+v", got)
		}
	})
	t.Run("processes", e.testDoctorProcesses)
	t.Run("no capabilities", e.testDoctorUnprivileged)
	t.Run("traps", e.testDoctorTraps)
}

// testDoctorProcesses: two processes of a binary are one target, and stay as they are.
func (e *e2e) testDoctorProcesses(t *testing.T) {
	one, two := e.startShop(t, e.shop), e.startShop(t, e.shop)
	for _, args := range [][]string{{"--all"}, {"--pid", fmt.Sprint(one.pid()), "--pid", fmt.Sprint(two.pid())}, {"--exe", e.shop}} {
		found := false
		for _, got := range e.doctor(t, true, args...).Targets {
			if got.Exe == e.shop {
				found = true
				if pids := fmt.Sprint(got.PIDs); got.State != "instrumented" || !strings.Contains(pids, fmt.Sprint(one.pid())) || !strings.Contains(pids, fmt.Sprint(two.pid())) {
					t.Errorf("%v: %+v", args, got)
				}
			}
		}
		if !found {
			t.Errorf("%v: the shop is not among the targets", args)
		}
	}
	for rules, instruments := range map[string]bool{
		"all: true": true, "include: [{exe: '*/shop'}]": true, "include: [{exe: '*/other'}]": false, "{all: true, exclude: [{exe: '*/shop'}]}": false,
	} {
		file := filepath.Join(e.dir, "doctor.yaml")
		if err := os.WriteFile(file, []byte("targets:\n  "+rules+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		got := e.doctor(t, instruments, "--pid", fmt.Sprint(one.pid()), "--config", file).Targets[0]
		if !instruments && !strings.HasSuffix(got.Reason, "by a rule") {
			t.Errorf("%s: %+v", rules, got)
		}
	}
	if n := patched(t, one.pid()); n > 0 {
		t.Errorf("%d traps in the shop", n)
	}
}

// testDoctorUnprivileged: what the host forbids is named, and the binary looked at all the
// same.
func (e *e2e) testDoctorUnprivileged(t *testing.T) {
	cmd := exec.Command(e.agent, "doctor", "--json", "--exe", e.shop)
	asUser(cmd, nobody, []uintptr{unix.CAP_BPF})
	out, err := cmd.Output()
	var d probes.Diagnosis
	if jsonErr := json.Unmarshal(out, &d); err == nil || jsonErr != nil {
		t.Fatalf("exit %v, %v:\n%s", err, jsonErr, out)
	}
	said := ""
	for _, c := range d.Host {
		if c.Name == "capabilities" {
			said = c.State + ": " + c.Found
		}
	}
	if want := "failed: CAP_BPF; missing CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH"; said != want {
		t.Errorf("capabilities %q, want %q", said, want)
	}
	if d.Instruments != 0 || len(d.Targets) != 1 || d.Targets[0].State != "instrumented" {
		t.Errorf("the binary is not looked at: %+v", d)
	}
}

// testDoctorTraps: requests pass as many traps as were foretold.
func (e *e2e) testDoctorTraps(t *testing.T) {
	counting, err := ebpf.EnableStats(unix.BPF_STATS_RUN_TIME)
	if err != nil {
		t.Fatal(err)
	}
	defer counting.Close()
	foretold := 0
	for _, op := range e.doctor(t, true, "--exe", e.shop).Targets[0].Operations {
		if op.Library != "net/http/client" && (op.Name == "request" || op.Name == "query") {
			foretold += op.Traps + op.Sometimes // the route's, which is attached at first
		}
	}
	shop := e.startShop(t, e.shop)
	a := e.startAgent(t, "--pid", fmt.Sprint(shop.pid()))
	const requests = 500 // each with one query
	before := trapsOf(t, a.pid())
	load(t, shop.url, requests, func(int) string { return "/items/3" })
	traps := trapsOf(t, a.pid()) - before
	// Besides, each of the connections ends, and stacks grow.
	if want := uint64(requests * foretold); traps < want || traps > want+want/10 {
		t.Errorf("%d traps of %d requests with a query each; %d were foretold", traps, requests, want)
	}
	t.Logf("%d traps, %d foretold for each request", traps, foretold)
	a.finish(t)
}

// trapsOf is how often the uprobe programs that a process holds have run.
func trapsOf(t *testing.T, pid int) (runs uint64) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[ebpf.ProgramID]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		_, rest, ok := strings.Cut(string(text), "prog_id:")
		if err != nil || !ok {
			continue
		}
		var id ebpf.ProgramID
		if _, err := fmt.Sscan(rest, &id); err != nil || seen[id] {
			continue
		}
		seen[id] = true
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		stats, err := p.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if p.Type() == ebpf.Kprobe { // which uprobes are to the kernel
			runs += stats.RunCount
		}
		p.Close()
	}
	return runs
}

// doctor runs a dry run, and checks its exit status.
func (e *e2e) doctor(t *testing.T, instruments bool, args ...string) *probes.Diagnosis {
	t.Helper()
	cmd := exec.Command(e.agent, append([]string{"doctor", "--json"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); (err == nil) != instruments {
		t.Fatalf("%v: exit %v\n%s%s", args, err, stderr.String(), stdout.String())
	}
	if !instruments && stderr.String() != "agent: nothing would be instrumented\n" {
		t.Errorf("%v says on stderr:\n%s", args, stderr.String())
	}
	var d probes.Diagnosis
	if err := json.Unmarshal(stdout.Bytes(), &d); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, stdout.String())
	}
	if (d.Instruments > 0) != instruments || len(d.Targets) == 0 {
		t.Fatalf("%v: %s", args, stdout.String())
	}
	for _, c := range d.Host {
		if c.State == "failed" {
			t.Errorf("the host: %+v", c)
		}
	}
	for _, target := range d.Targets {
		if target.State == "refused" && target.Reason == "" {
			t.Errorf("no reason: %+v", target)
		}
	}
	return &d
}

// text runs a dry run for people.
func (e *e2e) text(t *testing.T, exe string, want ...string) {
	t.Helper()
	out, err := exec.Command(e.agent, "doctor", "--exe", exe).Output()
	if err != nil {
		t.Errorf("exit %v", err)
	}
	for _, w := range want {
		if !strings.Contains(string(out), w) {
			t.Errorf("%q is not in:\n%s", w, out)
		}
	}
}

// sameAsAgent compares with what a running agent says of the same binary.
func (e *e2e) sameAsAgent(t *testing.T, d probes.TargetDiagnosis) {
	t.Helper()
	a := e.startAgent(t, "--exe", d.Exe)
	status, _ := a.readStatus(t)
	a.finish(t)
	if b := status.Probes.Binaries; len(b) != 1 || !reflect.DeepEqual(b[0].Groups, d.Groups) || b[0].GoVersion != d.Go {
		t.Errorf("the agent says\n%+v\nand the doctor\n%+v", b, d.Groups)
	}
}
