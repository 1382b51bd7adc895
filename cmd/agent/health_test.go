package main

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHealth(t *testing.T) {
	ready := false
	server := httptest.NewServer(statusHandler(func() report { return report{Ready: ready} }))
	address := strings.TrimPrefix(server.URL, "http://")
	ask := func(args ...string) error {
		cmd := newHealthCommand()
		cmd.SetArgs(append(args, "--status", address))
		cmd.SilenceErrors, cmd.SilenceUsage = true, true
		return cmd.ExecuteContext(t.Context())
	}
	if err := ask(); err != nil {
		t.Errorf("an agent that runs is not well: %v", err)
	}
	if err := ask("--ready"); err == nil || !strings.Contains(err.Error(), "status 503") {
		t.Errorf("an agent that is not ready: %v", err)
	}
	ready = true
	if err := ask("--ready"); err != nil {
		t.Errorf("an agent that is ready: %v", err)
	}
	server.Close()
	if err := ask(); err == nil || !strings.Contains(err.Error(), "no agent answers") {
		t.Errorf("no agent: %v", err)
	}
}
