package config

import (
	"net/netip"
	"slices"
	"testing"
)

func TestPropagationAllowed(t *testing.T) {
	allows := func(p Propagation, addr string) bool {
		networks, _, _, err := p.Allowed()
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(netip.MustParseAddr(addr)) })
	}
	for addr, want := range map[string]bool{
		"10.1.2.3": true, "172.31.0.1": true, "172.32.0.1": false, "192.168.1.1": true, "127.0.0.1": true, "::1": true,
		"100.64.0.1": true, "100.128.0.1": false, "169.254.1.1": true, "fd00::1": true, "fe80::1": true,
		"8.8.8.8": false, "2001:4860:4860::8888": false, "198.51.100.7": false, "11.0.0.1": false,
	} {
		if allows(Propagation{}, addr) != want {
			t.Errorf("%s is allowed: %v", addr, !want)
		}
	}
	own := Propagation{To: []string{"203.0.113.0/24,198.51.100.7", "*.Example.com", "api.example.org"}}
	if !allows(own, "203.0.113.9") || !allows(own, "198.51.100.7") || allows(own, "198.51.100.8") || allows(own, "10.0.0.1") {
		t.Errorf("%v allows other networks than it says", own.To)
	}
	_, names, dotless, _ := own.Allowed()
	if want := []string{"*.example.com", "api.example.org"}; !slices.Equal(names, want) || dotless {
		t.Errorf("names %v, want %v; without a dot: %v", names, want, dotless)
	}
	for _, wrong := range []string{"10.0.0.0/33", "1.2.3", "*", "*.", "a b/c", "http://x", "*.*.com", "é.com", "fe80::1%eth0"} {
		if _, _, _, err := (Propagation{To: []string{wrong}}).Allowed(); err == nil {
			t.Errorf("%q is no destination, and no error", wrong)
		}
	}
}
