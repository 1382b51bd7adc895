package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/plainframework/agent/internal/probes/gobin/gobintest"
)

// buildAgent builds the agent that programs are run under.
func (w *workshop) buildAgent(ctx context.Context) error {
	w.agent = w.path("agent")
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", w.agent, "./cmd/agent")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	return output(cmd, "build the agent")
}

// output runs a command; what it prints becomes part of the error.
func output(cmd *exec.Cmd, what string) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", what, err, lastLines(out.String(), 6))
	}
	return nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " / ")
}

// stdProgram builds testdata/std, as a user of the release would: its go.mod names that
// release, which from 1.21 on also decides how the library behaves.
func (w *workshop) stdProgram(ctx context.Context, b build) (string, error) {
	language := b.minor()
	if b.kind.language > 0 {
		language = b.kind.language
	}
	src := w.path("std-1." + strconv.Itoa(language))
	if err := module(src, "scripts/compatibility/testdata/std", language); err != nil {
		return "", err
	}
	out := w.path("program-" + b.kind.name)
	args := append([]string{"build", "-o", out}, b.kind.flags...)
	if b.kind.ldflags != "" {
		args = append(args, "-ldflags="+b.kind.ldflags)
	}
	if b.kind.profile {
		if err := w.takeProfile(ctx); err != nil {
			return "", err
		}
		args = append(args, "-pgo="+w.profile)
	}
	cmd := exec.CommandContext(ctx, "go", append(args, ".")...)
	cmd.Dir, cmd.Env = src, b.environment()
	return out, output(cmd, "go build")
}

func (b build) environment() []string {
	env := append(os.Environ(), "GOTOOLCHAIN="+gobintest.Toolchain(b.release), "GOOS=linux", "GOARCH="+b.arch,
		"GOFLAGS=-buildvcs=false", "GOWORK=off", "CGO_ENABLED=0")
	if b.kind.cgo {
		env = append(env, "CGO_ENABLED=1")
		if !b.runsHere() {
			env = append(env, "CC="+map[string]string{"amd64": "x86_64", "arm64": "aarch64"}[b.arch]+"-linux-gnu-gcc")
		}
	}
	return env
}

// module copies a program's sources and gives it a go.mod.
func module(to, from string, minor int) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	files, err := filepath.Glob(filepath.Join(from, "*.go"))
	if err != nil {
		return err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(f)), text, 0o644); err != nil {
			return err
		}
	}
	mod := fmt.Sprintf("module example.com/program\n\ngo 1.%d\n", minor)
	return os.WriteFile(filepath.Join(to, "go.mod"), []byte(mod), 0o644)
}

// takeProfile runs the program, built by the local toolchain, with all its requests for
// some seconds.
func (w *workshop) takeProfile(ctx context.Context) error {
	if w.profile != "" {
		return nil
	}
	local := strings.TrimPrefix(runtime.Version(), "go")
	path, err := w.stdProgram(ctx, build{local, runtime.GOARCH, kinds[0]})
	if err != nil {
		return fmt.Errorf("build for a profile: %w", err)
	}
	defer os.Remove(path)
	file := w.path("program.pprof")
	p, err := startProgram(ctx, path, "-cpuprofile", file)
	if err != nil {
		return fmt.Errorf("run for a profile: %w", err)
	}
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end) && ctx.Err() == nil; {
		for _, r := range requests {
			p.send(ctx, r, "")
		}
	}
	if err := p.stop(); err != nil {
		return fmt.Errorf("run for a profile: %w", err)
	}
	w.profile = file
	return nil
}
