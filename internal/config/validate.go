package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Validate returns every problem of the settings, joined, or nil.
func (c *Config) Validate() error { return errors.Join(c.problems(nil)...) }

// checker collects the problems of one Config.
type checker struct {
	c    *Config
	skip map[string]bool
	errs []error
}

// problems checks what is not checked by types. Keys in skip have an error
// already.
func (c *Config) problems(skip map[string]bool) []error {
	k := checker{c: c, skip: skip}
	k.targets()
	k.kubernetes()
	k.export()
	t, m, l, p := c.Traces, c.Metrics, c.Logs, c.Probes
	k.must(t.SampleRate >= 0 && t.SampleRate <= 1, "traces.sample_rate", t.SampleRate)
	k.must(slices.Contains([]string{SamplerRatio, SamplerParentRatio, SamplerProbability}, t.Sampler), "traces.sampler", t.Sampler)
	k.must(between(t.MaxDuration, time.Second, 24*time.Hour), "traces.max_duration", t.MaxDuration)
	k.must(t.KeepSlowerThan >= 0, "traces.keep_slower_than", t.KeepSlowerThan)
	k.must(between(t.KeepLimit, 1, 1_000_000), "traces.keep_limit", t.KeepLimit)
	k.drops(t.Drop)
	k.must(between(t.RemoteLimit, 1, 1_000_000), "traces.remote_limit", t.RemoteLimit)

	k.propagation()
	k.must(between(m.Interval, 100*time.Millisecond, 24*time.Hour), "metrics.interval", m.Interval)
	k.must(between(m.MaxSeries, 1, 1_000_000), "metrics.max_series", m.MaxSeries)
	k.renames(m.Rename)

	k.must(between(l.Rate, 0, 10_000_000), "logs.rate", l.Rate)
	k.must(between(l.Burst, 0, 10_000_000), "logs.burst", l.Burst)
	for _, re := range l.Redact {
		if _, err := regexp.Compile(re); err != nil {
			k.add("logs.redact", "%s: %s is not a regular expression: %v", c.label("logs.redact"), re, err)
		}
	}

	k.must(between(p.RingSize, 64<<10, 1<<30) && p.RingSize&(p.RingSize-1) == 0, "probes.ring_size", p.RingSize)
	k.must(between(p.MaxInFlight, 16, 1<<24), "probes.max_in_flight", p.MaxInFlight)

	k.must(c.Agent.Status == "" || isHostPort(c.Agent.Status), "agent.status", c.Agent.Status)
	k.must(c.Agent.StateDir == StateOff || filepath.IsAbs(c.Agent.StateDir), "agent.state_dir", c.Agent.StateDir)
	k.must(slices.Contains([]string{"debug", "info", "warn", "error"}, c.Agent.LogLevel), "agent.log_level", c.Agent.LogLevel)
	k.must(slices.Contains([]string{"text", "json"}, c.Agent.LogFormat), "agent.log_format", c.Agent.LogFormat)
	return k.errs
}

func (k *checker) export() {
	e := k.c.Export
	k.must(isURL(e.URL), "export.url", hidePassword(e.URL))
	k.must(e.TracesURL == "" || isURL(e.TracesURL), "export.traces_url", hidePassword(e.TracesURL))
	k.must(e.MetricsURL == "" || isURL(e.MetricsURL), "export.metrics_url", hidePassword(e.MetricsURL))
	k.must(e.LogsURL == "" || isURL(e.LogsURL), "export.logs_url", hidePassword(e.LogsURL))
	k.must(isHeaderValue(e.Token.Reveal()), "export.token", nil)
	for _, name := range slices.Sorted(maps.Keys(e.Headers)) {
		v := e.Headers[name]
		if !isHeaderName(name) || !isHeaderValue(v.Reveal()) {
			k.add("export.headers", "%s: %q is not a header that can be sent", k.c.label("export.headers"), name)
		}
	}
	k.must(between(e.Timeout, time.Second, 10*time.Minute), "export.timeout", e.Timeout)
	k.must(e.Compression == "gzip" || e.Compression == "none", "export.compression", e.Compression)
	k.must(between(e.BatchSize, 1, 65536), "export.batch_size", e.BatchSize)
	k.must(between(e.BatchDelay, 10*time.Millisecond, time.Minute), "export.batch_delay", e.BatchDelay)
	k.must(between(e.QueueSize, 1<<20, 4<<30), "export.queue_size", e.QueueSize)
	k.must(between(e.RetryFor, 0, 24*time.Hour), "export.retry_for", e.RetryFor)
	k.must(e.SpoolDir == SpoolOff || filepath.IsAbs(e.SpoolDir), "export.spool_dir", e.SpoolDir)
	k.must(between(e.SpoolSize, 1<<20, 1<<40), "export.spool_size", e.SpoolSize)
	switch {
	case e.CertFile != "" && e.KeyFile == "":
		k.add("export.key_file", "%s is set without its key: set export.key_file (PLAIN_CLOUD_EXPORT_KEY_FILE) too", k.c.label("export.cert_file"))
	case e.CertFile == "" && e.KeyFile != "":
		k.add("export.cert_file", "%s is set without its certificate: set export.cert_file (PLAIN_CLOUD_EXPORT_CERT_FILE) too", k.c.label("export.key_file"))
	}
}

func (k *checker) renames(rename map[string]string) {
	for _, from := range slices.Sorted(maps.Keys(rename)) {
		to := rename[from]
		if !metricName.MatchString(from) || !metricName.MatchString(to) {
			k.add("metrics.rename", "%s: %q to %q: a metric name is a letter and up to 254 letters, digits, _ . - /", k.c.label("metrics.rename"), from, to)
		}
	}
}

// metricName is the syntax of instrument names in OpenTelemetry.
var metricName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.\-/]{0,254}$`)

func (k *checker) must(ok bool, key string, value any) {
	if !ok {
		k.add(key, "%s", k.c.complaint(key, value))
	}
}

func (k *checker) add(key, format string, args ...any) {
	if !k.skip[key] {
		k.errs = append(k.errs, fmt.Errorf(format, args...))
	}
}

func between[T int | Bytes | time.Duration](v, low, high T) bool { return v >= low && v <= high }

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" &&
		u.Fragment == "" && u.User == nil && validPort(u.Port())
}

// hidePassword returns a URL fit for an error text.
func hidePassword(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		if i := strings.LastIndexByte(s, '@'); i >= 0 {
			return "…" + s[i:]
		}
		return s
	}
	return u.Redacted()
}

func isHostPort(s string) bool {
	_, port, err := net.SplitHostPort(s)
	return err == nil && port != "" && validPort(port)
}

// validPort accepts "" too: the scheme's default.
func validPort(s string) bool {
	if s == "" {
		return true
	}
	n, err := strconv.Atoi(s)
	return err == nil && n >= 0 && n < 65536
}

func isHeaderName(s string) bool {
	return s != "" && strings.IndexFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	}) < 0
}

// isHeaderValue keeps line breaks out of the request.
func isHeaderValue(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) < 0
}
