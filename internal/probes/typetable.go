package probes

import (
	"errors"
	"fmt"
	"slices"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/gobin"
)

// contextInfo says how a walk gets from a context to its parent. A direct value is
// its struct's only word, a pointer, and so needs one step less.
func contextInfo(t gobin.ContextType) bpf.AgentTypeInfo {
	info := bpf.AgentTypeInfo{Offset: uint32(t.Offset)}
	role := bpf.AgentTypeRoleTYPE_CONTEXT_INTERFACE
	switch t.Kind {
	case gobin.ContextPointer:
		role, info.Next = bpf.AgentTypeRoleTYPE_CONTEXT_POINTER, t.Parent
		if t.Direct {
			role = bpf.AgentTypeRoleTYPE_CONTEXT_VALUE
		}
	case gobin.ContextVia:
		role, info.Next = bpf.AgentTypeRoleTYPE_CONTEXT_INDIRECT, t.Via
		if t.Direct {
			role, info.Offset, info.Next = bpf.AgentTypeRoleTYPE_CONTEXT_INTERFACE, uint32(t.Via), 0
		}
	}
	info.Role = uint32(role)
	return info
}

// connInfo says how a walk gets from a connection to the one that it wraps.
func connInfo(t gobin.ConnType) bpf.AgentTypeInfo {
	info := bpf.AgentTypeInfo{Offset: uint32(t.Offset)}
	role := bpf.AgentTypeRoleTYPE_CONN_DESCRIPTOR
	switch t.Kind {
	case gobin.ConnIface:
		role = bpf.AgentTypeRoleTYPE_CONN_INTERFACE
	case gobin.ConnPointer:
		role, info.Next = bpf.AgentTypeRoleTYPE_CONN_POINTER, t.Inner
		if t.Direct {
			role = bpf.AgentTypeRoleTYPE_CONN_VALUE
		}
	}
	info.Role = uint32(role)
	return info
}

// connLayout fills in where a TCP connection has its addresses. The programs read them
// in one piece, so both structs must be as expected; else no hops are joined.
func (b *executable) connLayout(layout *bpf.AgentRuntimeLayout) {
	l := layouts{binary: b.info, looked: b.looked}
	const fd, addr = "net.netFD", "net.TCPAddr"
	local, remote := l.offset(fd, "laddr"), l.offset(fd, "raddr")
	ip, port := l.offset(addr, "IP"), l.offset(addr, "Port")
	if l.err() == nil && remote == local+16 && ip == 0 && port == 24 {
		layout.NetfdAddresses = local
	}
}

// writeTypes tells the kernel which types lead to a parent context, which errors hold a
// code or a cause, and which connections are one of TCP.
func (b *executable) writeTypes(put putFunc) error {
	putType := func(addr uint64, info bpf.AgentTypeInfo) error {
		err := put("types", &bpf.AgentTypeKey{Type: addr, Binary: b.id}, &info)
		if err != nil {
			return fmt.Errorf("store type: %w", err)
		}
		return nil
	}
	contexts, err := b.info.ContextTypes()
	var missing *gobin.MissingError
	if err != nil && !errors.As(err, &missing) { // a program may have no contexts
		return fmt.Errorf("read context types: %w", err)
	}
	sdk := sdkTypes(b.info)
	for _, t := range contexts {
		info := contextInfo(t)
		if len(sdk) > 0 && t.Name == "*context.valueCtx" {
			if f, err := b.info.Field("context.valueCtx", "val"); err == nil {
				info.Next = f.Offset
			}
		}
		if err := putType(t.Addr, info); err != nil {
			return err
		}
	}
	for addr, info := range sdk {
		if err := putType(addr, info); err != nil {
			return err
		}
	}
	conns, err := b.info.ConnTypes()
	if err != nil && !errors.As(err, &missing) {
		return fmt.Errorf("read connection types: %w", err)
	}
	for _, t := range conns {
		if slices.ContainsFunc(contexts, func(c gobin.ContextType) bool { return c.Addr == t.Addr }) {
			continue // a type has one role; as a context it is needed more
		}
		if err := putType(t.Addr, connInfo(t)); err != nil {
			return err
		}
	}
	for _, c := range slices.Concat(sqlErrorCodes, httpErrorCauses) {
		addr, err := b.info.TypeAddr(c.dynamicType)
		if err != nil {
			continue
		}
		var f gobin.Field
		if c.structName != "" {
			if f, err = b.field(c.structName, c.field); err != nil {
				continue
			}
		}
		if err := putType(addr, bpf.AgentTypeInfo{Role: uint32(c.role), Offset: uint32(f.Offset)}); err != nil {
			return err
		}
	}
	return nil
}
