package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/plainframework/agent/internal/config"
)

// lookAtFile is how often the config file is looked at.
const lookAtFile = 2 * time.Second

// changeLimit bounds a change of settings.
const changeLimit = 10 * time.Second

// fileState tells two contents of a file apart. A ConfigMap of Kubernetes is replaced
// by a symbolic link, so this follows links.
func fileState(path string) string {
	st, err := os.Stat(path)
	if err != nil {
		return err.Error()
	}
	return fmt.Sprint(st.ModTime().UnixNano(), st.Size(), st.Sys())
}

// watch reloads the settings at each signal, and when the config file has changed.
func (r *runner) watch(ctx context.Context, p prober) {
	if r.load == nil {
		return
	}
	var look <-chan time.Time
	if r.file != "" {
		// What was loaded, not what is there now: it may have changed meanwhile.
		tick := time.NewTicker(lookAtFile)
		defer tick.Stop()
		look = tick.C
	}
	seen := r.fileSeen
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.reloads:
		case <-look:
			if now := fileState(r.file); now != seen {
				break
			}
			continue
		}
		seen = fileState(r.file)
		r.notify.reloading()
		r.reload(ctx, p)
		r.notify.ready()
	}
}

// reload reads the settings again and puts those in force that can be changed while the
// agent runs. Settings that are wrong change nothing.
func (r *runner) reload(ctx context.Context, p prober) {
	next, err := r.load()
	if err != nil {
		r.logger.Error("the settings stay as they are", "error", err)
		return
	}
	changed := r.cfg.Changed(next)
	if len(changed) == 0 {
		r.logger.Info("no setting has changed")
		return
	}
	if !next.Targets.Named() {
		r.logger.Error("the settings stay as they are", "error", errNoTargets)
		return
	}
	merged, later := r.cfg.Merge(next)
	ctx, cancel := context.WithTimeout(ctx, changeLimit)
	defer cancel()
	if err := p.Change(ctx, merged); err != nil {
		r.logger.Error("the settings are not in force", "error", err)
		return
	}
	r.setConfig(merged)
	if len(later) < len(changed) {
		r.logger.Info("settings changed", "now", strings.Join(without(changed, later), " "))
	}
	if len(later) > 0 {
		r.logger.Warn("some settings change only when the agent is started again", "settings", strings.Join(later, " "))
	}
}

func without(all, some []string) (rest []string) {
	skip := map[string]bool{}
	for _, s := range some {
		skip[s] = true
	}
	for _, s := range all {
		if !skip[s] {
			rest = append(rest, s)
		}
	}
	return rest
}

// setConfig notes what is in force.
func (r *runner) setConfig(cfg config.Config) {
	r.cfg = cfg
	if r.level != nil {
		_ = r.level.UnmarshalText([]byte(cfg.Agent.LogLevel)) // it was validated
	}
}
