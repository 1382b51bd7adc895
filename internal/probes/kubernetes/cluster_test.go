//go:build cluster

package kubernetes

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
)

// admin talks to the API server of scripts/kubernetes as its administrator.
type admin struct {
	t      *testing.T
	client *http.Client
}

func (a admin) send(method, path, contentType, body string) int {
	a.t.Helper()
	req, err := http.NewRequest(method, os.Getenv("TEST_KUBERNETES_SERVER")+path, strings.NewReader(body))
	if err != nil {
		a.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+os.Getenv("TEST_KUBERNETES_ADMIN_TOKEN"))
	req.Header.Set("Content-Type", contentType)
	res, err := a.client.Do(req)
	if err != nil {
		a.t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	if res.StatusCode >= 300 {
		a.t.Logf("%s %s: %d %s", method, path, res.StatusCode, text)
	}
	return res.StatusCode
}

func (a admin) pod(name, node string) {
	a.t.Helper()
	body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"name":%q,"labels":{"app":"shop","pod-template-hash":"7d4b9c"},
		"annotations":{"resource.opentelemetry.io/service.name":"storefront"},
		"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"shop-7d4b9c","uid":"u1","controller":true}]},
		"spec":{"nodeName":%q,"containers":[{"name":"web","image":"registry.example:5000/shop:1.2"}]}}`, name, node)
	if code := a.send("POST", "/api/v1/namespaces/shop/pods", "application/json", body); code != http.StatusCreated {
		a.t.Fatalf("create pod: %d", code)
	}
}

// TestRealAPIServer follows pods of a real API server with the rights of the DaemonSet.
func TestRealAPIServer(t *testing.T) {
	ca, err := os.ReadFile(os.Getenv("TEST_KUBERNETES_CA"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	a := admin{t, &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}}
	a.pod("mine", "node-1")
	a.pod("others", "node-2")

	var log bytes.Buffer
	c, err := New(Options{
		APIServer: os.Getenv("TEST_KUBERNETES_SERVER"), Node: "node-1", Cluster: "test",
		TokenFile: os.Getenv("TEST_KUBERNETES_TOKEN_FILE"), CAFile: os.Getenv("TEST_KUBERNETES_CA"), UserAgent: "test",
	}, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	defer func() { stop(); <-ended }()

	const id = "3d274242653197955ae3bf3d1a5f1e9bd9fcf2d7f0cbff8b7c8bd1fdb9a1b8e5"
	eventually(t, "the pod of this node is known, and no other", func() bool { return c.Status().Synced && c.Status().Pods == 1 })
	if _, complete := c.Find(id, ""); complete {
		t.Error("knows a container that has not started")
	}
	status := map[string]any{"status": map[string]any{"containerStatuses": []any{map[string]any{
		"name": "web", "image": "x", "imageID": "registry.example:5000/shop@sha256:" + id, "containerID": "containerd://" + id,
		"ready": true, "restartCount": 2,
	}}}}
	body, _ := json.Marshal(status)
	if code := a.send("PATCH", "/api/v1/namespaces/shop/pods/mine/status", "application/strategic-merge-patch+json", string(body)); code != http.StatusOK {
		t.Fatalf("patch status: %d", code)
	}
	eventually(t, "the container is known", func() bool { _, complete := c.Find(id, ""); return complete })
	known, _ := c.Find(id, "")
	eventually(t, "the cluster's UID is known", func() bool { known, _ = c.Find(id, ""); return known.ClusterUID != "" })
	if known.Name != "web" || known.Namespace != "shop" || known.Pod != "mine" || known.Deployment != "shop" || known.Restarts != 2 || known.Node != "node-1" {
		t.Errorf("known: %+v", known)
	}
	if code := a.send("DELETE", "/api/v1/namespaces/shop/pods/mine?gracePeriodSeconds=0", "application/json", ""); code != http.StatusOK {
		t.Fatalf("delete: %d", code)
	}
	eventually(t, "the pod is forgotten", func() bool { return c.Status().Pods == 0 })
	if c.Status().Error != "" {
		t.Errorf("status: %+v\n%s", c.Status(), log.String())
	}

	// The same token is refused what it has no right to.
	err = c.client.Get().Resource("secrets").Do(ctx).Error()
	if err == nil || !strings.Contains(err.Error(), "forbidden") {
		t.Errorf("reads secrets: %v", err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not so within 20 s: %s", what)
		}
	}
}
