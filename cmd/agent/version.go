package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// buildVersion tells what this binary was built from.
type buildVersion struct {
	Version  string `json:"version"` // of the module, or "devel"
	Revision string `json:"revision,omitempty"`
	Modified bool   `json:"modified,omitempty"` // the tree had changes that were not committed
	Go       string `json:"go"`
}

// String is the version in one word, such as devel+0123456789ab-modified.
func (v buildVersion) String() string {
	s := v.Version
	if v.Version == "devel" && v.Revision != "" {
		s += "+" + v.Revision[:min(len(v.Revision), 12)]
		if v.Modified {
			s += "-modified"
		}
	}
	return s
}

// released is the version of a release's image, set by the linker.
var released string

// readVersion takes it from what the Go linker put into the binary.
func readVersion() buildVersion {
	v := buildVersion{Version: "devel", Go: runtime.Version()}
	if released != "" {
		v.Version = released
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if m := info.Main.Version; m != "" && m != "(devel)" {
		v.Version = m
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			v.Revision = s.Value
		case "vcs.modified":
			v.Modified = s.Value == "true"
		}
	}
	return v
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version of the agent",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := readVersion()
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "agent %s (%s %s/%s)\n", v, v.Go, runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}
