package probes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/bpf"
)

// run adds sockets that were connected before the agent started, when they are first
// used, and takes those out that turn out to carry something else than HTTP/1.x.
func (p *propagation) run(ctx context.Context) {
	if p == nil || p.events == nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { p.events.Close() })
	defer stop()
	var record ringbuf.Record
	for {
		if err := p.events.ReadInto(&record); err != nil {
			if !errors.Is(err, ringbuf.ErrClosed) {
				p.log.Warn("connections from before the agent's start are not followed", "error", err)
			}
			return
		}
		event, _, err := recordAs[bpf.AgentPropagateEvent](record.RawSample)
		if err != nil {
			continue
		}
		if event.Leave != 0 {
			err := p.maps["propagate_connected"].Delete(event.Cookie)
			if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				p.log.Debug("a socket stays in the map of those that are changed", "error", err)
			}
		} else if err := p.adopt(event); err != nil {
			p.log.Debug("a connection is not followed", "pid", event.Tgid, "error", err)
		}
	}
}

// connEnds are the two ends of a connection.
type connEnds struct{ local, remote netip.AddrPort }

func endOf(a bpf.AgentConnAddress) netip.AddrPort {
	var ip [16]byte
	binary.NativeEndian.PutUint64(ip[:8], a.Ip[0])
	binary.NativeEndian.PutUint64(ip[8:], a.Ip[1])
	return netip.AddrPortFrom(netip.AddrFrom16(ip).Unmap(), uint16(a.Port))
}

// maxDescriptors bounds the search for a socket in one process.
const maxDescriptors = 1 << 16

// adopt finds the socket of a connection in its process and adds it.
func (p *propagation) adopt(event *bpf.AgentPropagateEvent) error {
	wanted := connEnds{endOf(event.Ends.Local), endOf(event.Ends.Remote)}
	pid := int(event.Tgid)
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("open process: %w", err)
	}
	defer unix.Close(pidfd)
	dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxDescriptors)
	if err != nil {
		return fmt.Errorf("list descriptors: %w", err)
	}
	for _, name := range names {
		link, err := os.Readlink(dir.Name() + "/" + name)
		if err != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		number, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		fd, err := unix.PidfdGetfd(pidfd, number, 0)
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) {
			return fmt.Errorf("take a socket of the process: %w", err)
		}
		if err != nil {
			continue // closed meanwhile
		}
		found := endsOf(fd) == wanted
		if found {
			err = p.addSocket(fd, event.Tgid)
		}
		unix.Close(fd)
		if found {
			return err
		}
	}
	return errors.New("find its socket: the process has none with these addresses")
}

// endsOf are the addresses of a connected TCP socket, else nothing.
func endsOf(fd int) (ends connEnds) {
	if protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil || protocol != unix.IPPROTO_TCP {
		return ends
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return ends
	}
	remote, err := unix.Getpeername(fd)
	if err != nil {
		return ends
	}
	return connEnds{addressOf(local), addressOf(remote)}
}

func addressOf(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// addSocket has what a socket sends pass the programs.
func (p *propagation) addSocket(fd int, tgid uint32) error {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return fmt.Errorf("read the cookie of a socket: %w", err)
	}
	known := bpf.AgentPropagateSocket{Cookie: cookie, Tgid: tgid, State: uint32(bpf.AgentPropagateStatePROPAGATE_HTTP)}
	if err := p.maps["propagate_sockets"].Put(uint32(fd), &known); err != nil {
		return fmt.Errorf("note a socket: %w", err)
	}
	if err := p.maps["propagate_connected"].Put(cookie, uint64(fd)); err != nil {
		return fmt.Errorf("add a socket: %w", err)
	}
	return nil
}
