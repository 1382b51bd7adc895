package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes"
)

const doctorHelp = `Look without touching: what this host allows, and what the agent would do with a
program. Nothing is attached, and nothing is sent.

Without --pid, --exe and --all it looks at the targets of the config file, or, where
there are none, at every process.

The exit status is 0 if something would be instrumented, else 1. The field names of
--json are stable.`

const doctorExamples = `  # why is this process not instrumented?
  sudo agent doctor --pid 4711

  # would this binary be? Without root the host is reported as not allowing it.
  agent doctor --exe ./shop

  # every Go program that runs here
  sudo agent doctor --all`

// errNothing gives the exit status; what was found is printed.
var errNothing = errors.New("nothing would be instrumented")

func newDoctorCommand() *cobra.Command {
	var file string
	var pids, exes []string
	var all, asJSON, verbose bool
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Say what would be instrumented, and what would not and why",
		Long:    doctorHelp,
		Example: doctorExamples,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Sources{File: file})
			if err != nil {
				return err
			}
			wanted, err := wantedOf(cfg, pids, exes, all)
			if err != nil {
				return err
			}
			o, err := probeOptions(cfg)
			if err != nil {
				return err
			}
			logger, _ := newLogger(cmd.ErrOrStderr(), cfg.Agent)
			d, err := probes.Diagnose(o, wanted, logger)
			if err != nil {
				return err
			}
			if asJSON {
				enc := json.NewEncoder(cmd.OutOrStdout())
				enc.SetIndent("", "  ")
				err = enc.Encode(d)
			} else {
				err = printDiagnosis(cmd.OutOrStdout(), d, verbose || len(d.Targets) == 1)
				idleNote(cmd.ErrOrStderr(), cfg)
			}
			if err == nil && d.Instruments == 0 {
				err = errNothing
			}
			return err
		},
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.StringSliceVar(&pids, "pid", nil, "look at this process (repeatable)")
	f.StringArrayVar(&exes, "exe", nil, "look at this binary (repeatable)")
	f.BoolVar(&all, "all", false, "look at every process")
	f.StringVar(&file, "config", "", "YAML file with settings")
	f.BoolVarP(&verbose, "verbose", "v", false, "list every probe site, as for a single target")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	for name, value := range map[string]string{"pid": "PID", "exe": "PATH", "config": "FILE"} {
		flag := f.Lookup(name)
		flag.Value, flag.DefValue = namedValue{flag.Value, value}, ""
	}
	return cmd
}

// idleNote says what a dry run does not look at: that the agent may have been told to do
// nothing.
func idleNote(w io.Writer, cfg config.Config) {
	if !cfg.Active() {
		fmt.Fprintln(w, "note: with these settings the agent does nothing, for want of a token or because export is off")
	}
}

// wantedOf is what to look at: what the flags say, else what would be instrumented.
func wantedOf(cfg config.Config, pids, exes []string, all bool) (probes.Wanted, error) {
	w := probes.Wanted{All: all}
	for _, text := range pids {
		pid, err := strconv.Atoi(text)
		if err != nil || pid <= 0 {
			return w, fmt.Errorf("--pid is %q: it must be the number of a process", text)
		}
		w.PIDs = append(w.PIDs, pid)
	}
	for _, exe := range exes {
		// On the command line a path is meant from where one stands.
		abs, err := filepath.Abs(exe)
		if err != nil {
			return w, fmt.Errorf("--exe: %w", err)
		}
		w.Exes = append(w.Exes, abs)
	}
	if len(pids)+len(exes) == 0 && !all {
		w.PIDs, w.Exes = cfg.Targets.PIDs, cfg.Targets.Exes
		w.All = len(w.PIDs)+len(w.Exes) == 0 || cfg.Targets.All || len(cfg.Targets.Include) > 0
	}
	return w, nil
}
