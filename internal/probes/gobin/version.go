package gobin

import (
	"strconv"
	"strings"
)

// Version is the Go release that built a binary. The zero Version means that
// the binary does not tell.
type Version struct {
	Major, Minor, Patch int
	Raw                 string // as written in the binary
}

// AtLeast reports whether v is known and is release major.minor or later.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

// Known reports whether the release could be parsed.
func (v Version) Known() bool { return v.Major > 0 }

// String returns "go1.26.8" or "unknown".
func (v Version) String() string {
	if !v.Known() {
		return "unknown"
	}
	s := "go" + strconv.Itoa(v.Major) + "." + strconv.Itoa(v.Minor)
	if v.Patch > 0 {
		s += "." + strconv.Itoa(v.Patch)
	}
	return s
}

// parseVersion finds the first "go<major>.<minor>" of a version text such as
// "go1.19.8 X:boringcrypto", "go1.27rc1" or "devel go1.27-0123abcd Thu ...".
// A text without one, such as the old "devel +0123abcd", gives an unknown
// version.
func parseVersion(raw string) Version {
	v := Version{Raw: raw}
	for _, word := range strings.Fields(raw) {
		rest, ok := strings.CutPrefix(word, "go")
		if !ok {
			continue
		}
		major, rest, ok := leadingInt(rest)
		if !ok || !strings.HasPrefix(rest, ".") {
			continue
		}
		minor, rest, ok := leadingInt(rest[1:])
		if !ok {
			continue
		}
		v.Major, v.Minor = major, minor
		if strings.HasPrefix(rest, ".") {
			v.Patch, _, _ = leadingInt(rest[1:])
		}
		return v
	}
	return v
}

func leadingInt(s string) (n int, rest string, ok bool) {
	i := 0
	for i < len(s) && i < 6 && s[i] >= '0' && s[i] <= '9' {
		n = n*10 + int(s[i]-'0')
		i++
	}
	return n, s[i:], i > 0
}
