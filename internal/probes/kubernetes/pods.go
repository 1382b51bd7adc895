package kubernetes

import (
	"errors"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/cache"
)

// Find is what is known of a container, by its id, or of its pod, by that one's UID:
// the kubelet reports the id of a container about a second after its start.
func (c *Cluster) Find(containerID, podUID string) (known Container, complete bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	found, ok := c.containers[containerID]
	if !ok {
		p := c.pods[podUID]
		if p == nil {
			return Container{}, false
		}
		found = p.container
		if p.only != "" {
			only := *found
			only.Name, only.Image = p.only, p.images[p.only]
			found = &only
		}
	}
	known = *found
	known.ClusterUID = c.uid
	return known, ok
}

// put takes over a pod as it is now.
func (c *Cluster) put(o any) {
	p, ok := o.(*object)
	if !ok {
		return
	}
	base := Container{
		Namespace: p.Namespace, Pod: p.Name, PodUID: string(p.UID), Labels: p.Labels, Annotations: p.Annotations,
		Node: c.options.Node, ClusterName: c.options.Cluster,
	}
	for _, owner := range p.OwnerReferences {
		if owner.Controller != nil && *owner.Controller {
			base.owners(owner.Kind, owner.Name)
		}
	}
	entry := &pod{container: &base, images: map[string]string{}}
	for _, one := range p.specs() {
		entry.images[one.Name] = one.Image
	}
	if specs := p.specs(); len(specs) == 1 {
		entry.only = specs[0].Name
	}
	c.mu.Lock()
	c.forget(base.PodUID)
	c.pods[base.PodUID] = entry
	for _, status := range p.statuses() {
		_, id, ok := strings.Cut(status.ContainerID, "://")
		if !ok {
			continue
		}
		one := base
		one.Name, one.Image, one.ImageID = status.Name, entry.images[status.Name], status.ImageID
		one.Restarts = status.RestartCount
		c.containers[id] = &one
		entry.ids = append(entry.ids, id)
	}
	c.mu.Unlock()
	c.signal()
}

// forget drops a pod; the caller holds the lock.
func (c *Cluster) forget(uid string) {
	if old := c.pods[uid]; old != nil {
		for _, id := range old.ids {
			delete(c.containers, id)
		}
		delete(c.pods, uid)
	}
}

// remove forgets a pod. Its processes are gone, and have their resources already.
func (c *Cluster) remove(o any) {
	if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
		o = gone.Obj
	}
	if p, ok := o.(*object); ok {
		c.mu.Lock()
		c.forget(string(p.UID))
		c.mu.Unlock()
	}
}

// isRefusal: asking again will not help.
func isRefusal(err error) bool {
	var status apierrors.APIStatus
	return errors.As(err, &status) && (apierrors.IsForbidden(err) || apierrors.IsNotFound(err))
}
