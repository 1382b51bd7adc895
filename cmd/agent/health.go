package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/plainframework/agent/internal/config"
)

// newHealthCommand asks the agent that runs on this machine whether it is well: for
// probes of a container, in whose image there is no other program.
func newHealthCommand() *cobra.Command {
	var file, address string
	var ready bool
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask the running agent whether it is well",
		Long: `Ask the agent that runs here whether it is well, and with --ready whether every target
is attached or refused. Exits with 0 if so. It finds the agent by the setting of its
status address.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if address == "" {
				var err error
				if address, err = config.StatusAddress(config.Sources{File: file}); err != nil {
					return err
				}
			}
			path := "/healthz"
			if ready {
				path = "/readyz"
			}
			return askHealth(cmd.Context(), address, path)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "YAML file with settings")
	cmd.Flags().StringVar(&address, "status", "", "status address of the agent")
	cmd.Flags().BoolVar(&ready, "ready", false, "ask whether it is ready, too")
	return cmd
}

func askHealth(ctx context.Context, address, path string) error {
	if address == "" {
		return errors.New("the agent has no status address, by the setting agent.status")
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return fmt.Errorf("status address %s: %w", address, err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // no proxy
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("no agent answers: %w", err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<10)) // for people only
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the agent is not well: status %d: %s", res.StatusCode, text)
	}
	return nil
}
