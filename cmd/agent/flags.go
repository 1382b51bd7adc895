package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/plainframework/agent/internal/config"
)

const runExamples = `  # the service with this PID; other processes of its binary stay untouched
  sudo PLAIN_CLOUD_EXPORT_TOKEN=... agent run --pid 4711

  # every process of this binary, those that start later too
  sudo PLAIN_CLOUD_EXPORT_TOKEN=... agent run --exe /usr/local/bin/shop

  # every Go process of the machine
  sudo PLAIN_CLOUD_EXPORT_TOKEN=... agent run --all

  # one trace in ten, the token from a file, everything else from a config file
  sudo agent run --config agent.yaml --token-file token --sample-rate 0.1

  # what is attached, what is not and why, and where every span went
  agent status`

// runHelp is the page that "agent run --help" shows above the flags.
func runHelp() string {
	var b strings.Builder
	b.WriteString(`Instrument Go processes until stopped: find out what the named services do,
without rebuilding, restarting or writing into them, and send it to Plain Cloud.
Needs root. Ctrl-C or SIGTERM sends what is left, within 10 seconds, and ends.

Without a token the agent does nothing, and says so: it attaches to no process,
and stays up.

A setting comes from its flag, else from its environment variable, else from the
config file, else from its default. The config file is YAML, with these keys:
`)
	section := ""
	for _, s := range config.Settings {
		sec, key, _ := strings.Cut(s.Key, ".")
		if sec != section {
			fmt.Fprintf(&b, "\n  %s:\n", sec)
			section = sec
		}
		help := s.Help
		if d := s.Default(); d != "" {
			help += " (" + d + ")"
		}
		fmt.Fprintf(&b, "    %-17s %s\n", key+":", help)
		if s.Env != "" {
			fmt.Fprintf(&b, "    %-17s $%s\n", "", s.Env)
		}
	}
	b.WriteString(`
Where no URL and no token of Plain Cloud is set, the OTEL_EXPORTER_OTLP_* variables
name the endpoint; any that takes OTLP over HTTP will do.`)
	return b.String()
}

// namedValue is a flag whose value is called something in the help.
type namedValue struct {
	pflag.Value
	name string
}

// Type is what the help prints behind the flag.
func (v namedValue) Type() string { return v.name }

var valueNames = map[string]string{
	"pid": "PID", "exe": "PATH", "url": "URL", "token-file": "FILE", "sample-rate": "0..1", "sampler": "NAME",
	"logs": "BOOL", "status": "HOST:PORT", "log-level": "LEVEL", "log-format": "FORMAT",
}

// addFlags adds a flag for each setting that has one. All are texts here: the
// config package knows the types, and its errors name the flag.
func addFlags(cmd *cobra.Command, file *string) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(file, "config", "", "YAML file with settings")
	f.Lookup("config").Value = namedValue{f.Lookup("config").Value, "FILE"}
	for _, s := range config.Settings {
		switch s.Flag {
		case "":
			continue
		case "pid":
			f.StringSlice(s.Flag, nil, s.Help)
		case "exe":
			f.StringArray(s.Flag, nil, s.Help)
		case "all":
			f.Bool(s.Flag, false, s.Help)
			continue
		default:
			f.String(s.Flag, "", s.Help)
		}
		flag := f.Lookup(s.Flag)
		flag.DefValue = ""
		flag.Value = namedValue{flag.Value, valueNames[s.Flag]}
	}
}

// givenFlags returns the flags that were given, by the keys of their settings.
func givenFlags(cmd *cobra.Command) map[string]any {
	given := make(map[string]any)
	for _, s := range config.Settings {
		flag := cmd.Flags().Lookup(s.Flag)
		if s.Flag == "" || flag == nil || !flag.Changed {
			continue
		}
		v := flag.Value
		if named, ok := v.(namedValue); ok {
			v = named.Value
		}
		if list, ok := v.(pflag.SliceValue); ok {
			given[s.Key] = list.GetSlice()
		} else {
			given[s.Key] = v.String()
		}
	}
	// On the command line a path is meant from where one stands.
	if exes, ok := given["targets.exes"].([]string); ok {
		for i, exe := range exes {
			if abs, err := filepath.Abs(exe); err == nil && exe != "" {
				exes[i] = abs
			}
		}
	}
	return given
}
