package process

import (
	"strings"
	"testing"
)

const (
	id1 = "3d274242653197955ae3bf3d1a5f1e9bd9fcf2d7f0cbff8b7c8bd1fdb9a1b8e5"
	id2 = "71f2b7e6a0a2c8f2f8a7f0a8c9d1b2a3e4f5061728394a5b6c7d8e9f00112233"
)

func TestContainerFromCgroup(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"docker, v1, cgroupfs", "12:memory:/docker/" + id1 + "\n1:name=systemd:/docker/" + id1 + "\n0::/\n", id1},
		{"docker, v2, systemd", "0::/system.slice/docker-" + id1 + ".scope\n", id1},
		{"docker with systemd inside", "0::/system.slice/docker-" + id1 + ".scope/init.scope\n", id1},
		{"kubelet, v1, cgroupfs", "11:cpu,cpuacct:/kubepods/burstable/pod4a0c3c1e-2d1c-4b1e-8a51-0f5f6d7e8f90/" + id1 + "\n", id1},
		{"containerd, v2, systemd", "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod4a0c3c1e_2d1c_4b1e_8a51_0f5f6d7e8f90.slice/cri-containerd-" + id1 + ".scope\n", id1},
		{"containerd, systemd, no systemd cgroup", "10:cpuset:/system.slice/containerd.service/kubepods-burstable-pod4a0c.slice:cri-containerd:" + id1 + "\n", id1},
		{"cri-o", "0::/kubepods.slice/kubepods-pod4a0c.slice/crio-" + id1 + ".scope\n", id1},
		{"cri-o, container group inside", "0::/kubepods.slice/kubepods-pod4a0c.slice/crio-" + id1 + ".scope/container\n", id1},
		{"cri-o monitor", "0::/kubepods.slice/kubepods-pod4a0c.slice/crio-conmon-" + id1 + ".scope\n", ""},
		{"podman", "0::/machine.slice/libpod-" + id1 + ".scope/container\n", id1},
		{"podman, cgroupfs", "0::/libpod_parent/libpod-" + id1 + "\n", id1},
		{"podman monitor", "0::/machine.slice/libpod-conmon-" + id1 + ".scope\n", ""},
		{"nested: the inner one", "0::/docker/" + id2 + "/kubelet/kubepods/pod1/" + id1 + "\n", id1},
		{"seen from another cgroup namespace", "0::/../../kubepods-pod4a0c.slice/cri-containerd-" + id1 + ".scope\n", id1},
		{"ecs", "9:perf_event:/ecs/task-id/" + id1 + "\n", id1},
		{"fargate", "1:name=systemd:/ecs/55091c13b8cf4801b9f527f4601742204/432624d2150b349fe35ba397284dea78-3467890123\n", "432624d2150b349fe35ba397284dea78-3467890123"},
		{"host service", "0::/system.slice/ssh.service\n", ""},
		{"host session", "0::/user.slice/user-0.slice/session-1.scope\n", ""},
		{"root", "0::/\n", ""},
		{"short id", "4:memory:/process_api/211197520d671153739805910e9ba880\n", ""},
		{"not hexadecimal", "0::/docker/" + strings.Repeat("g", 64) + "\n", ""},
		{"a slice of that name", "0::/docker-" + id1 + ".slice\n", ""},
		{"nothing", "", ""},
		{"no colons", "docker/" + id1, ""},
	}
	for _, tt := range tests {
		if got := containerFromCgroup(tt.in); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func TestContainerFromMounts(t *testing.T) {
	tests := []struct{ name, in, want string }{
		{"docker", "641 631 254:1 /var/lib/docker/containers/" + id1 + "/hostname /etc/hostname rw,relatime - ext4 /dev/vda1 rw\n", id1},
		{"podman", "641 631 0:24 /containers/storage/overlay-containers/" + id1 + "/userdata/hostname /etc/hostname rw - tmpfs tmpfs rw\n", id1},
		{"pod, not container", "641 631 254:1 /var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/" + id1 + "/hostname /etc/hostname rw - ext4 /dev/vda1 rw\n", ""},
		{"another mount", "641 631 254:1 /var/lib/docker/containers/" + id1 + "/hostname /mnt/hostname rw - ext4 /dev/vda1 rw\n", ""},
		{"short", "1 2 3\n\n", ""},
	}
	for _, tt := range tests {
		if got := containerFromMounts(tt.in); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}

func FuzzContainer(f *testing.F) {
	f.Add("0::/system.slice/docker-" + id1 + ".scope\n")
	f.Add("1:name=systemd:/ecs/5/432624d2150b349fe35ba397284dea78-3467890123\n")
	f.Add("641 631 254:1 /var/lib/docker/containers/" + id1 + "/hostname /etc/hostname rw - ext4 /dev/vda1 rw\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, id := range []string{containerFromCgroup(text), containerFromMounts(text)} {
			if id == "" {
				continue
			}
			if len(id) > idLen || strings.Trim(id, "0123456789abcdef-") != "" || !strings.Contains(text, id) {
				t.Errorf("id %q from %q", id, text)
			}
		}
	})
}
