package process

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxEnviron   = 256 << 10
	maxCmdline   = 64 << 10
	maxCgroup    = 64 << 10
	maxMountinfo = 256 << 10
	maxStat      = 4 << 10
	maxPath      = 4 << 10 // PATH_MAX

	// The environment and the command line are read from the target's memory,
	// which a hostile target can back by something that never answers.
	readTimeout = time.Second
	// maxStuck bounds the threads that wait for such targets.
	maxStuck = 8
)

// stuck holds a token for each read that may not come back.
var stuck = make(chan struct{}, maxStuck)

// pfKthread is the flag of kernel threads (PF_KTHREAD) in /proc/PID/stat.
const pfKthread = 0x00200000

// stat is what is used of /proc/PID/stat.
type stat struct {
	state  byte
	parent int
	flags  uint64
	start  uint64
}

func (p *Process) stat() (stat, error) {
	b, err := p.read("stat", maxStat)
	if err != nil {
		return stat{}, err
	}
	st, err := parseStat(b)
	if err != nil {
		return st, fmt.Errorf("process %d: %w", p.pid, err)
	}
	return st, nil
}

// parseStat reads the line. The name, in parentheses, may hold anything,
// parentheses and newlines too, so the last one ends it.
func parseStat(b []byte) (stat, error) {
	var st stat
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return st, errors.New("parse stat: no name")
	}
	fields := strings.Fields(string(b[i+1:]))
	if len(fields) < 20 || fields[0][0] < 'A' { // field 22 of the line is the 20th after the name
		return st, errors.New("parse stat: fields missing")
	}
	var err, err2, err3 error
	st.state = fields[0][0]
	st.parent, err = strconv.Atoi(fields[1])
	st.flags, err2 = strconv.ParseUint(fields[6], 10, 64)
	st.start, err3 = strconv.ParseUint(fields[19], 10, 64)
	if err := errors.Join(err, err2, err3); err != nil {
		return stat{}, fmt.Errorf("parse stat: %w", err)
	}
	return st, nil
}

// read reads a file of /proc/PID, at most limit bytes of it.
func (p *Process) read(name string, limit int) ([]byte, error) {
	fd, err := unix.Openat(p.dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, p.fail("open "+name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)))
	if err != nil {
		return nil, p.fail("read "+name, err)
	}
	return b, nil
}

// readMemory is readOnce, again where that gives nothing: between execve's new program
// and its arguments the kernel has none to show.
func (p *Process) readMemory(name string, limit int) ([]byte, error) {
	for try := 0; ; try++ {
		b, err := p.readOnce(name, limit)
		if len(b) > 0 || err != nil || try == emptyTries {
			return b, err
		}
		time.Sleep(emptyWait)
	}
}

// A process without any environment costs so many waits.
const (
	emptyTries = 5
	emptyWait  = time.Millisecond
)

// readOnce is read for the files that come from the target's memory: it
// gives up after readTimeout. The read itself goes on until the target lets go
// of it or ends.
func (p *Process) readOnce(name string, limit int) ([]byte, error) {
	slow := func() error {
		return &failure{ErrTimeout, fmt.Sprintf("read %s of process %d: it does not answer", name, p.pid)}
	}
	fd, err := unix.Openat(p.dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, p.fail("open "+name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	select {
	case stuck <- struct{}{}:
	default:
		f.Close()
		return nil, slow()
	}
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		defer func() { <-stuck }()
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, int64(limit)))
		done <- result{b, err}
	}()
	timer := time.NewTimer(readTimeout)
	defer timer.Stop()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, p.fail("read "+name, r.err)
		}
		if len(r.b) == 0 && p.Exited() {
			return nil, p.gone()
		}
		return r.b, nil
	case <-timer.C:
		return nil, slow()
	}
}

// Environ returns the environment that the process was started with, at most
// 256 KiB of it, as "name=value".
func (p *Process) Environ() ([]string, error) {
	b, err := p.readMemory("environ", maxEnviron)
	if err != nil {
		return nil, err
	}
	return splitNUL(b, maxEnviron), nil
}

// Environment is Environ by name; nil if it cannot be read.
func (p *Process) Environment() map[string]string {
	list, err := p.Environ()
	if err != nil {
		return nil
	}
	env := make(map[string]string, len(list))
	for _, kv := range list {
		if name, value, ok := strings.Cut(kv, "="); ok {
			env[name] = value
		}
	}
	return env
}

// Cmdline returns the arguments of the process, at most 64 KiB of them. They
// may hold secrets: show them to nobody.
func (p *Process) Cmdline() ([]string, error) {
	b, err := p.readMemory("cmdline", maxCmdline)
	if err != nil {
		return nil, err
	}
	return splitNUL(b, maxCmdline), nil
}

// splitNUL cuts b into its NUL-terminated strings; one that the limit cut is
// left out.
func splitNUL(b []byte, limit int) []string {
	if len(b) >= limit {
		b = b[:bytes.LastIndexByte(b, 0)+1]
	}
	b = bytes.TrimRight(b, "\x00")
	if len(b) == 0 {
		return nil
	}
	return strings.Split(string(b), "\x00")
}

func (p *Process) readlink(name string) (string, error) {
	buf := make([]byte, maxPath)
	n, err := unix.Readlinkat(p.dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// OpenFile opens a regular file of the process for reading: the path is looked
// up in the process's own root directory, which neither ".." nor a symbolic
// link leaves. The caller closes it.
func (p *Process) OpenFile(name string) (*os.File, error) {
	root, err := unix.Openat(p.dir, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, p.fail("open root directory", err)
	}
	defer unix.Close(root)
	// First only a reference: to open a device or a pipe can have effects.
	fd, err := unix.Openat2(root, path.Clean("/"+name), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, fmt.Errorf("open %s of process %d: %w", name, p.pid, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("open %s of process %d: %w", name, p.pid, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("open %s of process %d: no regular file", name, p.pid)
	}
	rd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s of process %d: %w", name, p.pid, err)
	}
	return os.NewFile(uintptr(rd), name), nil
}
