package probes

import (
	"bytes"
	"net/netip"
	"testing"
)

// TestPropagationKeys: what is stored for a network or a host is found by what the
// programs look up for an address or a name, and by nothing else.
func TestPropagationKeys(t *testing.T) {
	// As an LPM trie compares: the first bits of both.
	covers := func(rule, looked []byte) bool {
		n := int(rule[0]) | int(rule[1])<<8 // little endian, as all that run the agent
		return n%8 == 0 && bytes.Equal(rule[4:4+n/8], looked[4:4+n/8])
	}
	for _, tt := range []struct {
		rule, host string
		want       bool
	}{
		{"*.svc", "shop.default.svc", true},
		{"*.svc", "svc", false},
		{"*.svc", "xsvc", false},
		{"*.svc", "a.svc.example.com", false},
		{"*.Example.com", "api.example.com", true},
		{"*.example.com", "example.com", false},
		{"*.example.com", "badexample.com", false},
		{"api.example.com", "api.example.com", true},
		{"api.example.com", "x.api.example.com", false},
		{"api.example.com", "xapi.example.com", false},
	} {
		rule, err := hostKey(tt.rule)
		if err != nil {
			t.Fatal(err)
		}
		looked, err := hostKey(tt.host)
		if err != nil {
			t.Fatal(err)
		}
		if got := covers(rule[:], looked[:]); got != tt.want {
			t.Errorf("%s stands for %s: %v", tt.rule, tt.host, got)
		}
	}
	if _, err := hostKey("*." + string(bytes.Repeat([]byte("x"), maxHost))); err == nil {
		t.Error("a host longer than the key is stored")
	}
	for _, tt := range []struct {
		network, address string
		want             bool
	}{
		{"10.0.0.0/8", "10.255.0.1", true},
		{"10.0.0.0/8", "11.0.0.1", false},
		{"fc00::/8", "fc12::1", true},
		{"::1/128", "::2", false},
	} {
		rule := networkKey(netip.MustParsePrefix(tt.network))
		addr := netip.MustParseAddr(tt.address)
		looked := networkKey(netip.PrefixFrom(addr, addr.BitLen()))
		if got := covers(rule[:], looked[:]); got != tt.want {
			t.Errorf("%s stands for %s: %v", tt.network, tt.address, got)
		}
	}
}
