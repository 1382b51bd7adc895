package process

import "strings"

// idLen is the length of a container's id: a SHA-256 in hexadecimal.
const idLen = 64

// Container is what the control groups of a process say of where it runs; "" is
// unknown, or not in one.
type Container struct {
	ID     string
	PodUID string // of Kubernetes
}

// Container returns the container that the process runs in.
func (p *Process) Container() Container {
	// What cannot be read tells nothing; the error is that of the next read.
	b, err := p.read("cgroup", maxCgroup)
	if err != nil {
		return Container{}
	}
	c := Container{ID: containerFromCgroup(string(b)), PodUID: podFromCgroup(string(b))}
	if c.ID != "" {
		return c
	}
	if b, err = p.read("mountinfo", maxMountinfo); err == nil {
		c.ID = containerFromMounts(string(b))
	}
	return c
}

// podFromCgroup finds the UID of the pod in the group that the kubelet makes for it:
// "podUID" (cgroupfs driver), or "kubepods-burstable-podUID.slice" with underscores
// (systemd driver). Pods that the node's own files define have 32 digits without
// separators.
func podFromCgroup(text string) string {
	for line := range strings.Lines(text) {
		for group := range strings.SplitSeq(strings.TrimSuffix(line, "\n"), "/") {
			if slice, ok := strings.CutSuffix(group, ".slice"); ok {
				group = slice[strings.LastIndexByte(slice, '-')+1:]
			}
			if uid, ok := strings.CutPrefix(group, "pod"); ok {
				if uid = strings.ReplaceAll(uid, "_", "-"); isUID(uid) {
					return uid
				}
			}
		}
	}
	return ""
}

// isUID tells whether a text looks like the UID of a pod.
func isUID(s string) bool {
	digits := strings.ReplaceAll(s, "-", "")
	return len(digits) == 32 && isHex(digits) && (len(s) == 32 || len(s) == 36)
}

// containerFromCgroup finds the id in /proc/PID/cgroup, version 1 or 2. The
// innermost group counts: containers can be nested.
func containerFromCgroup(text string) string {
	for line := range strings.Lines(text) {
		// hierarchy:controllers:path
		_, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		if !ok {
			continue
		}
		_, path, ok := strings.Cut(rest, ":")
		if !ok {
			continue
		}
		ecs := strings.HasPrefix(path, "/ecs/")
		for path != "" {
			i := strings.LastIndexByte(path, '/')
			if id := containerFromGroup(path[i+1:], ecs); id != "" {
				return id
			}
			path = path[:max(i, 0)]
		}
	}
	return ""
}

// containerFromGroup finds the id in the name of one control group: alone
// (cgroupfs driver), in "docker-ID.scope", "cri-containerd-ID.scope" and the
// like (systemd driver), after the last colon ("slice:cri-containerd:ID"), or
// as ECS on Fargate names it.
func containerFromGroup(name string, ecs bool) string {
	if strings.HasSuffix(name, ".slice") || strings.HasSuffix(name, ".service") {
		return ""
	}
	name = strings.TrimSuffix(name, ".scope")
	if strings.Contains(name, "conmon") { // the process that watches a container
		return ""
	}
	if i := strings.LastIndexByte(name, ':'); i >= 0 {
		name = name[i+1:]
	}
	last := name[strings.LastIndexByte(name, '-')+1:]
	if len(last) == idLen && isHex(last) {
		return last
	}
	if task, n, ok := strings.Cut(name, "-"); ecs && ok && len(task) == 32 && isHex(task) && len(n) >= 6 && len(n) <= 20 && strings.Trim(n, "0123456789") == "" {
		return name
	}
	return ""
}

// containerFromMounts finds the id in /proc/PID/mountinfo, for a control group
// whose path was hidden by a namespace: Docker and Podman mount the host name
// file from a directory of that name. Others use one of the pod there.
func containerFromMounts(text string) string {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 5 || fields[4] != "/etc/hostname" {
			continue
		}
		for _, dir := range []string{"/docker/containers/", "/overlay-containers/"} {
			_, rest, ok := strings.Cut(fields[3], dir)
			if !ok {
				continue
			}
			if id, _, ok := strings.Cut(rest, "/"); ok && len(id) == idLen && isHex(id) {
				return id
			}
		}
	}
	return ""
}

func isHex(s string) bool {
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
