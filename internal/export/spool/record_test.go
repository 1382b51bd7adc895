package spool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestHeaderRoundTrip(t *testing.T) {
	want := header{state: doubtful, flags: 7, size: 123, items: 45, number: 1 << 40, time: -6, bodySum: 0xdeadbeef}
	b := want.encode(99)
	if got, ok := parseHeader(b, 99); !ok || got != want {
		t.Fatalf("got %+v, %v", got, ok)
	}
	if _, ok := parseHeader(b, 98); ok {
		t.Error("the header of another segment is taken")
	}
	for i := range b {
		for bit := range 8 {
			damaged := bytes.Clone(b)
			damaged[i] ^= 1 << bit
			if h, ok := parseHeader(damaged, 99); ok && (i != stateAt || h.state != doubtful) {
				t.Errorf("bit %d of byte %d: taken as %+v", bit, i, h)
			}
		}
	}
}

func TestStatesSurviveOneBit(t *testing.T) {
	for _, s := range []state{waiting, doubtful, done} {
		for bit := range 8 {
			if got := stateOf(byte(s) ^ 1<<bit); got != s {
				t.Errorf("%#x with bit %d flipped is %#x", s, bit, got)
			}
		}
	}
}

func TestBodyIsNotTakenForARecord(t *testing.T) {
	const salt = 5
	inner := header{state: waiting, size: 1, items: 1000, bodySum: crc32.Checksum([]byte("x"), castagnoli)}
	forged := append(inner.encode(salt+1), 'x') // its maker does not know the salt
	outer := header{state: waiting, size: uint32(len(forged)), items: 1, bodySum: 1}
	next := header{state: waiting, items: 1, number: 1}
	seg := append(append(outer.encode(salt), forged...), next.encode(salt)...)
	seg[20]++ // the outer header is damaged: the reader searches
	h, at, err := find(bytes.NewReader(seg), 0, int64(len(seg)), salt)
	if err != nil || at != int64(len(seg)-headerSize) || h.number != 1 {
		t.Errorf("found %+v at %d, %v", h, at, err)
	}
}

func TestSearchFindsAHeaderAnywhere(t *testing.T) {
	h := header{state: waiting, items: 1, number: 3}
	for _, at := range []int64{1, 39, 41, 64<<10 - 40, 64<<10 - 39, 64 << 10, 64<<10 + 1, 200_000} {
		seg := append(bytes.Repeat([]byte("PSP1"), int(at/4)+1)[:at], h.encode(1)...)
		if got, found, err := find(bytes.NewReader(seg), 0, int64(len(seg)), 1); err != nil || found != at || got.number != 3 {
			t.Errorf("at %d: found %+v at %d, %v", at, got, found, err)
		}
		if _, _, err := find(bytes.NewReader(seg[:len(seg)-1]), 0, int64(len(seg)-1), 1); !errors.Is(err, io.EOF) {
			t.Errorf("at %d, torn: %v", at, err)
		}
	}
}

// FuzzSegment reads whatever is in a file: without a panic, within bounds, and
// with accounts that add up.
func FuzzSegment(f *testing.F) {
	const name = "traces-%s-0000000000000001-0000000000000000-00000005.seg"
	rec := func(number uint64, st state, body string) []byte {
		h := header{state: st, size: uint32(len(body)), items: 3, number: number, time: 1, bodySum: crc32.Checksum([]byte(body), castagnoli)}
		return append(h.encode(5), body...)
	}
	good := bytes.Join([][]byte{rec(0, done, "a"), rec(3, doubtful, "bb"), rec(6, waiting, "")}, nil)
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(append([]byte("PSP1"), good...))
	f.Add(bytes.Join([][]byte{rec(6, waiting, "x"), rec(0, waiting, "y"), rec(1<<61, waiting, "z")}, nil))
	big := rec(0, waiting, "q")
	binary.LittleEndian.PutUint32(big[8:], 1<<31)
	f.Add(big)
	dir := f.TempDir()
	queue := Queue{Name: "traces", Target: "t"}
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(dir, fmt.Sprintf(name, newQueue(0, queue).prefix[len("traces-"):]))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var lost int64
		s, err := Open(dir, Options{Limit: 1 << 20, Queues: []Queue{queue}, Logger: slog.New(slog.DiscardHandler),
			Lost: func(_ int, _ Reason, n int64) { lost += n }})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		restored, read := s.Waiting(0), int64(0)
		for n := 0; ; n++ {
			r, ok := s.Next(0)
			if !ok {
				break
			}
			if n*headerSize > len(data) {
				t.Fatal("more records than fit in")
			}
			read += int64(r.Items)
			if n%2 == 0 {
				s.Sending(0)
			}
			s.Done(0)
		}
		if restored != read+lost || s.Waiting(0) != 0 {
			t.Errorf("%d items were there, %d read, %d lost, %d left", restored, read, lost, s.Waiting(0))
		}
		if st := s.Stats(); st.Bytes != 0 || st.Segments != 0 || !st.Oldest.Equal(time.Time{}) {
			t.Errorf("the empty spool has %+v", st)
		}
	})
}
