package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Words that stand for many destinations in [Propagation].To.
const (
	toPrivate = "private"
	toCluster = "cluster"
)

// privateNetworks are those that the Internet does not reach: loopback, RFC 1918, shared
// address space of carriers (RFC 6598), link-local, unique local (RFC 4193).
var privateNetworks = []netip.Prefix{
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fc00::/7"),
	netip.MustParsePrefix("fe80::/10"),
}

// clusterNames are those that mean nothing outside: of Kubernetes, and RFC 6762. Names
// without a dot are a case of their own.
var clusterNames = []string{"*.svc", "*.local"}

// Bounds of what the kernel compares: bpf/propagate.h.
const (
	maxPropagateTo   = 128
	maxPropagateHost = 100
)

// Allowed says whom a request may tell its trace: addresses in networks, hosts by their
// names, and whether hosts without a dot in their name are meant, too. An entry of To is a
// network or an address, a host, *.example.com for all hosts below it, or one of the words
// private and cluster.
func (p Propagation) Allowed() (networks []netip.Prefix, names []string, dotless bool, err error) {
	to := p.entries()
	if len(to) == 0 {
		to = []string{toPrivate, toCluster}
	}
	if len(to) > maxPropagateTo {
		return nil, nil, false, fmt.Errorf("it has %d entries: at most %d are allowed; a network can stand for many addresses", len(to), maxPropagateTo)
	}
	for _, entry := range to {
		switch {
		case entry == toPrivate:
			networks = append(networks, privateNetworks...)
		case entry == toCluster:
			names, dotless = append(names, clusterNames...), true
		default:
			if network, ok := parseNetwork(entry); ok {
				networks = append(networks, network)
			} else if isHostPattern(entry) {
				names = append(names, strings.ToLower(entry))
			} else {
				return nil, nil, false, fmt.Errorf("%q is neither a network such as 10.0.0.0/8, nor a host such as api.example.com or *.example.com, nor %s or %s", entry, toPrivate, toCluster)
			}
		}
	}
	return networks, names, dotless, nil
}

// entries are those of To; in the environment they have commas between them.
func (p Propagation) entries() (out []string) {
	for _, text := range p.To {
		out = append(out, strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	return out
}

func parseNetwork(text string) (netip.Prefix, bool) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), true
	}
	network, err := netip.ParsePrefix(text)
	return network.Masked(), err == nil
}

// isHostPattern accepts a name, or one with "*." before it. An address that is not well
// formed is no name.
func isHostPattern(text string) bool {
	name := strings.TrimPrefix(text, "*.")
	if name == "" || len(name) > maxPropagateHost || strings.HasPrefix(name, ".") || !strings.ContainsFunc(name, isLetter) {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return !isLetter(r) && (r < '0' || r > '9') && r != '-' && r != '.' && r != '_'
	})
}

func isLetter(r rune) bool { return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' }

func (k *checker) propagation() {
	p := k.c.Propagation
	k.must(slices.Contains([]string{PropagateOff, PropagateHeaders, PropagateMemory}, p.Mode), "propagation.mode", p.Mode)
	if _, _, _, err := p.Allowed(); err != nil {
		k.add("propagation.to", "%s: %v", k.c.label("propagation.to"), err)
	}
}
