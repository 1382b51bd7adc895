package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Running is one process that a scan saw.
type Running struct {
	PID       int
	StartTime uint64
	Exe       FileID
	Version   Version // of the executable
}

// Watcher sees processes come, by [Watcher.Scan], and go, by [Watcher.Exits].
// It is safe for concurrent use.
type Watcher struct {
	epoll int
	wake  int // eventfd that ends the goroutine
	exits chan *Process
	done  chan struct{} // closed by Close
	ended chan struct{} // closed by the goroutine

	mu      sync.Mutex
	tracked map[int32]*Process // by the watcher's own copy of the pidfd
	fds     map[*Process]int32
	closed  bool
}

// NewWatcher starts a watcher. The caller closes it.
func NewWatcher() (*Watcher, error) {
	w := &Watcher{
		exits: make(chan *Process, 64), done: make(chan struct{}), ended: make(chan struct{}),
		tracked: map[int32]*Process{}, fds: map[*Process]int32{},
	}
	var err error
	if w.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("watch processes: create epoll: %w", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		unix.Close(w.epoll)
		return nil, fmt.Errorf("watch processes: create eventfd: %w", err)
	}
	if err = w.add(int32(w.wake)); err != nil {
		unix.Close(w.wake)
		unix.Close(w.epoll)
		return nil, fmt.Errorf("watch processes: %w", err)
	}
	go w.run()
	return w, nil
}

func (w *Watcher) add(fd int32) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: fd}
	return unix.EpollCtl(w.epoll, unix.EPOLL_CTL_ADD, int(fd), &ev)
}

// Track makes the exit of p known on [Watcher.Exits], once; at once if it has
// exited already. The Process may be closed before that.
func (w *Watcher) Track(p *Process) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return fmt.Errorf("track process %d: the watcher is closed", p.pid)
	}
	if _, ok := w.fds[p]; ok {
		return nil
	}
	// A copy, so that nobody else can close it and have its number given to
	// another file.
	n, err := unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fmt.Errorf("track process %d: %w", p.pid, err)
	}
	fd := int32(n)
	w.tracked[fd], w.fds[p] = p, fd
	if err := w.add(fd); err != nil {
		w.forget(fd)
		return fmt.Errorf("track process %d: %w", p.pid, err)
	}
	return nil
}

// Untrack undoes Track. An exit that is already on its way may still arrive.
func (w *Watcher) Untrack(p *Process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if fd, ok := w.fds[p]; ok {
		w.forget(fd)
	}
}

// forget drops a descriptor; closing the last reference takes it out of epoll,
// but p's own is another, so it is taken out by hand.
func (w *Watcher) forget(fd int32) {
	_ = unix.EpollCtl(w.epoll, unix.EPOLL_CTL_DEL, int(fd), nil) // it may not be in there yet
	_ = unix.Close(int(fd))
	delete(w.fds, w.tracked[fd])
	delete(w.tracked, fd)
}

// Exits delivers each tracked process that has exited, once. The channel is
// closed when the watcher is. While nobody receives, exits wait; none is lost.
func (w *Watcher) Exits() <-chan *Process { return w.exits }

func (w *Watcher) run() {
	defer close(w.ended)
	defer close(w.exits)
	events := make([]unix.EpollEvent, 64)
	for {
		n, err := unix.EpollWait(w.epoll, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // only a programming error leads here
		}
		for _, ev := range events[:n] {
			if int(ev.Fd) == w.wake {
				return
			}
			w.mu.Lock()
			p := w.tracked[ev.Fd]
			if p != nil {
				w.forget(ev.Fd)
			}
			w.mu.Unlock()
			if p == nil {
				continue // untracked meanwhile
			}
			select {
			case w.exits <- p:
			case <-w.done:
				return
			}
		}
	}
}

// Close ends the watcher and closes the channel of exits. It may be called
// more than once.
func (w *Watcher) Close() error {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		<-w.ended
		return nil
	}
	w.closed = true
	w.mu.Unlock()
	close(w.done)
	one := [8]byte{1}
	_, err := unix.Write(w.wake, one[:])
	if err == nil {
		<-w.ended
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for fd := range w.tracked {
		w.forget(fd)
	}
	return errors.Join(err, unix.Close(w.wake), unix.Close(w.epoll))
}

// Scan lists the processes that run now and have an executable that may be
// looked at; kernel threads and what exits meanwhile are left out, and so is
// what a security module hides. If processes are missing because the agent
// lacks CAP_SYS_PTRACE, the list holds the others and the error is
// ErrPermission.
func (w *Watcher) Scan() ([]Running, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer d.Close()
	names, err := d.Readdirnames(-1) // bounded by the kernel's pid_max
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	list := make([]Running, 0, len(names)/2)
	denied := 0
	var buf [maxStat]byte
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		r, err := look(pid, name, buf[:])
		switch {
		case err == nil:
			list = append(list, r)
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			denied++
		}
	}
	if denied > 0 && !hasCapability(unix.CAP_SYS_PTRACE) {
		return list, &failure{ErrPermission, fmt.Sprintf("list processes: %d cannot be looked at: the agent lacks CAP_SYS_PTRACE", denied)}
	}
	return list, nil
}

// Look is a scan of one process. It fails where a scan would leave it out.
func Look(pid int) (Running, error) {
	var buf [maxStat]byte
	return look(pid, strconv.Itoa(pid), buf[:])
}

// look reads what a scan needs of one process, both through one descriptor so
// that they are of the same process.
func look(pid int, name string, buf []byte) (Running, error) {
	r := Running{PID: pid}
	dir, err := unix.Open("/proc/"+name, unix.O_DIRECTORY|unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return r, err
	}
	defer unix.Close(dir)
	exe, err := unix.Openat(dir, "exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return r, err // ENOENT for kernel threads and zombies
	}
	var exeStat unix.Stat_t
	err = unix.Fstat(exe, &exeStat)
	r.Exe, r.Version = identify(exe, &exeStat), version(&exeStat)
	unix.Close(exe)
	if err != nil {
		return r, err
	}
	fd, err := unix.Openat(dir, "stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return r, err
	}
	n, err := unix.Read(fd, buf)
	unix.Close(fd)
	if err != nil {
		return r, err
	}
	st, err := parseStat(buf[:n])
	if err != nil {
		return r, err
	}
	r.StartTime = st.start
	return r, nil
}

// FindByExe lists the processes that run the given file now.
func (w *Watcher) FindByExe(exe FileID) ([]Running, error) {
	list, err := w.Scan()
	found := list[:0]
	for _, r := range list {
		if r.Exe == exe {
			found = append(found, r)
		}
	}
	return found, err
}
