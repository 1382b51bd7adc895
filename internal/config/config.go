// Package config holds the agent's settings: one struct, its defaults, how it
// is read and what makes it valid. It is the only package that looks at the
// environment; everything else is handed a [Config].
//
// The data path of a setting:
//
//	defaults ← OTEL_* fallbacks ← file ← environment ← flags   [Load]
//	decode, strictly: an unknown key is an error               decode.go
//	validate: every problem at once, each with its remedy      [Config.Validate]
//
// The table in settings.go says for each setting its key in the file, its
// environment variable and its flag.
package config

import (
	"time"
)

// DefaultURL is where Plain Cloud takes OTLP.
const DefaultURL = "https://ingest.plainframework.com"

// The spool is where services keep their state, unless it is switched off.
const (
	DefaultSpoolDir = "/var/lib/plain-agent/spool"
	SpoolOff        = "off"
)

// The state of the kernel's side is where BPF programs of others are, unless it is
// switched off.
const (
	DefaultStateDir = "/sys/fs/bpf/plain-agent"
	StateOff        = "off"
)

// Config is every setting of the agent. Read it with [Load]; the zero value is
// not usable, [Default] is.
type Config struct {
	Targets     Targets     `koanf:"targets"`
	Kubernetes  Kubernetes  `koanf:"kubernetes"`
	Export      Export      `koanf:"export"`
	Traces      Traces      `koanf:"traces"`
	Propagation Propagation `koanf:"propagation"`
	Metrics     Metrics     `koanf:"metrics"`
	Logs        Logs        `koanf:"logs"`
	Probes      Probes      `koanf:"probes"`
	Agent       Agent       `koanf:"agent"`

	// Warnings are things that are probably mistakes but do not stop the
	// agent, such as an unknown PLAIN_CLOUD_ variable. For the log.
	Warnings []string `koanf:"-"`

	// origin says which layer gave a key its value, for error texts.
	origin map[string]string
}

// Targets says what to instrument.
type Targets struct {
	PIDs []int    `koanf:"pids"` // these processes, no other of the same binary
	Exes []string `koanf:"exes"` // every process of these binaries, now and later; absolute paths

	All     bool   `koanf:"all"`     // every Go process of the node that no rule excludes
	Include []Rule `koanf:"include"` // those that one of these matches
	Exclude []Rule `koanf:"exclude"` // but none of these; wins over All and Include, not over PIDs and Exes
}

// Rule matches a process if all of its patterns do. In a pattern, * stands for any
// text, slashes too, and ? for one character.
type Rule struct {
	Exe       string `koanf:"exe"`       // path of the executable, as the process sees it
	Command   string `koanf:"command"`   // arguments, with a space between
	Container string `koanf:"container"` // name in Kubernetes, or id
	Namespace string `koanf:"namespace"` // of Kubernetes
	Pod       string `koanf:"pod"`

	Labels      map[string]string `koanf:"labels"`      // of the pod
	Annotations map[string]string `koanf:"annotations"` // of the pod
	Env         map[string]string `koanf:"env"`         // that the process was started with
}

// ofPod tells whether the rule asks for what only a cluster knows.
func (r Rule) ofPod() bool {
	return r.Namespace != "" || r.Pod != "" || len(r.Labels) > 0 || len(r.Annotations) > 0
}

// Named tells whether there is anything to instrument.
func (t Targets) Named() bool {
	return len(t.PIDs) > 0 || len(t.Exes) > 0 || t.All || len(t.Include) > 0
}

// Kubernetes says where the agent learns about pods.
type Kubernetes struct {
	Enabled   bool          `koanf:"enabled"`
	APIServer string        `koanf:"api_server"`   // URL; "" outside a cluster
	Node      string        `koanf:"node_name"`    // its name in the cluster
	Cluster   string        `koanf:"cluster_name"` // k8s.cluster.name
	Wait      time.Duration `koanf:"wait"`         // for what the API server does not know yet
}

// Export says where telemetry goes and how.
type Export struct {
	Enabled   bool   `koanf:"enabled"`
	URL       string `koanf:"url"` // OTLP base URL; /v1/<signal> is appended
	Token     Secret `koanf:"token"`
	TokenFile string `koanf:"token_file"` // read into Token by Load, unless there is one
	// TokenFromFile says that Token was read from TokenFile, and may change
	// with it: see [ReadToken].
	TokenFromFile bool `koanf:"-"`

	TracesURL  string            `koanf:"traces_url"` // whole URL; "" means URL + /v1/traces
	MetricsURL string            `koanf:"metrics_url"`
	LogsURL    string            `koanf:"logs_url"`
	Headers    map[string]Secret `koanf:"headers"` // sent with each request
	Timeout    time.Duration     `koanf:"timeout"` // of one attempt

	CAFile   string `koanf:"ca_file"`   // certificate authorities (PEM) instead of the system's
	CertFile string `koanf:"cert_file"` // client certificate (PEM), together with KeyFile
	KeyFile  string `koanf:"key_file"`

	// Compression is "gzip" or "none".
	Compression string `koanf:"compression"`

	BatchSize  int           `koanf:"batch_size"`  // items in one request, at most
	BatchDelay time.Duration `koanf:"batch_delay"` // how long an item waits for company, at most
	QueueSize  Bytes         `koanf:"queue_size"`  // memory for what waits to be sent, per signal
	RetryFor   time.Duration `koanf:"retry_for"`   // without a spool, a request that is refused this long is given up

	SpoolDir  string `koanf:"spool_dir"`  // for requests that the endpoint cannot take now; SpoolOff for none
	SpoolSize Bytes  `koanf:"spool_size"` // of it on disk, at most

	// Foreign says that the endpoint comes from the OTEL_EXPORTER_OTLP_*
	// variables: it is not Plain Cloud and may need no token.
	Foreign bool `koanf:"-"`
	// Proxy is what HTTP_PROXY and its like say.
	Proxy Proxy `koanf:"-"`
}

// Proxy is the proxy setting of the environment. The URLs may hold passwords.
type Proxy struct {
	HTTP, HTTPS Secret
	NoProxy     string
}

// Samplers that [Traces].Sampler may name.
const (
	SamplerRatio       = "traceidratio"             // as the Python package plain.cloud does
	SamplerParentRatio = "parentbased_traceidratio" // the caller's decision first
	SamplerProbability = "probability"              // OTel consistent sampling
)

// Traces says which spans are made and kept.
type Traces struct {
	SampleRate     float64       `koanf:"sample_rate"` // 0 to 1
	Sampler        string        `koanf:"sampler"`
	KeepErrors     bool          `koanf:"keep_errors"`      // keep traces whose local root failed
	MaxDuration    time.Duration `koanf:"max_duration"`     // a span that is open for longer is exported as it stands
	KeepSlowerThan time.Duration `koanf:"keep_slower_than"` // and those that took longer; 0 is off
	KeepLimit      int           `koanf:"keep_limit"`       // of such traces, a second and process
	RemoteLimit    int           `koanf:"remote_limit"`     // of sampled traces that callers began, likewise
	Drop           []DropRule    `koanf:"drop"`             // requests that are measured, and have no spans
}

// DropRule matches requests if all of its patterns do: a text, or its beginning with *
// behind it.
type DropRule struct {
	Path      string `koanf:"path"` // of the URL, without the query
	UserAgent string `koanf:"user_agent"`
}

// Modes of [Propagation].
const (
	PropagateOff     = "off"
	PropagateHeaders = "headers" // requests get a traceparent where it can be put into what is sent
	PropagateMemory  = "memory"  // and where it can be written into a buffer of the target
)

// Propagation says whether requests of targets tell their trace, and whom.
type Propagation struct {
	Mode string   `koanf:"mode"`
	To   []string `koanf:"to"` // see [Propagation.Allowed]; nothing: private and cluster
}

// Metrics says how metrics are exported. They are never sampled.
type Metrics struct {
	Interval  time.Duration     `koanf:"interval"`
	Rename    map[string]string `koanf:"rename"`     // metric name → name to export
	MaxSeries int               `koanf:"max_series"` // per service and metric; the rest goes into one overflow series
}

// Logs says which log lines are exported.
type Logs struct {
	Export bool     `koanf:"export"`
	Level  Severity `koanf:"level"`  // minimum; lines without a severity pass
	Rate   int      `koanf:"rate"`   // lines a second and process, 0 for no limit
	Burst  int      `koanf:"burst"`  // lines above the rate that may come at once
	Redact []string `koanf:"redact"` // regular expressions (RE2) of more secrets than are known; a match is replaced before export
}

// Probes bounds what the kernel side may use.
type Probes struct {
	RingSize    Bytes   `koanf:"ring_size"`     // a power of two
	MaxInFlight int     `koanf:"max_in_flight"` // requests and queries open at once, on the whole node
	MaxOverhead Percent `koanf:"max_overhead"`  // of a target's CPU; 0 is no limit
}

// Agent is about the agent itself.
type Agent struct {
	Status    string `koanf:"status"`     // address of /healthz, /readyz, /status; "" for none
	StateDir  string `koanf:"state_dir"`  // in a BPF filesystem, for what outlives a crash; StateOff for none
	LogLevel  string `koanf:"log_level"`  // debug, info, warn, error
	LogFormat string `koanf:"log_format"` // text or json
}

// Default returns the settings that hold where nothing else is said.
func Default() Config {
	return Config{
		Export: Export{
			Enabled:     true,
			URL:         DefaultURL,
			Timeout:     30 * time.Second,
			Compression: "gzip",
			BatchSize:   2048,
			BatchDelay:  time.Second,
			QueueSize:   32 << 20,
			RetryFor:    time.Minute,
			SpoolDir:    DefaultSpoolDir,
			SpoolSize:   512 << 20,
		},
		Kubernetes:  Kubernetes{Enabled: true, Wait: 5 * time.Second},
		Traces:      Traces{SampleRate: 1, Sampler: SamplerRatio, KeepErrors: true, MaxDuration: 10 * time.Minute, KeepLimit: 100, RemoteLimit: 1000},
		Propagation: Propagation{Mode: PropagateOff},
		Metrics:     Metrics{Interval: time.Minute, MaxSeries: 2000},
		Logs:        Logs{Export: true, Level: severityInfo, Rate: 1000, Burst: 5000},
		Probes:      Probes{RingSize: 4 << 20, MaxInFlight: 8192},
		Agent:       Agent{Status: "127.0.0.1:4319", StateDir: DefaultStateDir, LogLevel: "info", LogFormat: "text"},
	}
}

// Active says whether there is anything to do. Without a token the agent is a
// no-op: it attaches nothing and stays healthy. An endpoint that is not Plain
// Cloud, from the OTEL_EXPORTER_OTLP_* variables, may need no token.
func (c *Config) Active() bool {
	return c.Export.Enabled && (c.Export.Token != "" || c.Export.Foreign)
}
