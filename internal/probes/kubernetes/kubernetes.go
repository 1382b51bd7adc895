// Package kubernetes knows of the containers of one node what their control
// groups do not tell: pod, namespace, workload, image. It asks the API server
// for the pods of its own node only, follows their changes, and answers from
// memory, so that an API server that is away costs nothing but news.
//
// client-go's informers do the following. Its typed clients are not used, nor the
// types of its core group: the former bring every API group with them, some 20 MB of
// program, and the latter decode a pod whole, where a tenth of it is asked for. The
// structs of object.go are read instead.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// Where the kubelet puts what a pod needs to talk to the API server.
const (
	TokenFile = "/var/run/secrets/kubernetes.io/serviceaccount/token"
	CAFile    = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"
)

// Options name the cluster and the node.
type Options struct {
	APIServer string // URL
	Node      string // its name in the cluster
	Cluster   string // k8s.cluster.name; "" leaves it out
	TokenFile string // read again when it changes
	CAFile    string
	UserAgent string
}

// Cluster follows the pods of a node. Its methods are safe for concurrent use.
type Cluster struct {
	options Options
	log     *slog.Logger
	client  rest.Interface
	changed chan struct{}

	mu         sync.RWMutex
	containers map[string]*Container // by container id
	pods       map[string]*pod       // by UID
	uid        string                // of the cluster
	synced     bool
	failed     string // the last error of following, "" while all is well
}

// pod is one pod, and what it has in the map of containers.
type pod struct {
	container *Container // without what differs between its containers
	only      string     // the name of its container if it has but one
	images    map[string]string
	ids       []string
}

// New makes a client; it does not talk to the API server yet.
func New(o Options, log *slog.Logger) (*Cluster, error) {
	if o.Node == "" {
		return nil, errors.New("the name of the node is not set: set kubernetes.node_name, by the variable PLAIN_AGENT_NODE_NAME with the value of spec.nodeName")
	}
	core := schema.GroupVersion{Version: "v1"}
	scheme := runtime.NewScheme()
	scheme.AddKnownTypeWithName(core.WithKind("Pod"), &object{})
	scheme.AddKnownTypeWithName(core.WithKind("PodList"), &objectList{})
	scheme.AddKnownTypeWithName(core.WithKind("Namespace"), &namespace{})
	metav1.AddToGroupVersion(scheme, core)
	client, err := rest.RESTClientFor(&rest.Config{
		Host: o.APIServer, APIPath: "/api", BearerTokenFile: o.TokenFile,
		TLSClientConfig: rest.TLSClientConfig{CAFile: o.CAFile},
		UserAgent:       o.UserAgent,
		ContentConfig: rest.ContentConfig{
			GroupVersion:         &core,
			NegotiatedSerializer: serializer.NewCodecFactory(scheme).WithoutConversion(),
			ContentType:          runtime.ContentTypeJSON,
		},
		// The agent's own proxy settings are for the export.
		Proxy: func(*http.Request) (*url.URL, error) { return nil, nil },
	})
	if err != nil {
		return nil, fmt.Errorf("prepare the client of the API server: %w", err)
	}
	return &Cluster{
		options: o, log: log, client: client, changed: make(chan struct{}, 1),
		containers: map[string]*Container{}, pods: map[string]*pod{},
	}, nil
}

// Run follows the pods until ctx is done. While the API server is away it tries again,
// ever more slowly up to every 30 s or so, and what is known stays.
func (c *Cluster) Run(ctx context.Context) error {
	quietKlog()
	informer := cache.NewSharedInformer(c.source(), &object{}, 0)
	if err := informer.SetTransform(slim); err != nil {
		return fmt.Errorf("follow pods: %w", err)
	}
	// What goes wrong is told by source, which hears of every try.
	if err := informer.SetWatchErrorHandlerWithContext(func(context.Context, *cache.Reflector, error) {}); err != nil {
		return fmt.Errorf("follow pods: %w", err)
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { c.put(o) },
		UpdateFunc: func(_, o any) { c.put(o) },
		DeleteFunc: func(o any) { c.remove(o) },
	})
	if err != nil {
		return fmt.Errorf("follow pods: %w", err)
	}
	var asking sync.WaitGroup
	asking.Go(func() { c.findUID(ctx) })
	asking.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), informer.HasSynced) {
			c.mu.Lock()
			c.synced = true
			n := len(c.pods)
			c.mu.Unlock()
			c.log.Info("pods of the node are known", "node", c.options.Node, "pods", n)
			c.signal()
		}
	})
	informer.RunWithContext(ctx)
	asking.Wait()
	return nil
}

// source lists and watches the pods of the node, and notes how that goes.
func (c *Cluster) source() *cache.ListWatch {
	from := cache.NewListWatchFromClient(c.client, "pods", metav1.NamespaceAll, fields.OneTermEqualSelector("spec.nodeName", c.options.Node))
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := from.ListWithContext(ctx, o)
			c.tried(ctx, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := from.WatchWithContext(ctx, o)
			if !apierrors.IsInvalid(err) { // a way of asking that older servers do not know
				c.tried(ctx, err)
			}
			return w, err
		},
	}
}

// Changed gets a value when there is something new to find.
func (c *Cluster) Changed() <-chan struct{} { return c.changed }

func (c *Cluster) signal() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// Status is how well the cluster is known, for people.
type Status struct {
	Node   string `json:"node"`
	Pods   int    `json:"pods"`
	Synced bool   `json:"synced"` // all pods were listed once
	Error  string `json:"error,omitempty"`
}

// Status is a snapshot.
func (c *Cluster) Status() Status {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return Status{Node: c.options.Node, Pods: len(c.pods), Synced: c.synced, Error: c.failed}
}

// tried notes how a try to reach the API server ended, and says once that it failed until
// one succeeds.
func (c *Cluster) tried(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // the agent ends
	}
	c.mu.Lock()
	before := c.failed
	c.failed = ""
	if err != nil {
		c.failed = err.Error()
	}
	c.mu.Unlock()
	switch {
	case err != nil && before == "":
		c.log.Warn("pods are not followed now; what is known of them stays, and it is tried again", "error", err)
	case err == nil && before != "":
		c.log.Info("pods are followed again")
	}
}

// findUID asks for what stands for the UID of a cluster: that of the namespace
// kube-system. Without the right to ask the attribute stays away.
func (c *Cluster) findUID(ctx context.Context) {
	for wait := time.Second; ; wait = min(2*wait, time.Minute) {
		var system namespace
		err := c.client.Get().Resource("namespaces").Name("kube-system").Timeout(10 * time.Second).Do(ctx).Into(&system)
		if err == nil {
			c.mu.Lock()
			c.uid = string(system.UID)
			c.mu.Unlock()
			c.signal()
			return
		}
		if isRefusal(err) {
			c.log.Debug("the cluster's UID is unknown", "error", err)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// quietKlog stops client-go from writing to the agent's standard error by itself; what
// goes wrong comes through tried.
var quietKlog = sync.OnceFunc(func() { klog.SetLogger(logr.Discard()) })
