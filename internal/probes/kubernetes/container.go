package kubernetes

import (
	"maps"
	"slices"
	"strconv"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/plainframework/agent/internal/probes/process"
)

// Annotations of a pod with this prefix are attributes of its resource.
const resourceAnnotation = "resource.opentelemetry.io/"

// Bounds on what a pod may add to a resource.
const (
	maxAnnotations = 64
	maxValue       = 4 << 10
)

// Container is what the cluster knows of a container, or, where Name is "", of its pod.
// It does not change.
type Container struct {
	Name        string // in the pod
	Image       string // with its tag, as the pod asks for it
	ImageID     string // with its digest, as the node has it
	Restarts    int
	Namespace   string
	Pod         string
	PodUID      string
	Labels      map[string]string
	Annotations map[string]string

	Node        string
	ClusterName string
	ClusterUID  string

	// The pod's owners, "" where it has none of that kind.
	Deployment, ReplicaSet, StatefulSet, DaemonSet, CronJob, Job string
}

// Surroundings are the attributes for the resource of a process in the container.
// What is called service.* are defaults: the process's own environment knows better.
func (c Container) Surroundings() process.Surroundings {
	if c.Pod == "" {
		return process.Surroundings{}
	}
	var s process.Surroundings
	byDefault := func(key attribute.Key, value string) {
		if value != "" {
			s.Defaults = append(s.Defaults, key.String(value))
		}
	}
	byDefault(semconv.ServiceNamespaceKey, c.Namespace)
	byDefault(semconv.ServiceNameKey, c.serviceName())
	byDefault(semconv.ServiceVersionKey, c.serviceVersion())
	for i, key := range slices.Sorted(maps.Keys(c.Annotations)) {
		if name, ok := strings.CutPrefix(key, resourceAnnotation); ok && name != "" && i < maxAnnotations {
			byDefault(attribute.Key(name), c.Annotations[key])
		}
	}
	fact := func(key attribute.Key, value string) {
		if value != "" {
			s.Facts = append(s.Facts, key.String(value))
		}
	}
	fact(semconv.K8SClusterNameKey, c.ClusterName)
	fact(semconv.K8SClusterUIDKey, c.ClusterUID)
	fact(semconv.K8SNodeNameKey, c.Node)
	fact(semconv.K8SNamespaceNameKey, c.Namespace)
	fact(semconv.K8SPodNameKey, c.Pod)
	fact(semconv.K8SPodUIDKey, c.PodUID)
	fact(semconv.K8SDeploymentNameKey, c.Deployment)
	fact(semconv.K8SReplicaSetNameKey, c.ReplicaSet)
	fact(semconv.K8SStatefulSetNameKey, c.StatefulSet)
	fact(semconv.K8SDaemonSetNameKey, c.DaemonSet)
	fact(semconv.K8SCronJobNameKey, c.CronJob)
	fact(semconv.K8SJobNameKey, c.Job)
	fact(semconv.K8SContainerNameKey, c.Name)
	if c.Name == "" {
		return s
	}
	s.Facts = append(s.Facts, semconv.K8SContainerRestartCount(c.Restarts))
	name, tag, _ := splitImage(c.Image)
	fact(semconv.ContainerImageNameKey, name)
	if tag != "" {
		s.Facts = append(s.Facts, semconv.ContainerImageTags(tag))
	}
	if _, _, digest := splitImage(c.ImageID); digest != "" {
		s.Facts = append(s.Facts, semconv.ContainerImageRepoDigests(strings.TrimPrefix(c.ImageID, "docker-pullable://")))
	}
	return s
}

// serviceName is the first of what OpenTelemetry's conventions for Kubernetes list; the
// annotation, which is before all of them, is laid over it.
func (c Container) serviceName() string {
	return first(c.Labels["app.kubernetes.io/instance"], c.Labels["app.kubernetes.io/name"],
		c.Deployment, c.ReplicaSet, c.StatefulSet, c.DaemonSet, c.CronJob, c.Job, c.Pod, c.Name)
}

// serviceVersion is a label, else what identifies the image: its tag, and the digest
// where the tag may move.
func (c Container) serviceVersion() string {
	if v := c.Labels["app.kubernetes.io/version"]; v != "" {
		return v
	}
	_, tag, digest := splitImage(c.Image)
	switch {
	case tag != "" && digest != "":
		return tag + "@" + digest
	case digest != "":
		return digest
	}
	return tag
}

func first(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}

// splitImage cuts "registry:5000/name:tag@sha256:…" into its parts.
func splitImage(image string) (name, tag, digest string) {
	if i := strings.Index(image, "://"); i >= 0 {
		image = image[i+3:]
	}
	name, digest, _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, tag = name[:i], name[i+1:]
	}
	if strings.HasPrefix(name, "sha256") { // an image without a name
		return "", "", digest
	}
	return name, tag, digest
}

// owners fills in who owns a pod. A ReplicaSet's and a Job's own owner is another
// object, which the agent has no right to read; their names say it, by the rule that
// their controllers make them by.
func (c *Container) owners(kind, name string) {
	switch kind {
	case "ReplicaSet":
		c.ReplicaSet = name
		if hash := c.Labels["pod-template-hash"]; hash != "" {
			if deployment, ok := strings.CutSuffix(name, "-"+hash); ok {
				c.Deployment = deployment
			}
		}
	case "StatefulSet":
		c.StatefulSet = name
	case "DaemonSet":
		c.DaemonSet = name
	case "Job":
		c.Job = name
		// A CronJob names its jobs by the minute that they were due, since 1970.
		if i := strings.LastIndexByte(name, '-'); i > 0 && len(name)-i-1 == 8 {
			if _, err := strconv.ParseUint(name[i+1:], 10, 32); err == nil {
				c.CronJob = name[:i]
			}
		}
	}
}
