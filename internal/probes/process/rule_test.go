package process

import (
	"strings"
	"testing"
)

func TestGlob(t *testing.T) {
	for _, tt := range []struct {
		pattern, text string
		want          bool
	}{
		{"", "", true}, {"", "a", false}, {"*", "", true}, {"*", "/usr/bin/x", true}, {"/usr/*", "/usr/local/bin/x", true},
		{"/usr/*", "/usr", false}, {"*shop*", "/bin/shop-2", true}, {"a?c", "abc", true}, {"a?c", "ac", false},
		{"*a*b*c", "xaxbxbxc", true}, {"*a*b*c", "xaxcxb", false}, {"a*", "b", false}, {"*.go", "x.go.bak", false}, {"**", "x", true},
	} {
		if got := Glob(tt.pattern, tt.text); got != tt.want {
			t.Errorf("%q matches %q: %v", tt.pattern, tt.text, got)
		}
	}
}

// FuzzGlob compares with a matcher that tries everything, and must end.
func FuzzGlob(f *testing.F) {
	f.Add("*a*?b", "xxaxxb")
	f.Add(strings.Repeat("*a", 30), strings.Repeat("a", 60))
	f.Fuzz(func(t *testing.T, pattern, text string) {
		got := Glob(pattern, text)
		if len(pattern) > 12 || len(text) > 12 {
			return
		}
		if want := globSlow(pattern, text); got != want {
			t.Errorf("%q matches %q: %v, want %v", pattern, text, got, want)
		}
	})
}

func globSlow(pattern, text string) bool {
	switch {
	case pattern == "":
		return text == ""
	case pattern[0] == '*':
		return globSlow(pattern[1:], text) || text != "" && globSlow(pattern, text[1:])
	default:
		return text != "" && (pattern[0] == '?' || pattern[0] == text[0]) && globSlow(pattern[1:], text[1:])
	}
}

func TestRules(t *testing.T) {
	read := 0
	facts := func() *Facts {
		return &Facts{
			Exe: "/app/shop", Namespace: "shop-blue", Pod: "web-1", Container: "web", ContainerID: "3d27",
			Labels: map[string]string{"app.kubernetes.io/name": "shop"}, Annotations: map[string]string{"a": "", "on": "true"},
			Command: func() string { read++; return "/app/shop serve --port 80" },
			Env:     func() map[string]string { read++; return map[string]string{"TIER": "front", "EMPTY": ""} },
		}
	}
	for name, tt := range map[string]struct {
		rules  Rules
		chosen bool
		read   int
	}{
		"nothing":                          {Rules{}, false, 0},
		"all":                              {Rules{All: true}, true, 0},
		"excluded from all":                {Rules{All: true, Exclude: []Rule{{Exe: "/app/*"}}}, false, 0},
		"exclusion wins":                   {Rules{Include: []Rule{{Exe: "/app/*"}}, Exclude: []Rule{{Namespace: "shop-*"}}}, false, 0},
		"one pattern of two":               {Rules{Include: []Rule{{Exe: "/app/*", Namespace: "other"}}}, false, 0},
		"label":                            {Rules{Include: []Rule{{Labels: map[string]string{"app.kubernetes.io/name": "s*"}}}}, true, 0},
		"label that is not there":          {Rules{Include: []Rule{{Labels: map[string]string{"x": "*"}}}}, false, 0},
		"annotation that is empty":         {Rules{Include: []Rule{{Annotations: map[string]string{"a": "*", "on": "true"}}}}, true, 0},
		"container by name":                {Rules{Include: []Rule{{Container: "web"}}}, true, 0},
		"container by id":                  {Rules{Include: []Rule{{Container: "3d*"}}}, true, 0},
		"command":                          {Rules{Include: []Rule{{Command: "*shop serve*"}}}, true, 1},
		"environment":                      {Rules{Include: []Rule{{Env: map[string]string{"TIER": "front"}}}}, true, 1},
		"environment that is empty":        {Rules{Include: []Rule{{Env: map[string]string{"EMPTY": "*"}}}}, true, 1},
		"memory is not read without need":  {Rules{Include: []Rule{{Exe: "/bin/*", Env: map[string]string{"TIER": "*"}, Command: "*"}}}, false, 0},
		"a rule without a pattern is none": {Rules{Include: []Rule{{}}}, false, 0},
	} {
		read = 0
		if chosen, reason := tt.rules.Choose(facts()); chosen != tt.chosen || chosen != (reason == "") || read != tt.read {
			t.Errorf("%s: %v %q, %d reads", name, chosen, reason, read)
		}
	}
	outside := &Facts{Exe: "/app/shop"}
	if chosen, _ := (&Rules{Include: []Rule{{Namespace: "*"}}}).Choose(outside); chosen {
		t.Error("a process outside Kubernetes is in some namespace")
	}
}

func TestPodFromCgroup(t *testing.T) {
	const uid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
	under := strings.ReplaceAll(uid, "-", "_")
	for name, tt := range map[string]struct{ text, pod, id string }{
		"containerd, systemd, v2":  {"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id1 + ".scope\n", uid, id1},
		"guaranteed, systemd":      {"0::/kubepods.slice/kubepods-pod" + under + ".slice/cri-containerd-" + id1 + ".scope\n", uid, id1},
		"CRI-O, systemd":           {"0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/crio-" + id1 + ".scope/container\n", uid, id1},
		"cgroupfs, v1":             {"4:memory:/kubepods/burstable/pod" + uid + "/" + id1 + "\n", uid, id1},
		"Docker by cri-dockerd":    {"0::/kubepods.slice/kubepods-pod" + under + ".slice/docker-" + id1 + ".scope\n", uid, id1},
		"containerd, with a colon": {"0::/system.slice/containerd.service/kubepods-burstable-pod" + under + ".slice:cri-containerd:" + id1 + "\n", "", id1},
		"static pod":               {"0::/kubepods/besteffort/pod" + strings.ReplaceAll(uid, "-", "") + "/" + id1 + "\n", strings.ReplaceAll(uid, "-", ""), id1},
		"another's namespace":      {"0::/../../kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id1 + ".scope\n", uid, id1},
		"kind":                     {"0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + under + ".slice/cri-containerd-" + id1 + ".scope\n", uid, id1},
		"no pod":                   {"0::/system.slice/podman-1.scope\n", "", ""},
	} {
		if got := podFromCgroup(tt.text); got != tt.pod {
			t.Errorf("%s: pod %q", name, got)
		}
		if got := containerFromCgroup(tt.text); got != tt.id {
			t.Errorf("%s: container %q", name, got)
		}
	}
}

func FuzzCgroup(f *testing.F) {
	f.Add("0::/kubepods.slice/kubepods-pod0f1e2d3c_4b5a_6978_8796_a5b4c3d2e1f0.slice/cri-containerd-" + id1 + ".scope\n")
	f.Fuzz(func(t *testing.T, text string) {
		if id := containerFromCgroup(text); !strings.Contains(text, id) {
			t.Errorf("container %q is not in the text", id)
		}
		if uid := podFromCgroup(text); uid != "" && !isUID(uid) {
			t.Errorf("pod %q", uid)
		}
	})
}
