package config

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const testToken = "pt_s3cr3t-t0ken-value"

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDefaultsAreValid(t *testing.T) {
	cfg, err := Load(Sources{Environ: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	if cfg.Active() {
		t.Error("active without a token")
	}
	if cfg.Export.URL != DefaultURL || cfg.Traces.SampleRate != 1 || !cfg.Logs.Export || cfg.Logs.Level.String() != "INFO" ||
		cfg.Export.Timeout != 30*time.Second || cfg.Metrics.MaxSeries != 2000 || cfg.Agent.Status != "127.0.0.1:4319" {
		t.Errorf("defaults: %+v", cfg)
	}
}

// TestTableMatchesStruct keeps the table of settings and the struct together:
// each leaf of the struct has one row and the reverse.
func TestTableMatchesStruct(t *testing.T) {
	leaves := make(map[string]bool)
	var walk func(prefix string, rt reflect.Type)
	walk = func(prefix string, rt reflect.Type) {
		for f := range rt.Fields() {
			tag := f.Tag.Get("koanf")
			if !f.IsExported() || tag == "-" {
				continue
			}
			if key := prefix + tag; f.Type.Kind() == reflect.Struct {
				walk(key+".", f.Type)
			} else {
				leaves[key] = true
			}
		}
	}
	walk("", reflect.TypeFor[Config]())
	flags, envs := map[string]bool{}, map[string]bool{}
	for _, s := range Settings {
		if !leaves[s.Key] {
			t.Errorf("%s is in the table but not in the struct", s.Key)
		}
		delete(leaves, s.Key)
		_ = s.Default() // panics where the struct has no such field
		if s.Help == "" || s.Want == "" {
			t.Errorf("%s has no help or want", s.Key)
		}
		if s.Flag != "" && flags[s.Flag] || s.Env != "" && envs[s.Env] {
			t.Errorf("%s: flag or variable used twice", s.Key)
		}
		flags[s.Flag], envs[s.Env] = true, true
	}
	for key := range leaves {
		t.Errorf("%s is in the struct but not in the table", key)
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, "agent.yaml", "export: {url: 'https://file.example'}\ntraces: {sample_rate: 0.1}\nlogs:\n")
	env := []string{"PLAIN_CLOUD_EXPORT_URL=https://env.example", "PLAIN_CLOUD_TRACE_SAMPLE_RATE=0.2"}
	flags := map[string]any{"export.url": "https://flag.example"}
	tests := []struct {
		name string
		src  Sources
		url  string
		rate float64
	}{
		{"default", Sources{Environ: []string{}}, DefaultURL, 1},
		{"file", Sources{File: file, Environ: []string{}}, "https://file.example", 0.1},
		{"environment over file", Sources{File: file, Environ: env}, "https://env.example", 0.2},
		{"flag over environment", Sources{File: file, Environ: env, Flags: flags}, "https://flag.example", 0.2},
		{"empty variable is unset", Sources{File: file, Environ: []string{"PLAIN_CLOUD_EXPORT_URL="}}, "https://file.example", 0.1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := Load(tt.src)
			if err != nil {
				t.Fatal(err)
			}
			if cfg.Export.URL != tt.url || cfg.Traces.SampleRate != tt.rate {
				t.Errorf("got %s %v, want %s %v", cfg.Export.URL, cfg.Traces.SampleRate, tt.url, tt.rate)
			}
		})
	}
}

func TestFileSetsEverything(t *testing.T) {
	file := write(t, "agent.yaml", `
targets:
  pids: [1, 22]
  exes: [/usr/bin/caddy]
  include:
  - {exe: /usr/*, command: "* serve", env: {TIER: front}}
  - {container: app, namespace: shop-*, pod: a, labels: {app.kubernetes.io/name: shop}}
  exclude: [{annotations: {plain.example/off: "true"}}]
kubernetes: {enabled: false, api_server: "https://10.0.0.1", node_name: n1, cluster_name: prod, wait: 3s}
export:
  enabled: false
  url: http://127.0.0.1:4318/base
  token: `+testToken+`
  traces_url: https://t.example/x
  headers: {X-Tenant: blue, X.Dotted: red}
  timeout: 5s
  compression: none
  batch_size: 100
  batch_delay: 200ms
  queue_size: 8 MB
  retry_for: 0
  spool_dir: /srv/spool
  spool_size: 2GB
  ca_file: /etc/ca.pem
  cert_file: /etc/client.pem
  key_file: /etc/client.key
traces: {sample_rate: 0.5, sampler: probability, keep_errors: no, keep_slower_than: 750ms, max_duration: 5m, keep_limit: 7, drop: [{path: /healthz}, {user_agent: kube-probe/*}], remote_limit: 9}
propagation:
  mode: headers
  to: [10.0.0.0/8, '*.example.com']
metrics:
  interval: 10s
  rename: {db.client.operation.duration: db.client.query.duration}
  max_series: 5
logs: {export: false, level: 40, rate: 0, burst: 10, redact: ['x+']}
probes: {ring_size: 1MiB, max_in_flight: 128, max_overhead: 2 %}
agent: {status: "", state_dir: /sys/fs/bpf/x, log_level: debug, log_format: json}
`)
	cfg, err := Load(Sources{File: file, Environ: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		Targets: Targets{PIDs: []int{1, 22}, Exes: []string{"/usr/bin/caddy"},
			Include: []Rule{
				{Exe: "/usr/*", Command: "* serve", Env: map[string]string{"TIER": "front"}},
				{Container: "app", Namespace: "shop-*", Pod: "a", Labels: map[string]string{"app.kubernetes.io/name": "shop"}},
			},
			Exclude: []Rule{{Annotations: map[string]string{"plain.example/off": "true"}}}},
		Kubernetes: Kubernetes{APIServer: "https://10.0.0.1", Node: "n1", Cluster: "prod", Wait: 3 * time.Second},
		Export: Export{URL: "http://127.0.0.1:4318/base", Token: testToken, TracesURL: "https://t.example/x",
			Headers: map[string]Secret{"X-Tenant": "blue", "X.Dotted": "red"}, Timeout: 5 * time.Second, Compression: "none",
			BatchSize: 100, BatchDelay: 200 * time.Millisecond, QueueSize: 8 << 20,
			SpoolDir: "/srv/spool", SpoolSize: 2 << 30, CAFile: "/etc/ca.pem", CertFile: "/etc/client.pem", KeyFile: "/etc/client.key"},
		Traces:      Traces{SampleRate: 0.5, Sampler: SamplerProbability, MaxDuration: 5 * time.Minute, KeepSlowerThan: 750 * time.Millisecond, KeepLimit: 7, RemoteLimit: 9, Drop: []DropRule{{Path: "/healthz"}, {UserAgent: "kube-probe/*"}}},
		Propagation: Propagation{Mode: PropagateHeaders, To: []string{"10.0.0.0/8", "*.example.com"}},
		Metrics:     Metrics{Interval: 10 * time.Second, Rename: map[string]string{"db.client.operation.duration": "db.client.query.duration"}, MaxSeries: 5},
		Logs:        Logs{Level: 17, Burst: 10, Redact: []string{"x+"}},
		Probes:      Probes{RingSize: 1 << 20, MaxInFlight: 128, MaxOverhead: 0.02},
		Agent:       Agent{StateDir: "/sys/fs/bpf/x", LogLevel: "debug", LogFormat: "json"},
		origin:      cfg.origin,
	}
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("got  %#v\nwant %#v", cfg, want)
	}
}

func TestErrorsSayWhatToChange(t *testing.T) {
	tests := []struct {
		name string
		file string
		env  []string
		flag map[string]any
		want []string // one substring per line of the error, in any order
	}{
		{"unknown key", "traces: {sample_rat: 1}", nil, nil, []string{"did you mean traces.sample_rate?"}},
		{"unknown section", "zzzzzzzzzz: {a: 1}", nil, nil, []string{"unknown key zzzzzzzzzz.a"}},
		{"not YAML", "a: [", nil, nil, []string{"is not valid YAML"}},
		{"a token for a file", testToken, nil, nil, []string{"must be a map of settings"}},
		{"rate too high", "", []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE=1.5"}, nil, []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE is 1.5: it must be a number from 0 to 1"}},
		{"rate NaN", "", []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE=NaN"}, nil, []string{"from 0 to 1"}},
		{"rate no number", "", []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE=half"}, nil, []string{"PLAIN_CLOUD_TRACE_SAMPLE_RATE is half: it must be a number"}},
		{"no URL", "", []string{"PLAIN_CLOUD_EXPORT_URL=ingest"}, nil, []string{"PLAIN_CLOUD_EXPORT_URL is ingest: it must be a URL such as"}},
		{"URL of another scheme", "export: {url: 'ftp://x'}", nil, nil, []string{"it must be a URL such as"}},
		{"URL with a password", "export: {url: 'https://u:hunter2@x'}", nil, nil, []string{"it must be a URL such as"}},
		{"flag named as typed", "", nil, map[string]any{"traces.sampler": "always"}, []string{"--sampler is always: it must be traceidratio"}},
		{"duration without unit", "metrics: {interval: 60}", nil, nil, []string{"metrics.interval in"}},
		{"boolean", "", []string{"PLAIN_CLOUD_EXPORT_LOGS=maybe"}, nil, []string{"PLAIN_CLOUD_EXPORT_LOGS is maybe: it must be true or false"}},
		{"boolean as a number", "export: {enabled: 2}", nil, nil, []string{"it must be true or false"}},
		{"level", "", []string{"PLAIN_CLOUD_LOG_LEVEL=LOUD"}, nil, []string{"PLAIN_CLOUD_LOG_LEVEL is LOUD: it must be DEBUG"}},
		{"list element", "targets: {pids: [1, x]}", nil, nil, []string{"targets.pids in"}},
		{"pid", "", nil, map[string]any{"targets.pids": []int{-4}}, []string{"--pid is -4"}},
		{"star inside", "traces: {drop: [{path: /a*b}]}", nil, nil, []string{"a * stands only at the end"}},
		{"empty rule", "targets: {include: [{exe: /a}, {}]}", nil, nil, []string{"rule 2 of targets.include in"}},
		{"unknown key of a rule", "targets: {exclude: [{exec: /a}]}", nil, nil, []string{"targets.exclude"}},
		{"include beside all", "targets: {all: true, include: [{exe: /a}]}", nil, nil, []string{"has no effect beside"}},
		{"wait", "kubernetes: {wait: 1h}", nil, nil, []string{"a duration from 0s to 1m"}},
		{"relative path", "", nil, map[string]any{"targets.exes": []string{"bin/x"}}, []string{"--exe is bin/x: it must be an absolute path"}},
		{"ring not a power of two", "probes: {ring_size: 3MiB}", nil, nil, []string{"is 3MiB: it must be a power of two"}},
		{"overhead without percent", "probes: {max_overhead: 2}", nil, nil, []string{"a percentage such as 2%"}},
		{"redaction", "logs: {redact: ['(']}", nil, nil, []string{"( is not a regular expression"}},
		{"rename", "metrics: {rename: {a: '1 b'}}", nil, nil, []string{"a metric name is"}},
		{"status", "agent: {status: nowhere}", nil, nil, []string{"HOST:PORT"}},
		{"token file", "", []string{"PLAIN_CLOUD_EXPORT_TOKEN_FILE=/does/not/exist"}, nil, []string{"PLAIN_CLOUD_EXPORT_TOKEN_FILE: open /does/not/exist"}},
		{"relative spool", "", []string{"PLAIN_CLOUD_SPOOL_DIR=spool"}, nil, []string{"PLAIN_CLOUD_SPOOL_DIR is spool: it must be an absolute path, or off"}},
		{"tiny spool", "", []string{"PLAIN_CLOUD_SPOOL_SIZE=1000"}, nil, []string{"PLAIN_CLOUD_SPOOL_SIZE is 1000B: it must be a size from 1MiB"}},
		{"certificate without key", "", []string{"PLAIN_CLOUD_EXPORT_CERT_FILE=/c.pem"}, nil, []string{"PLAIN_CLOUD_EXPORT_CERT_FILE is set without its key: set export.key_file"}},
		{"key without certificate", "export: {key_file: /k.pem}", nil, nil, []string{"is set without its certificate: set export.cert_file"}},
		{"line break in token file", "", []string{"PLAIN_CLOUD_EXPORT_TOKEN_FILE=" + write(t, "token", testToken+"\n"+testToken)}, nil, []string{"must be one line"}},
		{"line break in token", "", []string{"PLAIN_CLOUD_EXPORT_TOKEN=" + testToken + "\nX: y"}, nil, []string{"PLAIN_CLOUD_EXPORT_TOKEN must be one line"}},
		{"token of a wrong type", "export: {token: [" + testToken + ", " + testToken + "]}", nil, nil, []string{"export.token in"}},
		{"all together", "traces: {sample_rate: 7}\nexprot: {url: x}\n", []string{"PLAIN_CLOUD_EXPORT_URL=x", "PLAIN_CLOUD_LOG_LEVEL=?"}, map[string]any{"agent.log_format": "xml"},
			[]string{"sample_rate", "exprot.url", "PLAIN_CLOUD_EXPORT_URL is x", "PLAIN_CLOUD_LOG_LEVEL", "--log-format is xml"}},
		{"OTLP over gRPC", "", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://x:4317", "OTEL_EXPORTER_OTLP_PROTOCOL=grpc"}, nil, []string{"speaks http/protobuf"}},
		{"OTLP for one signal only", "", []string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=http://x"}, nil, []string{"set OTEL_EXPORTER_OTLP_ENDPOINT, or"}},
		{"OTLP headers", "", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://x", "OTEL_EXPORTER_OTLP_HEADERS=" + testToken}, nil, []string{"OTEL_EXPORTER_OTLP_HEADERS has an entry"}},
		{"sampler argument", "", []string{"OTEL_TRACES_SAMPLER=traceidratio", "OTEL_TRACES_SAMPLER_ARG=9"}, nil, []string{"OTEL_TRACES_SAMPLER_ARG is 9"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			src := Sources{Environ: append([]string{}, tt.env...), Flags: tt.flag}
			if tt.file != "" {
				src.File = write(t, "agent.yaml", tt.file)
			}
			_, err := Load(src)
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), testToken) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret is in the error: %v", err)
			}
			if got := strings.Count(err.Error(), "\n") + 1; got != len(tt.want) {
				t.Errorf("%d errors, want %d:\n%v", got, len(tt.want), err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("no %q in:\n%v", want, err)
				}
			}
		})
	}
}

func TestOTelVariables(t *testing.T) {
	tests := []struct {
		name  string
		env   []string
		check func(c Config) bool
	}{
		{"endpoint without a token is active", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318"},
			func(c Config) bool { return c.Active() && c.Export.Foreign && c.Export.URL == "http://c:4318" }},
		{"ignored beside a token", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", "OTEL_EXPORTER_OTLP_HEADERS=a=b", "PLAIN_CLOUD_EXPORT_TOKEN=" + testToken},
			func(c Config) bool {
				return c.Active() && !c.Export.Foreign && c.Export.URL == DefaultURL && len(c.Export.Headers) == 0
			}},
		{"ignored beside a URL", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", "PLAIN_CLOUD_EXPORT_URL=http://p"},
			func(c Config) bool { return !c.Active() && c.Export.URL == "http://p" }},
		{"per signal, headers, timeout, compression", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=http://c:4318", "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT=http://l/logs",
			"OTEL_EXPORTER_OTLP_HEADERS=a=b%20c, d=e", "OTEL_EXPORTER_OTLP_TIMEOUT=2500", "OTEL_EXPORTER_OTLP_COMPRESSION=none"},
			func(c Config) bool {
				e := c.Export
				return e.LogsURL == "http://l/logs" && e.TracesURL == "" && e.Headers["a"] == "b c" && e.Headers["d"] == "e" &&
					e.Timeout == 2500*time.Millisecond && e.Compression == "none"
			}},
		{"certificates", []string{"OTEL_EXPORTER_OTLP_ENDPOINT=https://c:4318", "OTEL_EXPORTER_OTLP_CERTIFICATE=/ca", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE=/c", "OTEL_EXPORTER_OTLP_CLIENT_KEY=/k"},
			func(c Config) bool {
				return c.Export.CAFile == "/ca" && c.Export.CertFile == "/c" && c.Export.KeyFile == "/k"
			}},
		{"spool", []string{"PLAIN_CLOUD_SPOOL_DIR=/s", "PLAIN_CLOUD_SPOOL_SIZE=1GiB"}, func(c Config) bool { return c.Export.SpoolDir == "/s" && c.Export.SpoolSize == 1<<30 }},
		{"no spool", []string{"PLAIN_CLOUD_SPOOL_DIR=off"}, func(c Config) bool { return c.Export.SpoolDir == SpoolOff }},
		{"metric interval in ms", []string{"OTEL_METRIC_EXPORT_INTERVAL=15000"}, func(c Config) bool { return c.Metrics.Interval == 15*time.Second }},
		{"always_off", []string{"OTEL_TRACES_SAMPLER=always_off"}, func(c Config) bool { return c.Traces.SampleRate == 0 && c.Traces.Sampler == SamplerRatio }},
		{"parent based", []string{"OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.25"},
			func(c Config) bool { return c.Traces.SampleRate == 0.25 && c.Traces.Sampler == SamplerParentRatio }},
		{"sampler ignored beside a rate", []string{"OTEL_TRACES_SAMPLER=always_off", "PLAIN_CLOUD_TRACE_SAMPLE_RATE=0.5"}, func(c Config) bool { return c.Traces.SampleRate == 0.5 }},
		{"unsupported sampler warns", []string{"OTEL_TRACES_SAMPLER=jaeger_remote"}, func(c Config) bool { return len(c.Warnings) == 1 && c.Traces.SampleRate == 1 }},
		{"mistyped variable warns", []string{"PLAIN_CLOUD_EXPORT_TOKN=x"}, func(c Config) bool {
			return len(c.Warnings) == 1 && strings.Contains(c.Warnings[0], "PLAIN_CLOUD_EXPORT_TOKEN?")
		}},
		{"empty status is none", []string{"PLAIN_AGENT_STATUS="}, func(c Config) bool { return c.Agent.Status == "" }},
		{"proxy", []string{"https_proxy=http://p:1", "NO_PROXY=a"}, func(c Config) bool {
			return c.Export.Proxy.HTTPS.Reveal() == "http://p:1" && c.Export.Proxy.NoProxy == "a"
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := Load(Sources{Environ: tt.env})
			if err != nil {
				t.Fatal(err)
			}
			if !tt.check(cfg) {
				t.Errorf("got %+v", cfg)
			}
		})
	}
}

func TestTokenFile(t *testing.T) {
	file := write(t, "token", "  "+testToken+"\n")
	cfg, err := Load(Sources{Environ: []string{"PLAIN_CLOUD_EXPORT_TOKEN_FILE=" + file}})
	if err != nil || cfg.Export.Token.Reveal() != testToken || !cfg.Active() || !cfg.Export.TokenFromFile {
		t.Errorf("token from file: %v %v", cfg.Export.Token, err)
	}
	cfg, err = Load(Sources{Environ: []string{"PLAIN_CLOUD_EXPORT_TOKEN_FILE=" + file, "PLAIN_CLOUD_EXPORT_TOKEN=other"}})
	if err != nil || cfg.Export.Token.Reveal() != "other" || cfg.Export.TokenFromFile {
		t.Errorf("token beside file: %v", err)
	}
	empty := write(t, "empty", "\n")
	if _, err = Load(Sources{Environ: []string{"PLAIN_CLOUD_EXPORT_TOKEN_FILE=" + empty}}); err == nil || !strings.Contains(err.Error(), "which is empty") {
		t.Errorf("empty token file: %v", err)
	}
	big := write(t, "big", strings.Repeat("x", maxToken+1))
	if _, err = Load(Sources{Environ: []string{"PLAIN_CLOUD_EXPORT_TOKEN_FILE=" + big}}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("big token file: %v", err)
	}
}

func TestSecretIsNeverPrinted(t *testing.T) {
	cfg, err := Load(Sources{Environ: []string{"PLAIN_CLOUD_EXPORT_TOKEN=" + testToken}})
	if err != nil {
		t.Fatal(err)
	}
	cfg.Export.Headers = map[string]Secret{"a": testToken}
	var out strings.Builder
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&out, verb+"\n", cfg)
		fmt.Fprintf(&out, verb+"\n", cfg.Export.Token)
		fmt.Fprintf(&out, verb+"\n", &cfg.Export)
	}
	js, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	out.Write(js)
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "cfg", cfg, "token", cfg.Export.Token)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "cfg", cfg, "token", cfg.Export.Token)
	for _, form := range []string{testToken, fmt.Sprintf("%x", testToken), "s3cr3t"} {
		if strings.Contains(out.String(), form) {
			t.Errorf("the secret shows as %q in:\n%s", form, out.String())
		}
	}
	if !strings.Contains(out.String(), redacted) {
		t.Error("no placeholder printed: the test proves nothing")
	}
}

func TestSeverity(t *testing.T) {
	for in, want := range map[string]Severity{
		"debug": 5, "INFO": 9, "Warning": 13, "WARN": 13, "ERROR": 17, "CRITICAL": 21, "FATAL": 21, "TRACE": 1,
		"0": 1, "5": 1, "10": 5, "20": 9, "21": 10, "25": 12, "30": 13, "40": 17, "50": 21, "60": 21,
	} {
		var s Severity
		if err := s.UnmarshalText([]byte(in)); err != nil || s != want {
			t.Errorf("%s: got %d %v, want %d", in, s, err, want)
		}
	}
	var s Severity
	for _, in := range []string{"", "-1", "1e3", "verbose", "99999"} {
		if s.UnmarshalText([]byte(in)) == nil {
			t.Errorf("%q accepted", in)
		}
	}
}

func TestBytesAndPercent(t *testing.T) {
	for in, want := range map[string]Bytes{"0": 0, "8388608": 8 << 20, "8MiB": 8 << 20, "8 mb": 8 << 20, "64k": 64 << 10, "1G": 1 << 30, "7B": 7} {
		var b Bytes
		if err := b.UnmarshalText([]byte(in)); err != nil || b != want {
			t.Errorf("%s: got %d %v, want %d", in, b, err, want)
		}
		var back Bytes
		if err := back.UnmarshalText([]byte(b.String())); err != nil || back != b {
			t.Errorf("%s does not come back: %s", in, b)
		}
	}
	var b Bytes
	for _, in := range []string{"", "-1", "1.5M", "MiB", "99999999GiB", "9223372036854775807K"} {
		if b.UnmarshalText([]byte(in)) == nil {
			t.Errorf("%q accepted", in)
		}
	}
	var p Percent
	for _, in := range []string{"2", "0.02", "-1%", "101%", "NaN%", "x%"} {
		if p.UnmarshalText([]byte(in)) == nil {
			t.Errorf("%q accepted", in)
		}
	}
}

// TestProcessEnvironment is the only test that reads the environment of the
// process, which is read once.
func TestProcessEnvironment(t *testing.T) {
	t.Setenv("OTEL_SERVICE_NAME", "agent")
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "a=b")
	t.Setenv("OTEL_METRIC_EXPORT_INTERVAL", "5000")
	t.Setenv("PLAIN_CLOUD_EXPORT_TOKEN", testToken)
	for range 2 { // a second time as on a reload
		cfg, err := Load(Sources{})
		if err != nil || cfg.Export.Token != testToken || cfg.Metrics.Interval != 5*time.Second {
			t.Errorf("got %+v, %v", cfg, err)
		}
	}
	for _, name := range []string{"OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", "OTEL_METRIC_EXPORT_INTERVAL", "PLAIN_CLOUD_EXPORT_TOKEN"} {
		if v, ok := os.LookupEnv(name); ok {
			t.Errorf("%s is still there: %s", name, v)
		}
	}
}

func TestSettingDefault(t *testing.T) {
	for key, want := range map[string]string{
		"export.url": DefaultURL, "export.token": "", "export.enabled": "true", "export.timeout": "30s", "export.queue_size": "32MiB",
		"traces.sample_rate": "1", "logs.level": "INFO", "probes.max_overhead": "", "targets.pids": "",
	} {
		if got := byKey[key].Default(); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}
