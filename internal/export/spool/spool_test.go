package spool_test

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/plainframework/agent/internal/export/spool"
	"github.com/plainframework/agent/internal/export/spool/spooltest"
)

// box is a spool with its ledger.
type box struct {
	*spool.Spool
	disk   *spooltest.Disk
	lost   map[spool.Reason]int64
	adrift int64
}

var twoQueues = []spool.Queue{{Name: "traces", Target: "http://a.test"}, {Name: "logs", Target: "http://a.test"}}

func open(t *testing.T, dir string, limit int64, fault func(string) error) *box {
	t.Helper()
	disk, err := spooltest.Open(dir, fault)
	if err != nil {
		t.Fatal(err)
	}
	b := &box{disk: disk, lost: make(map[spool.Reason]int64)}
	b.Spool, err = spool.Open(dir, spool.Options{Limit: limit, Queues: twoQueues, Logger: slog.New(slog.DiscardHandler), Disk: disk,
		Lost:   func(_ int, why spool.Reason, items int64) { b.lost[why] += items },
		Adrift: func(_ int, items int64) { b.adrift += items }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

// fill puts records of one item each, with their number as body, padded.
func (b *box) fill(t *testing.T, queue, from, to, size int) {
	t.Helper()
	for i := from; i < to; i++ {
		body := fmt.Appendf(nil, "%d ", i)
		body = append(body, bytes.Repeat([]byte("."), max(size-len(body), 0))...)
		if err := b.Put(queue, spool.Record{Items: 1, Flags: byte(i), Body: body}); err != nil {
			t.Fatal(err)
		}
	}
}

// take reads up to n records and returns what they say.
func (b *box) take(queue, n int) []string {
	var out []string
	for range n {
		r, ok := b.Next(queue)
		if !ok {
			break
		}
		b.Sending(queue)
		b.Done(queue)
		text, _, _ := strings.Cut(string(r.Body), " ")
		if r.Doubt {
			text += "?"
		}
		out = append(out, text)
	}
	return out
}

func numbers(from, to int) []string {
	var out []string
	for i := from; i < to; i++ {
		out = append(out, fmt.Sprint(i))
	}
	return out
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func TestOldestFirstAcrossRestarts(t *testing.T) {
	for _, size := range []int{10, 5000, 100_000} {
		for _, kill := range []bool{false, true} {
			t.Run(fmt.Sprint(size, kill), func(t *testing.T) {
				dir := t.TempDir()
				b := open(t, dir, 64<<20, nil)
				b.fill(t, 0, 0, 100, size)
				b.fill(t, 1, 500, 505, size)
				equal(t, "first run", b.take(0, 30), numbers(0, 30))
				if kill {
					b.disk.Kill()
				}
				b.Close()

				b = open(t, dir, 64<<20, nil)
				equal(t, "waiting", []int64{b.Waiting(0), b.Waiting(1)}, []int64{70, 5})
				b.fill(t, 0, 100, 110, size)
				equal(t, "second run", b.take(0, 1000), numbers(30, 110))
				equal(t, "other queue", b.take(1, 1000), numbers(500, 505))
				equal(t, "lost", b.lost, map[spool.Reason]int64{})
				if st := b.Stats(); st.Bytes != 0 || st.Segments != 0 || !st.Oldest.IsZero() || st.Damaged != 0 || st.Errors != 0 {
					t.Errorf("the empty spool has %+v", st)
				}
				if names, _ := spooltest.Segments(dir); len(names) != 0 {
					t.Errorf("files are left: %v", names)
				}
			})
		}
	}
}

func TestWhatWasBeingSentIsDoubtful(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, 1<<20, nil)
	b.fill(t, 0, 0, 4, 10)
	b.Next(0)
	b.Sending(0)
	if !b.Back(0, false) { // refused for certain
		t.Error("the record is gone")
	}
	b.fill(t, 1, 10, 11, 10)
	b.Next(1)
	b.Sending(1)
	b.Back(1, true) // no answer
	b.Next(0)       // handed out, but not sent
	b.disk.Kill()

	b = open(t, dir, 1<<20, nil)
	equal(t, "never sent", b.take(0, 1), []string{"0"})
	equal(t, "no answer", b.take(1, 1), []string{"10?"})
	b.Next(0)
	b.Sending(0)
	b.disk.Kill() // answered, maybe

	b = open(t, dir, 1<<20, nil)
	equal(t, "after the kill", b.take(0, 9), []string{"1?", "2", "3"})
}

func TestFullDropsTheOldest(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, 1<<20, nil)
	b.fill(t, 1, 1000, 1010, 1000)
	b.fill(t, 0, 0, 500, 10_000) // 5 MB
	if st := b.Stats(); st.Bytes > 1<<20 || st.Bytes < 1<<20*3/4 {
		t.Errorf("holds %d bytes", st.Bytes)
	}
	var onDisk int64
	names, _ := spooltest.Segments(dir)
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		onDisk += info.Size()
		if info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	if onDisk > 1<<20 {
		t.Errorf("%d bytes on disk", onDisk)
	}
	if b.Waiting(1) != 0 {
		t.Error("the oldest of all is still there")
	}
	kept := int(b.Waiting(0))
	equal(t, "lost", b.lost[spool.Full], 510-kept)
	equal(t, "what is left", b.take(0, 1000), numbers(500-kept, 500))
}

func TestRecordInFlightIsNotLostTwice(t *testing.T) {
	for _, arrives := range []bool{true, false} {
		b := open(t, t.TempDir(), 1<<20, nil)
		b.fill(t, 0, 0, 3, 10)
		b.Next(0)
		b.Sending(0)
		b.fill(t, 0, 3, 400, 10_000)
		rest := b.Waiting(0)
		equal(t, "adrift", b.adrift, 1)
		equal(t, "lost while it is sent", b.lost[spool.Full], 400-1-rest)
		if arrives {
			b.Done(0)
		} else if b.Back(0, false) {
			t.Error("it is still there")
		}
		want := 400 - rest
		if arrives {
			want--
		}
		equal(t, "lost", b.lost[spool.Full], want)
		equal(t, "adrift at the end", b.adrift, 0)
		equal(t, "left", len(b.take(0, 1000)), rest)
	}
}

func TestDamage(t *testing.T) {
	const header, rec = 40, 40 + 100 // ten records of 100 bytes in one segment
	tests := []struct {
		name   string
		damage func([]byte) []byte
		want   []string
		lost   int64
	}{
		{"none", func(b []byte) []byte { return b }, numbers(2, 10), 0},
		{"body", func(b []byte) []byte { b[5*rec+header+3] ^= 1; return b }, append(numbers(2, 5), numbers(6, 10)...), 1},
		{"header", func(b []byte) []byte { b[5*rec+9] ^= 4; return b }, append(numbers(2, 5), numbers(6, 10)...), 1},
		{"header of one that is done", func(b []byte) []byte { b[1*rec+9] ^= 4; return b }, numbers(2, 10), 0},
		{"state", func(b []byte) []byte { b[5*rec+4] ^= 1; return b }, numbers(2, 10), 0},
		{"state, beyond repair", func(b []byte) []byte { b[5*rec+4] = 0x5a; return b }, append(append(numbers(2, 5), "5?"), numbers(6, 10)...), 0},
		{"two in a row", func(b []byte) []byte { clear(b[5*rec-1 : 6*rec+1]); return b }, append(numbers(2, 4), numbers(7, 10)...), 3},
		{"torn tail", func(b []byte) []byte { return b[:9*rec+50] }, numbers(2, 9), 0}, // nothing says that it was there
		{"body without header", func(b []byte) []byte { clear(b[9*rec : 9*rec+header]); return b }, numbers(2, 9), 0},
		{"garbage at the end", func(b []byte) []byte { return append(b, bytes.Repeat([]byte("PSP1"), 1000)...) }, numbers(2, 10), 0},
		{"all", func(b []byte) []byte { clear(b); return b }, nil, 0},
		{"empty", func(b []byte) []byte { return nil }, nil, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			b := open(t, dir, 1<<20, nil)
			b.fill(t, 0, 0, 10, 100)
			b.take(0, 2)
			b.disk.Kill()
			names, _ := spooltest.Segments(dir)
			data, err := os.ReadFile(names[0])
			if err != nil || len(names) != 1 {
				t.Fatal(names, err)
			}
			if err := os.WriteFile(names[0], tt.damage(data), 0o600); err != nil {
				t.Fatal(err)
			}
			b = open(t, dir, 1<<20, nil)
			restored := b.Waiting(0)
			b.fill(t, 0, 10, 12, 100) // the next run goes on
			got := b.take(0, 100)
			equal(t, "records", got, append(tt.want, "10", "11"))
			equal(t, "lost", b.lost[spool.Damage], tt.lost)
			equal(t, "restored", restored, int64(len(tt.want))+tt.lost)
			if d := b.Stats().Damaged; (d == 0) != (tt.name == "none" || tt.name == "empty" || strings.HasPrefix(tt.name, "state")) {
				t.Errorf("%d damaged places", d)
			}
		})
	}
}

func TestDamageIsCountedOnce(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, 1<<20, nil)
	b.fill(t, 0, 0, 10, 100)
	b.disk.Kill()
	names, _ := spooltest.Segments(dir)
	data, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	data[60] ^= 1        // body of the first
	clear(data[140:300]) // headers of the second and third
	data[3*140+9] ^= 1   // and of the fourth
	if err := os.WriteFile(names[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	b = open(t, dir, 1<<20, nil)
	equal(t, "restored", b.Waiting(0), 10)
	b.Next(0) // and nothing comes of it
	equal(t, "lost", b.lost[spool.Damage], 4)
	b.disk.Kill()
	b = open(t, dir, 1<<20, nil)
	equal(t, "restored by the run after", b.Waiting(0), 6)
	equal(t, "records", b.take(0, 100), numbers(4, 10))
	equal(t, "lost again", b.lost[spool.Damage], 0)
}

func TestLostTailIsCountedFromTheNextSegment(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, 1<<20, nil)
	b.fill(t, 0, 0, 10, 100)
	b.disk.Kill()
	b = open(t, dir, 1<<20, nil)
	b.fill(t, 0, 10, 20, 100)
	b.disk.Kill()
	names, _ := spooltest.Segments(dir)
	if err := os.Truncate(names[0], 140*7+1); err != nil {
		t.Fatal(err)
	}
	b = open(t, dir, 1<<20, nil)
	equal(t, "restored", b.Waiting(0), 20)
	equal(t, "records", b.take(0, 100), append(numbers(0, 7), numbers(10, 20)...))
	equal(t, "lost", b.lost[spool.Damage], 3)
}

func BenchmarkPut(b *testing.B) {
	s, err := spool.Open(b.TempDir(), spool.Options{Limit: 64 << 20, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Queues: twoQueues,
		Lost:   func(int, spool.Reason, int64) {}, Adrift: func(int, int64) {}})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	body := make([]byte, 60<<10)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if err := s.Put(0, spool.Record{Items: 1000, Body: body}); err != nil {
			b.Fatal(err)
		}
	}
}
