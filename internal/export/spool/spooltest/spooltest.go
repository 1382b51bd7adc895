// Package spooltest has what tests of a spool do to its disk.
package spooltest

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/plainframework/agent/internal/export/spool"
)

// ErrKilled is what every operation returns after [Disk.Kill].
var ErrKilled = errors.New("the process is gone")

// Disk is a directory that fails when told to.
type Disk struct {
	inner spool.Disk

	mu     sync.Mutex
	killed bool
	fault  func(op string) error
}

// Open opens the directory. Before each operation fault is asked, if it is not
// nil: an error is the result of that operation. A write that fails has written
// a part. The operations are list, create, open, remove, sync, read, write (of a
// record), mark (of one byte) and truncate.
func Open(path string, fault func(op string) error) (*Disk, error) {
	inner, err := spool.OpenDirectory(path)
	if err != nil {
		return nil, err
	}
	return &Disk{inner: inner, fault: fault}, nil
}

// Kill ends the process that uses the disk, as far as the disk can tell: what
// was written stays, and nothing more is done.
func (d *Disk) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.killed {
		d.killed = true
		d.inner.Close() // and with it the lock
	}
}

func (d *Disk) ask(op string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.killed:
		return ErrKilled
	case d.fault != nil:
		return d.fault(op)
	}
	return nil
}

// List implements [spool.Disk].
func (d *Disk) List() ([]fs.DirEntry, error) {
	if err := d.ask("list"); err != nil {
		return nil, err
	}
	return d.inner.List()
}

// Create implements [spool.Disk].
func (d *Disk) Create(name string) (spool.File, error) { return d.file("create", name, d.inner.Create) }

// Open implements [spool.Disk].
func (d *Disk) Open(name string) (spool.File, error) { return d.file("open", name, d.inner.Open) }

func (d *Disk) file(op, name string, open func(string) (spool.File, error)) (spool.File, error) {
	if err := d.ask(op); err != nil {
		return nil, err
	}
	f, err := open(name)
	if err != nil {
		return nil, err
	}
	return &file{File: f, disk: d}, nil
}

// Remove implements [spool.Disk].
func (d *Disk) Remove(name string) error {
	if err := d.ask("remove"); err != nil {
		return err
	}
	return d.inner.Remove(name)
}

// Sync implements [spool.Disk]. It does not wait for the disk: that is for the end of the
// machine, which no test here plays, and would take most of a test's time.
func (d *Disk) Sync() error { return d.ask("sync") }

// Close implements [spool.Disk].
func (d *Disk) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.killed {
		return nil
	}
	return d.inner.Close()
}

type file struct {
	spool.File
	disk *Disk
}

func (f *file) ReadAt(b []byte, off int64) (int, error) {
	if err := f.disk.ask("read"); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

func (f *file) WriteAt(b []byte, off int64) (int, error) {
	op := "write"
	if len(b) == 1 {
		op = "mark"
	}
	err := f.disk.ask(op)
	if errors.Is(err, ErrKilled) {
		return 0, err
	}
	if err != nil && op == "write" {
		n, _ := f.File.WriteAt(b[:rand.IntN(len(b))], off)
		return n, err
	}
	if err != nil {
		return 0, err
	}
	return f.File.WriteAt(b, off)
}

func (f *file) Truncate(size int64) error {
	if err := f.disk.ask("truncate"); err != nil {
		return err
	}
	return f.File.Truncate(size)
}

// Sync is as that of the disk.
func (f *file) Sync() error { return f.disk.ask("sync") }

// Segments returns the paths of the segments in a directory, in the order of
// their names.
func Segments(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	var out []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".seg") {
			out = append(out, filepath.Join(dir, e.Name()))
		}
	}
	return out, err
}

// FlipBit flips one bit of one segment, if there is one with content.
func FlipBit(dir string, r *rand.Rand) error {
	return edit(dir, r, func(b []byte) []byte {
		b[r.IntN(len(b))] ^= 1 << r.IntN(8)
		return b
	})
}

// Tear cuts some bytes off the end of one segment.
func Tear(dir string, r *rand.Rand) error {
	return edit(dir, r, func(b []byte) []byte { return b[:r.IntN(len(b))] })
}

// Blank overwrites a part of one segment with zeros.
func Blank(dir string, r *rand.Rand) error {
	return edit(dir, r, func(b []byte) []byte {
		from := r.IntN(len(b))
		clear(b[from:min(from+512, len(b))])
		return b
	})
}

// Redate gives one segment a time in the past or in the future.
func Redate(dir string, r *rand.Rand) error {
	names, err := Segments(dir)
	if err != nil || len(names) == 0 {
		return err
	}
	at := time.Unix(r.Int64N(1<<32), 0)
	return os.Chtimes(names[r.IntN(len(names))], at, at)
}

func edit(dir string, r *rand.Rand, f func([]byte) []byte) error {
	names, err := Segments(dir)
	if err != nil || len(names) == 0 {
		return err
	}
	name := names[r.IntN(len(names))]
	b, err := os.ReadFile(name)
	if err != nil || len(b) == 0 {
		return err
	}
	return os.WriteFile(name, f(b), 0o600)
}
