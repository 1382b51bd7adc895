package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/plainframework/agent/internal/config"
)

const runExamples = `  # the service with this PID; other processes of its binary stay untouched
  sudo PLAIN_CLOUD_EXPORT_TOKEN=... agent run --pid 4711

  # every process of this binary, those that start later too
  sudo PLAIN_CLOUD_EXPORT_TOKEN=... agent run --exe /usr/local/bin/shop

  # one trace in ten, the token from a file, everything else from a config file
  sudo agent run --config agent.yaml --token-file token --sample-rate 0.1

  # what is attached, what is not and why, and where every span went
  curl http://127.0.0.1:4319/status`

// runHelp is the page that "agent run --help" shows above the flags.
func runHelp() string {
	var b strings.Builder
	b.WriteString(`Instrument Go processes until stopped: find out what the named services do,
without rebuilding, restarting or writing into them, and send it to Plain Cloud.
Needs root. Ctrl-C or SIGTERM sends what is left, within 10 seconds, and ends.

Without a token the agent does nothing, and says so: it attaches to no process,
and stays up.

Every setting comes from a flag, else from the environment, else from the config
file, else from its default. The settings that have a variable:

`)
	for _, s := range config.Settings {
		if s.Env != "" {
			fmt.Fprintf(&b, "  %-36s %s\n", s.Env, s.Help)
		}
	}
	b.WriteString(`
In the config file (YAML) the same settings, and a few more, have these keys:

`)
	section := ""
	for _, s := range config.Settings {
		sec, key, _ := strings.Cut(s.Key, ".")
		if sec != section {
			fmt.Fprintf(&b, "  %s:\n", sec)
			section = sec
		}
		fmt.Fprintf(&b, "    %-20s %s\n", key+":", s.Help)
	}
	b.WriteString(`
Where no URL and no token of Plain Cloud is set, the OTEL_EXPORTER_OTLP_* variables
name the endpoint; any that takes OTLP over HTTP will do.`)
	return b.String()
}

// addFlags adds a flag for each setting that has one. All are texts here: the
// config package knows the types, and its errors name the flag.
func addFlags(cmd *cobra.Command, file *string) {
	f := cmd.Flags()
	f.SortFlags = false
	f.StringVar(file, "config", "", "YAML file with settings")
	for _, s := range config.Settings {
		switch s.Flag {
		case "":
		case "pid":
			f.StringSlice(s.Flag, nil, s.Help)
		case "exe":
			f.StringArray(s.Flag, nil, s.Help)
		default:
			f.String(s.Flag, "", s.Help)
		}
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
		if list, ok := flag.Value.(interface{ GetSlice() []string }); ok {
			given[s.Key] = list.GetSlice()
		} else {
			given[s.Key] = flag.Value.String()
		}
	}
	return given
}
