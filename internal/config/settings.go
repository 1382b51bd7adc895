package config

import (
	"fmt"
	"reflect"
	"strings"
)

// Setting is one row of the table of settings: where a person finds it.
type Setting struct {
	Key  string // in the file, sections separated by dots
	Env  string // environment variable, or ""
	Flag string // command line flag without dashes, or ""
	Help string // one line
	Want string // what a valid value is, to follow "must be"
}

// Settings is the table of everything that can be set, in the order of the
// documentation. The token has no flag: anyone on the machine can read a
// command line.
var Settings = []Setting{
	{"targets.pids", "", "pid", "instrument this process only (repeatable)", "a list of process IDs"},
	{"targets.exes", "", "exe", "instrument every process of this binary, now and later (repeatable)", "a list of absolute paths"},

	{"targets.all", "PLAIN_AGENT_ALL", "all", "instrument every Go process of the machine that targets.exclude does not name", "true or false"},
	{"targets.include", "", "", "rules: instrument the processes that one of them matches", "a list of rules, such as {exe: /usr/local/bin/*}"},
	{"targets.exclude", "", "", "rules: but not those that one of these matches", "a list of rules, such as {namespace: kube-system}"},

	{"kubernetes.enabled", "", "", "in a cluster, ask the API server about the pods of this node", "true or false"},
	{"kubernetes.api_server", "", "", "its URL (default: from KUBERNETES_SERVICE_HOST and _PORT)", "a URL such as https://10.96.0.1"},
	{"kubernetes.node_name", "PLAIN_AGENT_NODE_NAME", "", "name of this node in the cluster", "the name of a node"},
	{"kubernetes.cluster_name", "PLAIN_AGENT_CLUSTER_NAME", "", "name of the cluster, for k8s.cluster.name", "a name"},
	{"kubernetes.wait", "", "", "how long data waits for a pod that the API server does not know yet", "a duration from 0s to 1m, such as 5s"},

	{"export.enabled", "PLAIN_CLOUD_EXPORT_ENABLED", "", "false: no export at all", "true or false"},
	{"export.url", "PLAIN_CLOUD_EXPORT_URL", "url", "OTLP base URL", "a URL such as " + DefaultURL},
	{"export.token", "PLAIN_CLOUD_EXPORT_TOKEN", "", "token of Plain Cloud; empty: the agent does nothing", "one line of printable characters"},
	{"export.token_file", "PLAIN_CLOUD_EXPORT_TOKEN_FILE", "token-file", "file that holds the token", "a file that holds the token"},
	{"export.traces_url", "", "", "whole URL for traces", "a URL such as " + DefaultURL + "/v1/traces"},
	{"export.metrics_url", "", "", "whole URL for metrics", "a URL such as " + DefaultURL + "/v1/metrics"},
	{"export.logs_url", "", "", "whole URL for logs", "a URL such as " + DefaultURL + "/v1/logs"},
	{"export.headers", "", "", "more headers for each request", "a map of header names to values"},
	{"export.timeout", "", "", "limit of one attempt to send", "a duration from 1s to 10m, such as 30s"},
	{"export.ca_file", "PLAIN_CLOUD_EXPORT_CA_FILE", "", "certificate authorities (PEM) instead of the system's", "a file of certificates in PEM form"},
	{"export.cert_file", "PLAIN_CLOUD_EXPORT_CERT_FILE", "", "client certificate (PEM), with key_file", "a file with a certificate in PEM form, together with export.key_file"},
	{"export.key_file", "PLAIN_CLOUD_EXPORT_KEY_FILE", "", "key (PEM) of the client certificate", "a file with a key in PEM form, together with export.cert_file"},
	{"export.compression", "", "", "gzip or none", "gzip or none"},
	{"export.batch_size", "", "", "items in one request, at most", "a number from 1 to 65536"},
	{"export.batch_delay", "", "", "how long an item waits for company, at most", "a duration from 10ms to 1m, such as 1s"},
	{"export.queue_size", "", "", "memory for what waits to be sent, per signal", "a size from 1MiB to 4GiB, such as 32MiB"},
	{"export.retry_for", "", "", "without a spool, a request that is refused this long is given up", "a duration from 0s to 24h, such as 1m"},
	{"export.spool_dir", "PLAIN_CLOUD_SPOOL_DIR", "", "where to keep what the endpoint cannot take now, or off", "an absolute path, or off"},
	{"export.spool_size", "PLAIN_CLOUD_SPOOL_SIZE", "", "size of it on disk, at most", "a size from 1MiB to 1024GiB, such as 512MiB"},

	{"traces.sample_rate", "PLAIN_CLOUD_TRACE_SAMPLE_RATE", "sample-rate", "share of traces to export", "a number from 0 to 1"},
	{"traces.sampler", "PLAIN_CLOUD_TRACE_SAMPLER", "sampler", "how traces are chosen", "traceidratio, parentbased_traceidratio or probability"},
	{"traces.keep_errors", "PLAIN_CLOUD_TRACE_KEEP_ERRORS", "", "keep failing requests whatever the rate", "true or false"},
	{"traces.keep_limit", "PLAIN_CLOUD_TRACE_KEEP_LIMIT", "", "how many traces a second and process are kept for these two reasons", "a number above 0"},
	{"traces.remote_limit", "PLAIN_CLOUD_TRACE_REMOTE_LIMIT", "", "at a rate below 1, how many traces a second and process are sampled whose ids callers chose", "a number above 0"},
	{"traces.drop", "", "", "rules: requests that are measured and have no spans, such as health checks", "a list of rules, such as {path: /healthz} or {user_agent: kube-probe/*}"},
	{"traces.max_duration", "PLAIN_CLOUD_TRACE_MAX_DURATION", "", "a span that is open for longer is exported as it stands", "a duration from 1s to 24h, such as 10m"},
	{"traces.keep_slower_than", "PLAIN_CLOUD_TRACE_KEEP_SLOWER_THAN", "", "keep slow requests whatever the rate", "a duration such as 500ms, or off"},

	{"propagation.mode", "PLAIN_CLOUD_PROPAGATE", "", "headers: requests get a traceparent; memory: also where that takes writing to a target", "off, headers or memory"},
	{"propagation.to", "PLAIN_CLOUD_PROPAGATE_TO", "", "whom it may be told: networks, hosts, private, cluster (default: private, cluster)", "a list of networks such as 10.0.0.0/8, hosts such as api.example.com or *.example.com, and the words private and cluster"},

	{"metrics.interval", "OTEL_METRIC_EXPORT_INTERVAL", "", "time between two exports (the variable: milliseconds)", "a duration from 100ms to 24h, such as 60s"},
	{"metrics.rename", "", "", "metric name: name to export", "a map of metric names to names"},
	{"metrics.max_series", "", "", "series per service and metric", "a number from 1 to 1000000"},

	{"logs.export", "PLAIN_CLOUD_EXPORT_LOGS", "logs", "export what targets write to stderr", "true or false"},
	{"logs.level", "PLAIN_CLOUD_LOG_LEVEL", "", "minimum severity of exported logs", "DEBUG, INFO, WARNING, ERROR, CRITICAL, or one of Python's numbers, 10 to 50"},
	{"logs.rate", "", "", "log lines a second and process, 0 for no limit", "a number from 0 to 10000000"},
	{"logs.burst", "", "", "log lines above the rate at once", "a number from 0 to 10000000"},
	{"logs.redact", "", "", "regular expressions; what matches is taken out of logs", "a list of regular expressions (RE2 syntax)"},

	{"probes.ring_size", "", "", "ring buffer between kernel and agent", "a power of two from 64KiB to 1GiB, such as 8MiB"},
	{"probes.max_in_flight", "", "", "requests and queries open at once on the node", "a number from 16 to 16777216"},
	{"probes.max_overhead", "PLAIN_CLOUD_MAX_OVERHEAD", "", "give up spans where the agent costs a target more CPU", "a percentage such as 2%, or off"},

	{"agent.status", "PLAIN_AGENT_STATUS", "status", "address of /healthz, /readyz and /status, \"\" for none", "HOST:PORT such as 127.0.0.1:4319, or empty"},
	{"agent.state_dir", "PLAIN_AGENT_STATE_DIR", "", "directory of BPF maps that outlive a crash, or off", "an absolute path, or off"},
	{"agent.log_level", "PLAIN_AGENT_LOG_LEVEL", "log-level", "level of the agent's own log", "debug, info, warn or error"},
	{"agent.log_format", "PLAIN_AGENT_LOG_FORMAT", "log-format", "format of the agent's own log", "text or json"},
}

// Default returns the default of the setting as it would be written, "" for
// none.
func (s Setting) Default() string {
	v := reflect.ValueOf(Default())
	for part := range strings.SplitSeq(s.Key, ".") {
		v = fieldOf(v, part)
	}
	if v.IsZero() && v.Kind() != reflect.Bool || v.Kind() == reflect.Slice {
		return ""
	}
	return fmt.Sprint(v.Interface())
}

// fieldOf returns the field that a key names.
func fieldOf(v reflect.Value, key string) reflect.Value {
	for f, field := range v.Fields() {
		if f.Tag.Get("koanf") == key {
			return field
		}
	}
	panic("no field for " + key) // a test compares the table with the struct
}

// mapKeys are the settings whose children are named by the user.
var mapKeys = []string{"export.headers", "metrics.rename"}

var byKey = func() map[string]*Setting {
	m := make(map[string]*Setting, len(Settings))
	for i := range Settings {
		m[Settings[i].Key] = &Settings[i]
	}
	return m
}()

// settingOf finds the row that a flattened key belongs to: itself, or the map
// that it is an entry of. It returns nil for an unknown key.
func settingOf(key string) *Setting {
	if s := byKey[key]; s != nil {
		return s
	}
	for _, m := range mapKeys {
		if strings.HasPrefix(key, m+".") {
			return byKey[m]
		}
	}
	return nil
}

// nearest suggests the known name that a mistyped one is closest to, or "".
func nearest(name string, known []string) string {
	best, bestDist := "", 1+len(name)/3
	for _, k := range known {
		if d := editDistance(name, k); d < bestDist {
			best, bestDist = k, d
		}
	}
	return best
}

// editDistance is Levenshtein's. Long names are not compared: no setting has
// one, and the work is quadratic.
func editDistance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	prev := make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := range len(a) {
		diag := prev[0]
		prev[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diag, prev[j+1] = prev[j+1], min(prev[j+1]+1, prev[j]+1, diag+cost)
		}
	}
	return prev[len(b)]
}
