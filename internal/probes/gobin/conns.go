package gobin

import "reflect"

// ConnKind tells how a connection leads to what it sits on.
type ConnKind uint8

const (
	// ConnDescriptor: at Offset is a pointer to the net.netFD of a TCP connection.
	ConnDescriptor ConnKind = iota + 1
	// ConnIface: at Offset is a net.Conn.
	ConnIface
	// ConnPointer: at Offset is a pointer to a struct, of the pointer type at Inner.
	ConnPointer
)

// ConnType is a type of net.Conn values that leads to a TCP connection, one step. To get
// there: find the interface's type among the Addr values, go on as Kind tells, and again.
// The data word of the interface points to the struct that Offset counts from; with
// Direct it is that struct's only word.
type ConnType struct {
	Name   string // as Type.Name: "*crypto/tls.Conn"
	Addr   uint64 // of the descriptor, before relocation
	Kind   ConnKind
	Direct bool
	Offset uint64
	Inner  uint64 // ConnPointer only
}

const maxConnTypes = 1 << 10

// connMethods are the methods of net.Conn, as the tables sort them.
var connMethods = []string{
	"Close", "LocalAddr", "Read", "RemoteAddr",
	"SetDeadline", "SetReadDeadline", "SetWriteDeadline", "Write",
}

// ConnTypes returns the types of connections that are, or wrap, one TCP connection:
// *net.TCPConn, *tls.Conn, and structs that embed a net.Conn or another such type. A
// type that merely has a connection in a field is not listed: it may be one of many
// streams that share it. Like [Binary.ContextTypes] it reads all struct types.
func (b *Binary) ConnTypes() ([]ConnType, error) {
	v := newView(b.img, openShift, openSlots/4)
	s := connSearch{b: b, v: v}
	conn, err := b.lookupType(v, "net.Conn")
	if err != nil {
		return nil, err
	}
	s.conn = conn.addr
	if t, err := b.lookupType(v, "net.TCPConn"); err == nil {
		s.tcp = t.addr
	}
	if t, err := b.lookupType(v, "crypto/tls.Conn"); err == nil {
		s.tls = t.addr
	}
	var list []ConnType
	for _, ref := range b.types.all {
		t, ok := b.typeAt(v, b.md.types+uint64(ref))
		if !ok || t.kind != reflect.Struct {
			continue
		}
		list = append(list, s.typesOf(&t)...)
		if len(list) >= maxConnTypes {
			break
		}
	}
	return list, v.err
}

type connSearch struct {
	b              *Binary
	v              *view
	conn, tcp, tls uint64 // descriptors; 0: none
}

// typesOf returns the connections that struct type t gives: itself, where a value is
// one, and the pointer to it.
func (s *connSearch) typesOf(t *typeHeader) []ConnType {
	p, hasPtr := s.b.pointerTo(s.v, t.addr)
	hasPtr = hasPtr && s.b.hasMethods(s.v, &p, connMethods)
	isConn := s.b.hasMethods(s.v, t, connMethods)
	if !hasPtr && !isConn {
		return nil
	}
	c, ok := s.inner(t, 0)
	if !ok {
		return nil
	}
	var list []ConnType
	if isConn {
		c := c
		c.Name, c.Addr, c.Direct = s.b.typeName(s.v, t), t.addr, t.direct
		list = append(list, c)
	}
	if hasPtr {
		c.Name, c.Addr = s.b.typeName(s.v, &p), p.addr
		list = append(list, c)
	}
	return list
}

// inner finds what a connection of struct type t sits on.
func (s *connSearch) inner(t *typeHeader, depth int) (ConnType, bool) {
	fields, ok := s.b.structFields(s.v, t)
	if !ok || depth > maxContextDepth {
		return ConnType{}, false
	}
	if t.addr == s.tcp {
		f, err := s.b.Field("net.TCPConn", "conn.fd")
		return ConnType{Kind: ConnDescriptor, Offset: f.Offset}, err == nil
	}
	var found []ConnType
	for i := range fields {
		f := &fields[i]
		if !f.embedded && !(t.addr == s.tls && f.typ.addr == s.conn) {
			continue
		}
		if c, ok := s.through(f, depth); ok {
			found = append(found, c)
		}
	}
	if len(found) != 1 { // none, or which one it is cannot be known
		return ConnType{}, false
	}
	return found[0], true
}

func (s *connSearch) through(f *structField, depth int) (ConnType, bool) {
	if !s.b.hasMethods(s.v, &f.typ, connMethods) {
		if f.typ.kind != reflect.Struct {
			return ConnType{}, false
		}
		p, ok := s.b.pointerTo(s.v, f.typ.addr)
		if !ok || !s.b.hasMethods(s.v, &p, connMethods) {
			return ConnType{}, false
		}
	}
	switch f.typ.kind {
	case reflect.Interface:
		return ConnType{Kind: ConnIface, Offset: f.offset}, true
	case reflect.Struct:
		c, ok := s.inner(&f.typ, depth+1)
		c.Offset += f.offset
		return c, ok
	case reflect.Pointer:
		elem, ok := s.b.elemOf(s.v, &f.typ)
		return ConnType{Kind: ConnPointer, Offset: f.offset, Inner: f.typ.addr}, ok && elem.kind == reflect.Struct
	}
	return ConnType{}, false
}
