package spool_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/plainframework/agent/internal/export/spool"
)

func TestDiskThatRefuses(t *testing.T) {
	for _, op := range []string{"create", "write"} {
		for _, why := range []error{syscall.ENOSPC, syscall.EROFS, syscall.EIO} {
			t.Run(fmt.Sprint(op, why), func(t *testing.T) {
				dir, refuse := t.TempDir(), false
				b := open(t, dir, 1<<20, func(o string) error {
					if refuse && o == op {
						return why
					}
					return nil
				})
				b.fill(t, 0, 0, 3, 100)
				b.take(0, 1)
				refuse = true
				for range 3 {
					err := b.Put(0, spool.Record{Items: 1, Body: make([]byte, 64<<10)})
					if !errors.Is(err, why) {
						t.Fatalf("error %v", err)
					}
				}
				refuse = false
				b.fill(t, 0, 3, 5, 100)
				b.disk.Kill()
				b = open(t, dir, 1<<20, nil)
				equal(t, "records", b.take(0, 100), numbers(1, 5))
				equal(t, "lost", b.lost, map[spool.Reason]int64{})
				if d := b.Stats().Damaged; d != 0 {
					t.Errorf("a torn write was left behind: %d", d)
				}
			})
		}
	}
}

func TestMarkThatFailsIsCounted(t *testing.T) {
	dir, refuse := t.TempDir(), false
	b := open(t, dir, 1<<20, func(op string) error {
		if refuse && op != "read" && op != "open" {
			return syscall.EROFS
		}
		return nil
	})
	b.fill(t, 0, 0, 3, 100)
	refuse = true
	equal(t, "records", b.take(0, 2), numbers(0, 2))
	equal(t, "unmarked", b.Stats().Unmarked, 2)
	b.disk.Kill()
	b = open(t, dir, 1<<20, nil)
	equal(t, "the next run sends them again", b.take(0, 9), numbers(0, 3))
}

func TestOtherTargetsAreKeptButNotSent(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, 1<<20, nil)
	b.fill(t, 0, 0, 3, 100)
	b.Close()
	other, err := spool.Open(dir, spool.Options{Limit: 1 << 20, Logger: slog.New(slog.DiscardHandler),
		Queues: []spool.Queue{{Name: "traces", Target: "http://b.test"}}, Lost: func(int, spool.Reason, int64) { t.Error("lost") }})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := other.Next(0); ok || other.Stats().Foreign == 0 {
		t.Errorf("%+v", other.Stats())
	}
	other.Close()
	b = open(t, dir, 1<<20, nil)
	equal(t, "back at the first target", b.take(0, 9), numbers(0, 3))
}

func TestOnlyOneAtATime(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "spool")
	o := spool.Options{Limit: 1 << 20, Logger: slog.New(slog.DiscardHandler), Queues: twoQueues}
	first, err := spool.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v", info.Mode(), err)
	}
	if _, err := spool.Open(dir, o); !errors.Is(err, spool.ErrLocked) {
		t.Errorf("second: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	if err := first.Close(); err != nil {
		t.Errorf("closed twice: %v", err)
	}
	if err := first.Put(0, spool.Record{Items: 1}); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("put after close: %v", err)
	}
	second, err := spool.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	os.Chmod(dir, 0o777)
	if _, err := spool.Open(dir, o); err == nil || !strings.Contains(err.Error(), "other users") {
		t.Errorf("a directory that all may write to: %v", err)
	}
}

func TestTooLarge(t *testing.T) {
	b := open(t, t.TempDir(), 1<<20, nil)
	for _, r := range []spool.Record{{Items: 1, Body: make([]byte, 1<<20)}, {Items: 0}, {Items: -1}, {Items: 1 << 30}} {
		if err := b.Put(0, r); !errors.Is(err, spool.ErrTooLarge) {
			t.Errorf("%d items, %d bytes: %v", r.Items, len(r.Body), err)
		}
	}
	b.fill(t, 0, 0, 1, 1<<20-100) // just fits, alone
	equal(t, "records", b.take(0, 9), numbers(0, 1))
}

// TestReadErrors has a disk that does not give a record for a while, or for
// good.
func TestReadErrors(t *testing.T) {
	for _, passing := range []bool{true, false} {
		for _, op := range []string{"read", "open"} {
			dir, refuse := t.TempDir(), false
			b := open(t, dir, 1<<20, func(o string) error {
				if refuse && o == op {
					return syscall.EIO
				}
				return nil
			})
			b.fill(t, 0, 0, 3, 60_000) // each in a segment of its own
			refuse = true
			for range 2 {
				if _, ok := b.Next(0); ok || b.Waiting(0) != 3 {
					t.Errorf("%s: %d are waiting", op, b.Waiting(0))
				}
			}
			if !passing {
				b.Next(0) // the last try
			}
			refuse = false
			want := numbers(0, 3)
			if !passing {
				want = want[1:]
			}
			equal(t, op, b.take(0, 9), want)
			equal(t, "lost", b.lost[spool.Damage], 3-len(want))
		}
	}
}

func TestOtherTargetsMakeRoomFirst(t *testing.T) {
	dir := t.TempDir()
	b := open(t, dir, 1<<20, nil)
	b.fill(t, 0, 0, 8, 60_000)
	b.Close()
	o := spool.Options{Limit: 1 << 20, Logger: slog.New(slog.DiscardHandler), Queues: []spool.Queue{{Name: "traces", Target: "http://b.test"}},
		Lost: func(_ int, _ spool.Reason, n int64) {
			t.Errorf("%d items were dropped before those of another target", n)
		}}
	other, err := spool.Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	for range 14 {
		if err := other.Put(0, spool.Record{Items: 1, Body: make([]byte, 60_000)}); err != nil {
			t.Fatal(err)
		}
	}
	if st := other.Stats(); other.Waiting(0) != 14 || st.Foreign == 0 || st.Foreign > 3*61_440 || st.Bytes > 1<<20 {
		t.Errorf("%d are waiting: %+v", other.Waiting(0), st)
	}
}
