package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
)

// initPIDNamespace is the inode of the first PID namespace of every kernel
// (PROC_PID_INIT_INO).
const initPIDNamespace = "pid:[4026531836]"

// CheckNamespace fails if the numbers of processes that the kernel reports are not
// those that the agent sees in /proc. In a nested PID namespace they are not, and the
// kernel translates them only for processes of that very namespace, which those of
// containers are not.
func CheckNamespace() error {
	self, err := os.Readlink("/proc/self")
	if err != nil {
		return fmt.Errorf("read /proc/self: %w: mount /proc", err)
	}
	if self != strconv.Itoa(os.Getpid()) {
		return errors.New("/proc is of another PID namespace than the agent's own: run the agent in the host's (hostPID: true, or --pid=host)")
	}
	ns, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return fmt.Errorf("read own PID namespace: %w", err)
	}
	if ns != initPIDNamespace {
		return errors.New("the agent runs in a nested PID namespace, where the kernel's process numbers mean others: run it in the host's (hostPID: true, or --pid=host); inside a node that is itself a container, as kind makes them, that is not enough: run it on the machine below")
	}
	return nil
}
