package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStatusAddress(t *testing.T) {
	file := func(text string) string {
		path := filepath.Join(t.TempDir(), "agent.yaml")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const wrong = "agent: {status: 'host:1'}\nexport: {token_file: /nowhere/token, url: nonsense}\ntraces: {sample_rate: [1, 2]}\nmetrics: {interval: often}\nunknown: 1\n"
	for name, c := range map[string]struct {
		src  Sources
		want string
		err  string
	}{
		"default":              {Sources{}, Default().Agent.Status, ""},
		"all others are wrong": {Sources{File: file(wrong), Environ: []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE=much"}}, "host:1", ""},
		"the variable wins":    {Sources{File: file(wrong), Environ: []string{"PLAIN_AGENT_STATUS=host:2"}}, "host:2", ""},
		"the flag wins":        {Sources{File: file(wrong), Environ: []string{"PLAIN_AGENT_STATUS=host:2"}, Flags: map[string]any{"agent.status": "host:3"}}, "host:3", ""},
		"none":                 {Sources{Environ: []string{"PLAIN_AGENT_STATUS="}}, "", ""},
		"no file":              {Sources{File: "/nowhere/agent.yaml"}, "", "no such file"},
		"no file, but a flag":  {Sources{File: "/nowhere/agent.yaml", Flags: map[string]any{"agent.status": "host:3"}}, "host:3", ""},
		"no YAML":              {Sources{File: file("agent: [")}, "", "is not valid YAML"},
		"the address itself":   {Sources{Environ: []string{"PLAIN_AGENT_STATUS=nowhere"}}, "", "PLAIN_AGENT_STATUS is nowhere: it must be HOST:PORT"},
	} {
		if c.src.Environ == nil {
			c.src.Environ = []string{}
		}
		got, err := StatusAddress(c.src)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}
