package kubernetes

import (
	"maps"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// object is what is read of a pod.
type object struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Containers          []containerSpec `json:"containers"`
		InitContainers      []containerSpec `json:"initContainers"`
		EphemeralContainers []containerSpec `json:"ephemeralContainers"`
	} `json:"spec"`
	Status struct {
		ContainerStatuses          []containerStatus `json:"containerStatuses"`
		InitContainerStatuses      []containerStatus `json:"initContainerStatuses"`
		EphemeralContainerStatuses []containerStatus `json:"ephemeralContainerStatuses"`
	} `json:"status"`
}

type containerSpec struct {
	Name  string `json:"name"`
	Image string `json:"image"`
}

type containerStatus struct {
	Name         string `json:"name"`
	ImageID      string `json:"imageID"`
	ContainerID  string `json:"containerID"`
	RestartCount int    `json:"restartCount"`
}

func (o *object) specs() []containerSpec {
	return slices.Concat(o.Spec.Containers, o.Spec.InitContainers, o.Spec.EphemeralContainers)
}

func (o *object) statuses() []containerStatus {
	return slices.Concat(o.Status.ContainerStatuses, o.Status.InitContainerStatuses, o.Status.EphemeralContainerStatuses)
}

type objectList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata"`

	Items []object `json:"items"`
}

type namespace struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
}

// DeepCopyObject is part of runtime.Object. Containers are not changed once they are
// read, and so are shared.
func (o *object) DeepCopyObject() runtime.Object {
	c := *o
	o.ObjectMeta.DeepCopyInto(&c.ObjectMeta)
	return &c
}

// DeepCopyObject is part of runtime.Object.
func (l *objectList) DeepCopyObject() runtime.Object {
	c := *l
	c.Items = slices.Clone(l.Items)
	return &c
}

// DeepCopyObject is part of runtime.Object.
func (n *namespace) DeepCopyObject() runtime.Object {
	c := *n
	n.ObjectMeta.DeepCopyInto(&c.ObjectMeta)
	return &c
}

// slim drops what nobody asks for before it is kept.
func slim(o any) (any, error) {
	if p, ok := o.(*object); ok {
		p.ManagedFields = nil
		p.Labels, p.Annotations = shortened(p.Labels), shortened(p.Annotations)
	}
	return o, nil
}

// shortened leaves out values that are data and no names: kubectl keeps a whole
// manifest in an annotation.
func shortened(m map[string]string) map[string]string {
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(_, v string) bool { return len(v) > maxValue })
	return m
}
