package process

import (
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
)

func TestResource(t *testing.T) {
	info := &debug.BuildInfo{GoVersion: "go1.26.8", Main: debug.Module{Path: "example.com/shop", Version: "v1.2.3"}}
	agent := Agent{Host: "node-1", Version: "0.1.0"}
	tests := []struct {
		name  string
		env   []string
		agent Agent
		want  map[string]string // "" stands for absent
		err   string
	}{
		{"nothing said", []string{}, agent, map[string]string{
			"service.name": "sleep", "service.version": "v1.2.3", "process.executable.name": "sleep", "process.runtime.name": "go",
			"process.runtime.version": "go1.26.8", "host.name": "node-1", "os.type": "linux", "telemetry.sdk.name": "opentelemetry",
			"telemetry.sdk.language": "go", "telemetry.distro.name": DistroName, "telemetry.distro.version": "0.1.0", "process.command_args": "",
		}, ""},
		{"name", []string{"OTEL_SERVICE_NAME=shop", "OTEL_RESOURCE_ATTRIBUTES=service.name=other,deployment.environment.name=prod"}, agent, map[string]string{
			"service.name": "shop", "deployment.environment.name": "prod",
		}, ""},
		{"attributes", []string{"OTEL_RESOURCE_ATTRIBUTES= service.name = my%20shop%2C%3D , service.version=9,host.name=pod-1,"}, agent, map[string]string{
			"service.name": "my shop,=", "service.version": "9", "host.name": "pod-1",
		}, ""},
		{"last of equal keys", []string{"OTEL_RESOURCE_ATTRIBUTES=a=1,a=2"}, agent, map[string]string{"a": "2"}, ""},
		{"what the agent knows better", []string{"OTEL_RESOURCE_ATTRIBUTES=telemetry.sdk.name=x,process.pid=1,a=b"}, agent, map[string]string{
			"telemetry.sdk.name": "opentelemetry", "a": "b",
		}, ""},
		{"all or nothing", []string{"OTEL_RESOURCE_ATTRIBUTES=a=1,b", "OTEL_SERVICE_NAME=shop"}, agent, map[string]string{"a": "", "service.name": "shop"}, "attribute 2 is not key=value"},
		{"bad escape", []string{"OTEL_RESOURCE_ATTRIBUTES=a=%2"}, agent, map[string]string{"a": ""}, "percent sign"},
		{"bad escape of a secret", []string{"OTEL_RESOURCE_ATTRIBUTES=a=hunter2%zz"}, agent, map[string]string{"a": ""}, "percent sign"},
		{"bad text", []string{"OTEL_RESOURCE_ATTRIBUTES=a=%ff"}, agent, map[string]string{"a": ""}, "not valid UTF-8"},
		{"empty key", []string{"OTEL_RESOURCE_ATTRIBUTES==1"}, agent, nil, "attribute 1 is not key=value"},
		{"too many", []string{"OTEL_RESOURCE_ATTRIBUTES=" + strings.Repeat("a=1,", 1000)}, agent, map[string]string{"a": ""}, "more than 128"},
		{"too long", []string{"OTEL_RESOURCE_ATTRIBUTES=a=" + strings.Repeat("x", maxValue+1)}, agent, map[string]string{"a": ""}, "longer than"},
		{"name from elsewhere", []string{}, Agent{ServiceName: "deployment-x"}, map[string]string{"service.name": "deployment-x", "host.name": "", "telemetry.distro.version": ""}, ""},
		{"own name before that", []string{"OTEL_SERVICE_NAME=shop"}, Agent{ServiceName: "deployment-x"}, map[string]string{"service.name": "shop"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command("sleep", "60")
			cmd.Env = tt.env
			start(t, cmd)
			p := open(t, cmd.Process.Pid)
			list, err := p.Resource(info, tt.agent, Surroundings{})
			if (err == nil) != (tt.err == "") || err != nil && (!strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "hunter2")) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			got := map[string]attribute.Value{}
			for _, kv := range list {
				if _, ok := got[string(kv.Key)]; ok {
					t.Errorf("%s twice", kv.Key)
				}
				got[string(kv.Key)] = kv.Value
			}
			for k, v := range tt.want {
				if got[k].String() != v && (v != "" || got[k].Type() != attribute.EMPTY) {
					t.Errorf("%s = %q, want %q", k, got[k].String(), v)
				}
			}
			if got["process.pid"].AsInt64() != int64(cmd.Process.Pid) {
				t.Errorf("process.pid %v", got["process.pid"].String())
			}
			again, _ := p.Resource(info, tt.agent, Surroundings{})
			for _, kv := range again {
				if kv.Key == "service.instance.id" && (kv.Value != got["service.instance.id"] || kv.Value.AsString()[14] != '5') {
					t.Errorf("instance id %v, before %v", kv.Value.String(), got["service.instance.id"].String())
				}
			}
		})
	}
}

func TestServiceVersion(t *testing.T) {
	setting := func(k, v string) debug.BuildSetting { return debug.BuildSetting{Key: k, Value: v} }
	tests := []struct {
		info *debug.BuildInfo
		want string
	}{
		{nil, ""},
		{&debug.BuildInfo{}, ""},
		{&debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, ""},
		{&debug.BuildInfo{Main: debug.Module{Version: "v1.0.0"}, Settings: []debug.BuildSetting{setting("vcs.revision", "abc")}}, "v1.0.0"},
		{&debug.BuildInfo{Main: debug.Module{Version: "(devel)"}, Settings: []debug.BuildSetting{setting("vcs.revision", "abc"), setting("vcs.modified", "true")}}, "abc-dirty"},
	}
	for _, tt := range tests {
		if got := serviceVersion(tt.info); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.info, got, tt.want)
		}
	}
}

func FuzzParseAttributes(f *testing.F) {
	f.Add("a=b,c=%20d")
	f.Fuzz(func(t *testing.T, list string) {
		attrs, err := parseAttributes(list)
		if err != nil && attrs != nil {
			t.Error("attributes beside an error")
		}
		for _, kv := range attrs {
			if kv.Key == "" || len(kv.Key) > maxKey || len(kv.Value.AsString()) > maxValue {
				t.Errorf("attribute %q of %q", kv.Key, list)
			}
		}
	})
}
