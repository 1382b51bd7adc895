package probes

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// bell rings when programs wake the reader: a ring fills faster than it is looked into.
// They do that where a ring passes a mark, and so seldom; ring_wakeup of bpf/maps.h says
// when. The readers of the rings themselves would return for every record.
type bell struct {
	epoll, stop int // descriptors; stop is an eventfd

	rings chan struct{}
	done  chan struct{}
}

// newBell listens to rings, until close.
func newBell(rings ...*ebpf.Map) (*bell, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("wait for full rings: %w", err)
	}
	stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("wait for full rings: %w", err), unix.Close(epoll))
	}
	b := &bell{epoll: epoll, stop: stop, rings: make(chan struct{}, 1), done: make(chan struct{})}
	fds := []int{stop}
	for _, r := range rings {
		fds = append(fds, r.FD())
	}
	for _, fd := range fds {
		// Of an edge only: what waits in a ring is no reason to return.
		event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(fd)}
		if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fd, &event); err != nil {
			return nil, errors.Join(fmt.Errorf("wait for full rings: %w", err), unix.Close(stop), unix.Close(epoll))
		}
	}
	go b.listen()
	return b, nil
}

func (b *bell) listen() {
	defer close(b.done)
	var events [4]unix.EpollEvent
	for {
		n, err := unix.EpollWait(b.epoll, events[:], -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return // the reader looks now and then all the same
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) == b.stop {
				return
			}
		}
		select {
		case b.rings <- struct{}{}:
		default: // it has been told
		}
	}
}

func (b *bell) close() error {
	one := [8]byte{1}
	_, err := unix.Write(b.stop, one[:])
	if err == nil {
		<-b.done
	}
	return errors.Join(err, unix.Close(b.stop), unix.Close(b.epoll))
}
