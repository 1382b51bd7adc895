package process

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/google/uuid"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
)

// DistroName is the telemetry.distro.name of everything that the agent sends.
const DistroName = "plainframework-agent"

// What a target's environment may add to its resource.
const (
	maxAttributes = 128
	maxKey        = 256
	maxValue      = 4 << 10
)

// instanceSpace is the namespace that the semantic conventions give for
// service.instance.id made as UUID version 5.
var instanceSpace = uuid.MustParse("4d63009a-8d0f-11ee-aad7-4c796ed8e320")

// Agent is what a resource says that is the same for all processes of a node.
type Agent struct {
	Host    string // host.name; "" leaves it out
	Version string // telemetry.distro.version
	// ServiceName is used where the process's environment names no service;
	// "" stands for the executable's name.
	ServiceName string
}

// Surroundings is what others know of where a process runs, such as a cluster.
type Surroundings struct {
	Defaults []attribute.KeyValue // what the process's environment says wins over these
	Facts    []attribute.KeyValue // these win over it
}

// Resource returns the OpenTelemetry resource of the process: service.*,
// process.*, container.id, host.name, os.type and telemetry.*. The build info
// may be nil.
//
// OTEL_RESOURCE_ATTRIBUTES of the process adds to it and replaces what was
// found out, but for what the agent knows better: telemetry.*, process.pid,
// container.id, and the facts of its surroundings. OTEL_SERVICE_NAME wins over both. Arguments of the process are
// left out, for they may hold secrets.
//
// The service.instance.id is a UUID version 5 of boot id, PID and start time
// in the namespace that the semantic conventions name: the same each time the
// agent starts, another for each process.
//
// The error tells what of the environment could not be used, as the resource
// stays valid without it.
func (p *Process) Resource(info *debug.BuildInfo, agent Agent, around Surroundings) ([]attribute.KeyValue, error) {
	env, err := p.Environ()
	given, parseErr := resourceFromEnv(env)
	attrs := newSet()
	name := path.Base(p.path)
	service := agent.ServiceName
	if service == "" {
		service = name
	}
	attrs.put(semconv.ServiceName(service))
	if v := serviceVersion(info); v != "" {
		attrs.put(semconv.ServiceVersion(v))
	}
	attrs.put(semconv.ServiceInstanceID(p.instanceID()))
	attrs.put(semconv.ProcessExecutableName(name))
	attrs.put(semconv.ProcessExecutablePath(p.path))
	attrs.put(semconv.ProcessRuntimeName("go"))
	if info != nil && info.GoVersion != "" {
		attrs.put(semconv.ProcessRuntimeVersion(info.GoVersion))
	}
	if agent.Host != "" {
		attrs.put(semconv.HostName(agent.Host))
	}
	attrs.put(semconv.OSTypeLinux)
	for _, list := range [][]attribute.KeyValue{around.Defaults, given, around.Facts} {
		for _, kv := range list {
			attrs.put(kv)
		}
	}
	attrs.put(semconv.ProcessPID(p.pid))
	if id := p.Container().ID; id != "" {
		attrs.put(semconv.ContainerID(id))
	}
	attrs.put(semconv.TelemetrySDKName("opentelemetry"))
	attrs.put(semconv.TelemetrySDKLanguageGo)
	attrs.put(semconv.TelemetrySDKVersion(sdk.Version()))
	attrs.put(semconv.TelemetryDistroName(DistroName))
	if agent.Version != "" {
		attrs.put(semconv.TelemetryDistroVersion(agent.Version))
	}
	return attrs.list, errors.Join(err, parseErr)
}

// set is a list of attributes whose keys are unique.
type set struct {
	list  []attribute.KeyValue
	index map[attribute.Key]int
}

func newSet() *set { return &set{index: map[attribute.Key]int{}} }

// put adds an attribute or replaces the one of that key. Text of the target's
// making is made valid.
func (s *set) put(kv attribute.KeyValue) {
	if kv.Value.Type() == attribute.STRING {
		v := kv.Value.AsString()
		kv.Value = attribute.StringValue(strings.ToValidUTF8(v[:min(len(v), maxValue)], "\uFFFD"))
	}
	if i, ok := s.index[kv.Key]; ok {
		s.list[i] = kv
		return
	}
	s.index[kv.Key] = len(s.list)
	s.list = append(s.list, kv)
}

// resourceFromEnv reads OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME.
func resourceFromEnv(env []string) ([]attribute.KeyValue, error) {
	var list, name string
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "OTEL_RESOURCE_ATTRIBUTES="); ok {
			list = v
		} else if v, ok := strings.CutPrefix(e, "OTEL_SERVICE_NAME="); ok {
			name = v
		}
	}
	attrs, err := parseAttributes(list)
	if err != nil {
		attrs, err = nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES of the process ignored: %w", err)
	}
	if name = strings.TrimSpace(name); name != "" {
		attrs = append(attrs, semconv.ServiceName(name))
	}
	return attrs, err
}

// parseAttributes reads "key=value,key=value" as the specification of the
// OpenTelemetry resource SDK has it: percent-encoded, and all or nothing.
func parseAttributes(list string) ([]attribute.KeyValue, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	if n := strings.Count(list, ","); n >= maxAttributes {
		return nil, fmt.Errorf("more than %d attributes", maxAttributes)
	}
	var attrs []attribute.KeyValue
	for item := range strings.SplitSeq(list, ",") {
		if strings.TrimSpace(item) == "" { // a trailing comma
			continue
		}
		k, v, ok := strings.Cut(item, "=")
		key, err := percentDecode(strings.TrimSpace(k))
		value, err2 := percentDecode(strings.TrimSpace(v))
		// The text itself stays out of the error: it may hold a secret.
		switch n := len(attrs) + 1; {
		case !ok || key == "":
			return nil, fmt.Errorf("attribute %d is not key=value", n)
		case err != nil || err2 != nil:
			return nil, fmt.Errorf("attribute %d: %w", n, errors.Join(err, err2))
		case len(key) > maxKey || len(value) > maxValue:
			return nil, fmt.Errorf("attribute %d is longer than %d bytes", n, maxValue)
		}
		attrs = append(attrs, attribute.String(key, value))
	}
	return attrs, nil
}

func percentDecode(s string) (string, error) {
	if strings.IndexByte(s, '%') >= 0 {
		var b strings.Builder
		for i := 0; i < len(s); i++ {
			if s[i] != '%' {
				b.WriteByte(s[i])
				continue
			}
			if i+2 >= len(s) {
				return "", errors.New("percent sign without two hexadecimal digits")
			}
			c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
			if err != nil {
				return "", errors.New("percent sign without two hexadecimal digits")
			}
			b.WriteByte(byte(c))
			i += 2
		}
		s = b.String()
	}
	if !utf8.ValidString(s) {
		return "", errors.New("not valid UTF-8")
	}
	return s, nil
}

// serviceVersion is the version of the main module, else the revision that it
// was built from.
func serviceVersion(info *debug.BuildInfo) string {
	if info == nil {
		return ""
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var revision, modified string
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			revision = s.Value
		case "vcs.modified":
			modified = s.Value
		}
	}
	if revision != "" && modified == "true" {
		revision += "-dirty"
	}
	return revision
}

// bootID tells one boot of one machine from all others.
var bootID = sync.OnceValue(func() string {
	// Without it the id is unique on this machine until it boots again.
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
})

func (p *Process) instanceID() string {
	return uuid.NewSHA1(instanceSpace, fmt.Appendf(nil, "%s/%d/%d", bootID(), p.pid, p.start)).String()
}
