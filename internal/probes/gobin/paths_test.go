package gobin

import (
	"slices"
	"testing"
)

// TestReturnsBeyond: of roundTrip's returns, the cuts leave out three: that after a
// response, that of another protocol, and the one should that have declined a request
// only after reading its body, which none does. All others return errors.
func TestReturnsBeyond(t *testing.T) {
	for _, tg := range targets() {
		t.Run(tg.String(), func(t *testing.T) {
			b := open(t, tg)
			fn, err := b.Func(roundTrip)
			if err != nil {
				t.Fatal(err)
			}
			var cuts []Cut
			for _, h := range callHooks {
				if h.fn == roundTrip {
					s, err := h.site(b, fn)
					if err != nil {
						t.Fatal(err)
					}
					cuts = append(cuts, Cut{s, len(cuts) == 0})
				}
			}
			all, err := b.ReturnsBeyond(fn)
			if err != nil {
				t.Fatal(err)
			}
			rest, err := b.ReturnsBeyond(fn, cuts...)
			if err != nil {
				t.Fatal(err)
			}
			if len(rest) != len(all)-3 || len(rest) < 8 {
				t.Errorf("%d returns of %d are left, want all but three", len(rest), len(all))
			}
			// What a nil error leads to is one of those left out.
			body, err := b.body(fn)
			if err != nil {
				t.Fatal(err)
			}
			cut := cuts[0].Site
			i, _ := indexOf(body.code, cut.Target)
			if onNil, _ := cut.takenOnZero(); !onNil {
				i, _ = indexOf(body.code, cut.Next)
			}
			for body.code[i].op != opRet && i < len(body.code)-1 {
				i++
			}
			if slices.ContainsFunc(rest, func(s Site) bool { return s.Addr == body.code[i].addr }) {
				t.Errorf("the return after a response, at %#x, is among those left", body.code[i].addr)
			}
			if _, err := b.ReturnsBeyond(fn, Cut{cuts[1].Site, true}); err == nil {
				t.Error("a branch that compares with something else than zero was taken for one that compares with nil")
			}
		})
	}
}

// TestConnTypes: connections of the standard library, and only those that are one TCP
// connection.
func TestConnTypes(t *testing.T) {
	for _, tg := range targets() {
		t.Run(tg.String(), func(t *testing.T) {
			list, err := open(t, tg).ConnTypes()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]ConnType{}
			for _, c := range list {
				got[c.Name] = c
				t.Logf("%+v", c)
			}
			if c := got["*net.TCPConn"]; c.Kind != ConnDescriptor || c.Offset != 0 {
				t.Errorf("*net.TCPConn: %+v", c)
			}
			if c := got["*crypto/tls.Conn"]; c.Kind != ConnIface {
				t.Errorf("*crypto/tls.Conn: %+v", c)
			}
			for _, name := range []string{"*net.UnixConn", "*net.UDPConn", "*net.pipe"} {
				if c, ok := got[name]; ok {
					t.Errorf("%s is no TCP connection: %+v", name, c)
				}
			}
		})
	}
}
