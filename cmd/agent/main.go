// Command agent instruments unmodified Go services with eBPF and exports their
// traces, metrics and logs to Plain Cloud.
//
// It is the only place that knows every package: a command reads its settings
// (internal/config), builds the stages from the last to the first (internal/export,
// internal/probes), runs them, and shuts them down in the order of the flow.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
)

func main() {
	if err := newRootCommand().ExecuteContext(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "agent",
		Short: "See what Go services do, without touching them",
		Long: `See what Go services do, without touching them: traces, metrics and logs of
unmodified Go programs, by eBPF, sent to Plain Cloud.`,
		SilenceUsage:      true,
		SilenceErrors:     true, // main prints the error, once
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	root.AddCommand(newRunCommand(), newStatusCommand(), newDoctorCommand(), newObserveCommand(), newHealthCommand(), newVersionCommand())
	return root
}
