package gobin

import (
	"bytes"
	"encoding/binary"
	"errors"
	"runtime/debug"
	"strings"
)

// maxBuildInfo bounds the build info's text. Each dependency takes about 100
// bytes.
const maxBuildInfo = 1 << 20

const buildInfoMagic = "\xff Go buildinf:"

// errOldBuildInfo tells of the layout that Go used up to 1.17.
var errOldBuildInfo = errors.New("build info of Go 1.17 or earlier")

// readBuildInfo finds the build info. debug/buildinfo is not used: it opens
// the file with debug/elf, which reads whatever the headers ask for, and
// reads a string of any length that the file names.
func (img *image) readBuildInfo(v *view) (version string, info *debug.BuildInfo, err error) {
	if s, ok := img.sections[".go.buildinfo"]; ok {
		if version, info, err = buildInfoAt(v, s.addr); version != "" || err != nil {
			return version, info, err
		}
	}
	// Without section headers: it is 16-aligned and near the start of the first writable
	// segment. Later segments are tried too, for linkers that reorder.
	const maxScan = 1 << 26
	left := uint64(maxScan)
	for _, write := range []bool{true, false} {
		scanErr := img.scan(v, func(s *segment) bool {
			if s.write != write || s.filesz > left {
				return false
			}
			left -= s.filesz
			return true
		}, func(addr uint64, b []byte) bool {
			for i := (16 - addr%16) % 16; i+32 <= uint64(len(b)); i += 16 {
				if string(b[i:i+14]) == buildInfoMagic {
					version, info, err = buildInfoAt(v, addr+i)
					return version == "" && err == nil
				}
			}
			return true
		})
		if version != "" || err != nil || scanErr != nil {
			break
		}
	}
	return version, info, err
}

func buildInfoAt(v *view, addr uint64) (string, *debug.BuildInfo, error) {
	var h [32]byte
	if !v.read(addr, h[:]) || string(h[:14]) != buildInfoMagic {
		return "", nil, nil
	}
	const inline = 2 // flag: the strings follow the header, as from Go 1.18 on
	if h[15]&inline == 0 {
		return "", nil, errOldBuildInfo
	}
	version, next, ok := varString(v, addr+32)
	if !ok {
		return "", nil, nil
	}
	mod, _, ok := varString(v, next)
	if !ok {
		return string(version), nil, nil
	}
	return string(version), parseBuildInfo(string(version), mod), nil
}

// parseBuildInfo parses the module text between its two 16-byte sentinels.
func parseBuildInfo(version string, mod []byte) *debug.BuildInfo {
	if len(mod) < 33 || mod[len(mod)-17] != '\n' {
		return &debug.BuildInfo{GoVersion: version}
	}
	text := mod[16 : len(mod)-16]
	if bytes.IndexByte(text, 0) >= 0 {
		return &debug.BuildInfo{GoVersion: version}
	}
	info, err := debug.ParseBuildInfo(strings.ToValidUTF8(string(text), "\uFFFD"))
	if err != nil {
		info = &debug.BuildInfo{}
	}
	info.GoVersion = version
	return info
}

// varString reads a varint length and as many bytes.
func varString(v *view, addr uint64) (s []byte, next uint64, ok bool) {
	var b [binary.MaxVarintLen32]byte
	if !v.read(addr, b[:]) {
		return nil, 0, false
	}
	n, size := binary.Uvarint(b[:])
	if size <= 0 || n > maxBuildInfo {
		return nil, 0, false
	}
	next = addr + uint64(size)
	// Checked against the mapping before it is allocated.
	seg := v.img.segmentOf(next)
	if n > 0 && (seg == nil || n > seg.filesz-(next-seg.addr)) {
		return nil, 0, false
	}
	s = make([]byte, n)
	return s, next + n, v.read(next, s)
}
