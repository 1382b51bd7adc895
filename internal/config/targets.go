package config

import (
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"
)

// maxRules of each kind: every process that starts is compared with all of them.
const maxRules = 256

func (k *checker) targets() {
	t := k.c.Targets
	for _, pid := range t.PIDs {
		if pid <= 0 {
			k.add("targets.pids", "%s is %d: it must be the number of a running process", k.c.label("targets.pids"), pid)
		}
	}
	for _, exe := range t.Exes {
		if !filepath.IsAbs(exe) {
			k.add("targets.exes", "%s is %s: it must be an absolute path", k.c.label("targets.exes"), exe)
		}
	}
	k.rules("targets.include", t.Include)
	k.rules("targets.exclude", t.Exclude)
	if t.All && len(t.Include) > 0 {
		k.add("targets.include", "%s has no effect beside %s, which includes everything: remove one of them", k.c.label("targets.include"), k.c.label("targets.all"))
	}
	ofPod := func(r Rule) bool { return r.ofPod() }
	if k.c.Kubernetes.APIServer == "" && (slices.ContainsFunc(t.Include, ofPod) || slices.ContainsFunc(t.Exclude, ofPod)) {
		k.c.Warnings = append(k.c.Warnings, "rules of targets ask for namespaces, pods, labels or annotations, which the agent knows only in a Kubernetes cluster: they match nothing here")
	}
}

func (k *checker) rules(key string, rules []Rule) {
	if len(rules) > maxRules {
		k.add(key, "%s has %d rules: at most %d are allowed; a pattern can stand for many names", k.c.label(key), len(rules), maxRules)
	}
	for i, r := range rules {
		if reflect.ValueOf(r).IsZero() {
			k.add(key, "rule %d of %s is empty: give it a pattern, or remove it", i+1, k.c.label(key))
		}
	}
}

// Bounds of what the kernel compares: internal/probes/droprules.go.
const (
	maxDrops    = 8
	maxDropText = 63
)

func (k *checker) drops(rules []DropRule) {
	label := k.c.label("traces.drop")
	if len(rules) > maxDrops {
		k.add("traces.drop", "%s has %d rules: at most %d are allowed, for each request is compared with all of them", label, len(rules), maxDrops)
	}
	for i, r := range rules {
		if r == (DropRule{}) {
			k.add("traces.drop", "rule %d of %s is empty: give it a path or a user_agent, or remove it", i+1, label)
		}
		for _, pattern := range []string{r.Path, r.UserAgent} {
			if text := strings.TrimSuffix(pattern, "*"); strings.Contains(text, "*") || len(text) > maxDropText {
				k.add("traces.drop", "rule %d of %s: %q: a * stands only at the end, and there are at most %d bytes", i+1, label, pattern, maxDropText)
			}
		}
		if r.Path != "" && !strings.HasPrefix(r.Path, "/") {
			k.add("traces.drop", "rule %d of %s: path %q must begin with /", i+1, label, r.Path)
		}
	}
}

func (k *checker) kubernetes() {
	c := k.c.Kubernetes
	k.must(c.APIServer == "" || isURL(c.APIServer), "kubernetes.api_server", hidePassword(c.APIServer))
	k.must(between(c.Wait, 0, time.Minute), "kubernetes.wait", c.Wait)
	k.must(len(c.Node) <= 253, "kubernetes.node_name", c.Node)
	k.must(len(c.Cluster) <= 253, "kubernetes.cluster_name", c.Cluster)
}

// apiServer finds the API server where the kubelet names it.
func (l *loader) apiServer(env map[string]string) {
	host, port := env["KUBERNETES_SERVICE_HOST"], env["KUBERNETES_SERVICE_PORT"]
	if host == "" || port == "" || l.isSet("kubernetes.api_server") {
		return
	}
	l.set("kubernetes.api_server", fmt.Sprintf("https://%s", net.JoinHostPort(host, port)), "KUBERNETES_SERVICE_HOST")
}
