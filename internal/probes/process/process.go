// Package process finds and follows the processes that the agent instruments.
//
// A target may exit at any moment, and may be hostile. So a [Process] is tied
// to one process for good by its pidfd and by the descriptor of its /proc
// directory: when the number is given to another process, both refer to the
// old one and every call fails with [ErrGone]. Everything that is read has a
// bound in size, and what the target's memory answers a bound in time.
//
// It needs Linux 5.6 (pidfd_open, openat2).
package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The kinds of failure that callers tell apart with [errors.Is].
var (
	ErrGone         = errors.New("process is gone")
	ErrKernelThread = errors.New("process is a kernel thread")
	ErrPermission   = errors.New("permission denied")
	ErrTimeout      = errors.New("process does not answer")
)

// failure is an error whose text is a whole sentence and whose kind is one of
// the above.
type failure struct {
	kind error
	text string
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.kind }

// Process is one running process. Its methods are safe for concurrent use,
// but for Close.
type Process struct {
	pid   int
	start uint64
	pidfd int
	dir   int // /proc/PID

	exe     *os.File
	id      FileID
	version Version
	path    string

	closeOnce sync.Once
}

// Open opens the process with the given number in the agent's PID namespace.
// The caller closes it. Errors are sentences that name the process; they are
// ErrGone, ErrKernelThread, ErrPermission or something unforeseen.
//
// The executable is the one of this moment: a process that calls execve keeps
// its number and start time, and is noticed by [Watcher.Scan].
func Open(pid int) (*Process, error) {
	if pid <= 0 {
		return nil, &failure{ErrGone, fmt.Sprintf("process %d does not exist: process numbers start at 1", pid)}
	}
	p := &Process{pid: pid, pidfd: -1, dir: -1}
	if err := p.open(); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

func (p *Process) open() error {
	var err error
	p.pidfd, err = unix.PidfdOpen(p.pid, 0)
	switch {
	case errors.Is(err, unix.ESRCH):
		return &failure{ErrGone, fmt.Sprintf("process %d does not exist", p.pid)}
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("process %d is a thread of another process, not a process", p.pid)
	case err != nil:
		return fmt.Errorf("open process %d: %w", p.pid, err)
	}
	p.dir, err = unix.Open("/proc/"+strconv.Itoa(p.pid), unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return p.fail("open /proc entry", err)
	}
	// If the process still runs now, both descriptors are of the same one.
	if p.Exited() {
		return p.gone()
	}
	st, err := p.stat()
	if err != nil {
		return err
	}
	if st.flags&pfKthread != 0 {
		return &failure{ErrKernelThread, fmt.Sprintf("process %d is a kernel thread", p.pid)}
	}
	p.start = st.start
	return p.openExe()
}

// openExe goes through the link of the kernel, which works for a deleted file
// and for one of another mount namespace.
func (p *Process) openExe() error {
	fd, err := unix.Openat(p.dir, "exe", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return p.fail("open executable", err)
	}
	p.exe = os.NewFile(uintptr(fd), "/proc/"+strconv.Itoa(p.pid)+"/exe")
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return p.fail("stat executable", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("process %d: its executable is no regular file", p.pid)
	}
	p.id, p.version = identify(fd, &st), version(&st)
	p.path, err = p.exePath(uint64(st.Nlink)) // its size differs by architecture
	return err
}

// PID is the number of the process in the agent's PID namespace.
func (p *Process) PID() int { return p.pid }

// StartTime is when it started, in clock ticks since boot. With the PID it is
// unique until the next boot.
func (p *Process) StartTime() uint64 { return p.start }

// Exe is the executable, open for reading; the Process owns it. It is the
// same file for as long as the Process is open, whatever happens to its path.
func (p *Process) Exe() *os.File { return p.exe }

// ExeID identifies the executable's file.
func (p *Process) ExeID() FileID { return p.id }

// ExeVersion tells what the executable's file held when the process was opened.
func (p *Process) ExeVersion() Version { return p.version }

// ExePath is the path of the executable as the process itself sees it, for
// people to read; open files of the process with [Process.OpenFile].
func (p *Process) ExePath() string { return p.path }

// Pidfd is the descriptor of the process; the Process owns it.
func (p *Process) Pidfd() int { return p.pidfd }

// Exited tells whether the process has ended, waited for by its parent or not.
func (p *Process) Exited() bool {
	fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(fds, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0
	}
}

// Close releases the descriptors. It may be called more than once.
func (p *Process) Close() error {
	var err error
	p.closeOnce.Do(func() {
		for _, fd := range []int{p.pidfd, p.dir} {
			if fd >= 0 {
				err = errors.Join(err, unix.Close(fd))
			}
		}
		if p.exe != nil {
			err = errors.Join(err, p.exe.Close())
		}
	})
	return err
}

func (p *Process) gone() error {
	return &failure{ErrGone, fmt.Sprintf("process %d has exited", p.pid)}
}

// fail turns what the kernel says of a file of the process into a sentence.
func (p *Process) fail(step string, err error) error {
	switch {
	case errors.Is(err, unix.ESRCH) || p.Exited():
		return p.gone()
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		why := "a security module or another user namespace forbids it, in spite of the agent's capabilities"
		// The link asks for the right to look at the process, its file for that to read it.
		_, linkErr := p.readlink("exe")
		switch {
		case linkErr != nil && !hasCapability(unix.CAP_SYS_PTRACE):
			why = "the agent lacks CAP_SYS_PTRACE"
		case linkErr == nil && !mayReadAll():
			why = "only its owner may read it, and the agent lacks CAP_DAC_READ_SEARCH"
		}
		return &failure{ErrPermission, fmt.Sprintf("%s of process %d: permission denied: %s", step, p.pid, why)}
	case errors.Is(err, unix.ENOENT) && p.dir < 0:
		return fmt.Errorf("process %d runs, but this /proc does not show it: mounted with hidepid, or of another PID namespace", p.pid)
	}
	return fmt.Errorf("%s of process %d: %w", step, p.pid, err)
}

// Denied adds to an error of a path which capability would help, if one would.
func Denied(err error) error {
	if errors.Is(err, os.ErrPermission) && !mayReadAll() {
		return fmt.Errorf("%w: the agent lacks CAP_DAC_READ_SEARCH", err)
	}
	return err
}

// mayReadAll tells whether permissions of files do not hold this thread up.
func mayReadAll() bool {
	return hasCapability(unix.CAP_DAC_READ_SEARCH) || hasCapability(unix.CAP_DAC_OVERRIDE)
}

// hasCapability tells whether this thread has a capability in effect.
func hasCapability(bit uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[bit/32].Effective&(1<<(bit%32)) != 0
}

// exePath reads the path and makes it what the process sees: without the
// directory that it was chrooted to, and without the kernel's mark of a
// deleted file, unless that is part of the name.
func (p *Process) exePath(nlink uint64) (string, error) {
	path, err := p.readlink("exe")
	if err != nil {
		return "", p.fail("read path of executable", err)
	}
	// Without a root there is no path to shorten.
	if root, err := p.readlink("root"); err == nil && root != "/" {
		if rest, ok := strings.CutPrefix(path, root); ok && strings.HasPrefix(rest, "/") {
			path = rest
		}
	}
	if name, ok := strings.CutSuffix(path, " (deleted)"); ok {
		if nlink == 0 || !p.isExe(path) {
			path = name
		}
	}
	return path, nil
}

// isExe tells whether path, in the process's root, is its executable.
func (p *Process) isExe(path string) bool {
	f, err := p.OpenFile(path)
	if err != nil {
		return false
	}
	defer f.Close()
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && identify(int(f.Fd()), &st) == p.id
}
