package kubernetes

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
)

const digest = "sha256:3d274242653197955ae3bf3d1a5f1e9bd9fcf2d7f0cbff8b7c8bd1fdb9a1b8e5"

func attributes(c Container) (defaults, facts map[string]string) {
	s := c.Surroundings()
	list := func(kvs []attribute.KeyValue) map[string]string {
		m := map[string]string{}
		for _, kv := range kvs {
			m[string(kv.Key)] = kv.Value.String()
		}
		return m
	}
	return list(s.Defaults), list(s.Facts)
}

// TestServiceName follows the order of OpenTelemetry's conventions.
func TestServiceName(t *testing.T) {
	base := Container{Pod: "p", Namespace: "n", Name: "c", Labels: map[string]string{}, Annotations: map[string]string{}}
	with := func(f func(*Container)) Container {
		c := base
		c.Labels, c.Annotations = map[string]string{}, map[string]string{}
		f(&c)
		return c
	}
	for want, c := range map[string]Container{
		"p":       base,
		"deploy":  with(func(c *Container) { c.Labels["pod-template-hash"] = "7d4"; c.owners("ReplicaSet", "deploy-7d4") }),
		"bare-rs": with(func(c *Container) { c.owners("ReplicaSet", "bare-rs") }),
		"db":      with(func(c *Container) { c.owners("StatefulSet", "db") }),
		"ds":      with(func(c *Container) { c.owners("DaemonSet", "ds") }),
		"nightly": with(func(c *Container) { c.owners("Job", "nightly-29123456") }),
		"once":    with(func(c *Container) { c.owners("Job", "once") }),
		"name":    with(func(c *Container) { c.owners("DaemonSet", "ds"); c.Labels["app.kubernetes.io/name"] = "name" }),
		"inst": with(func(c *Container) {
			c.Labels["app.kubernetes.io/name"], c.Labels["app.kubernetes.io/instance"] = "x", "inst"
		}),
		"noted": with(func(c *Container) {
			c.Labels["app.kubernetes.io/instance"] = "x"
			c.Annotations["resource.opentelemetry.io/service.name"] = "noted"
		}),
	} {
		s := c.Surroundings()
		got := ""
		for _, kv := range s.Defaults { // the last one counts
			if kv.Key == "service.name" {
				got = kv.Value.AsString()
			}
		}
		if got != want {
			t.Errorf("service.name is %q, want %q", got, want)
		}
	}
}

func TestImages(t *testing.T) {
	for image, want := range map[string][3]string{
		"shop":                             {"shop", "", ""},
		"shop:1.2":                         {"shop", "1.2", ""},
		"registry:5000/a/shop":             {"registry:5000/a/shop", "", ""},
		"registry:5000/shop:1@" + digest:   {"registry:5000/shop", "1", digest},
		"docker-pullable://shop@" + digest: {"shop", "", digest},
		digest:                             {"", "", ""},
	} {
		name, tag, d := splitImage(image)
		if [3]string{name, tag, d} != want {
			t.Errorf("%s: %q %q %q", image, name, tag, d)
		}
	}
	c := Container{Pod: "p", Name: "c", Image: "r/shop:1.2", ImageID: "r/shop@" + digest, ClusterName: "prod", Restarts: 3}
	defaults, facts := attributes(c)
	if defaults["service.version"] != "1.2" || facts["container.image.name"] != "r/shop" || !strings.Contains(facts["container.image.tags"], "1.2") ||
		!strings.Contains(facts["container.image.repo_digests"], digest) || facts["k8s.cluster.name"] != "prod" || facts["k8s.container.restart_count"] != "3" {
		t.Errorf("%v %v", defaults, facts)
	}
}

// apiServer is as much of one as an informer needs. It can be away.
type apiServer struct {
	mu      sync.Mutex
	pods    []map[string]any
	version int
	asked   []string // for pods, by the query
	watches []chan map[string]any
}

func podOf(name, id string) map[string]any {
	return map[string]any{
		"metadata": map[string]any{"name": name, "namespace": "shop", "uid": "uid-" + name, "resourceVersion": "1",
			"labels": map[string]any{"app.kubernetes.io/name": "shop", "huge": strings.Repeat("x", 5000)}},
		"spec":   map[string]any{"containers": []any{map[string]any{"name": "web", "image": "shop:1"}}},
		"status": map[string]any{"containerStatuses": []any{map[string]any{"name": "web", "containerID": "containerd://" + id}}},
	}
}

func (a *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	w.Header().Set("Content-Type", "application/json")
	if strings.HasSuffix(r.URL.Path, "/namespaces/kube-system") {
		a.mu.Unlock()
		fmt.Fprint(w, `{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"kube-system","uid":"the-cluster"}}`)
		return
	}
	a.asked = append(a.asked, r.URL.Query().Get("fieldSelector")+" "+r.Header.Get("Authorization"))
	if r.URL.Query().Get("watch") == "" {
		defer a.mu.Unlock()
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "PodList", "apiVersion": "v1", "items": a.pods,
			"metadata": map[string]any{"resourceVersion": fmt.Sprint(a.version)}})
		return
	}
	if r.URL.Query().Get("sendInitialEvents") == "true" { // as before Kubernetes 1.34
		a.mu.Unlock()
		w.WriteHeader(http.StatusUnprocessableEntity)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"Invalid","code":422}`)
		return
	}
	events := make(chan map[string]any, 16)
	a.watches = append(a.watches, events)
	a.mu.Unlock()
	w.(http.Flusher).Flush()
	for {
		select {
		case <-r.Context().Done():
			return
		case e, ok := <-events:
			if !ok {
				panic(http.ErrAbortHandler)
			}
			_ = json.NewEncoder(w).Encode(e)
			w.(http.Flusher).Flush()
		}
	}
}

// start serves at an address, "" for any.
func (a *apiServer) start(t *testing.T, address string) *httptest.Server {
	t.Helper()
	server := httptest.NewUnstartedServer(a)
	if address != "" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		server.Listener.Close()
		server.Listener = l
	}
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	server.StartTLS()
	return server
}

// set gives it other pods, and ends what follows the old ones.
func (a *apiServer) set(pods ...map[string]any) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods, a.version = pods, a.version+1
	for _, w := range a.watches {
		close(w)
	}
	a.watches = nil
}

// TestOutage: what is known stays while the API server is away, and is brought up to
// date when it is back.
func TestOutage(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	const one, two = "3d274242653197955ae3bf3d1a5f1e9bd9fcf2d7f0cbff8b7c8bd1fdb9a1b8e5", "71f2b7e6a0a2c8f2f8a7f0a8c9d1b2a3e4f5061728394a5b6c7d8e9f00112233"
	api := &apiServer{version: 1, pods: []map[string]any{podOf("a", one)}}
	server := api.start(t, "")
	dir := t.TempDir()
	ca, token := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "token")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(token, []byte("the-token"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := New(Options{APIServer: server.URL, Node: "node-1", TokenFile: token, CAFile: ca}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer func() { stop(); <-ended; api.set(); server.Close() }()

	soon := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("not so within 30 s: %s; %+v", what, c.Status())
			}
		}
	}
	knows := func(id string) bool { _, complete := c.Find(id, ""); return complete }
	soon("the pod is known", func() bool { return knows(one) })
	found, _ := c.Find(one, "")
	if found.Name != "web" || found.Pod != "a" || found.Labels["huge"] != "" || found.Labels["app.kubernetes.io/name"] != "shop" {
		t.Errorf("found %+v", found)
	}
	if byPod, complete := c.Find("not reported yet", "uid-a"); complete || byPod.Pod != "a" || byPod.Name != "web" {
		t.Errorf("by its pod: %+v, complete %v", byPod, complete)
	}
	soon("the cluster's UID is known", func() bool { k, _ := c.Find(one, ""); return k.ClusterUID == "the-cluster" })

	api.set(podOf("b", two))
	server.CloseClientConnections()
	server.Close()
	soon("the outage is in the status", func() bool { return c.Status().Error != "" })
	if !knows(one) {
		t.Error("the pod is forgotten because the API server is away")
	}
	server = api.start(t, server.Listener.Addr().String())
	soon("the new pod is known, and the old one forgotten", func() bool { return knows(two) && !knows(one) })

	api.mu.Lock()
	defer api.mu.Unlock()
	for _, asked := range api.asked {
		if asked != "spec.nodeName=node-1 Bearer the-token" {
			t.Errorf("asked for pods by %q", asked)
		}
	}
}
