package spool

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// ErrLocked is returned by [Open] when another process uses the directory.
var ErrLocked = errors.New("another process uses it")

const lockName = "lock"

// Disk is what a spool needs of a directory. Tests put faults between.
type Disk interface {
	List() ([]fs.DirEntry, error)
	Create(name string) (File, error) // fails if it exists
	Open(name string) (File, error)
	Remove(name string) error
	Sync() error  // makes created and removed names durable
	Close() error // also gives up the lock
}

// File is an open segment.
type File interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	Sync() error
	Close() error
}

// directory is a disk: a directory that belongs to this process. Names are
// opened relative to it, and never lead out of it.
type directory struct {
	root *os.Root
	lock *os.File
}

// OpenDirectory makes the directory if need be and locks it.
func OpenDirectory(path string) (Disk, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	d := &directory{root: root}
	if err := d.check(path); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.lock, err = root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), d.Close())
	}
	return d, nil
}

// check refuses a directory that others may write to: they could have us read
// and send what they like.
func (d *directory) check(path string) error {
	var st unix.Stat_t
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", path, err)
	}
	if int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, and not to the user of this process", path, st.Uid)
	}
	if st.Mode&0o022 != 0 {
		return fmt.Errorf("%s can be written to by other users: chmod 700 it", path)
	}
	return nil
}

// List implements [Disk].
func (d *directory) List() ([]fs.DirEntry, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

// Create implements [Disk].
func (d *directory) Create(name string) (File, error) {
	return asFile(d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600))
}

// Open implements [Disk].
func (d *directory) Open(name string) (File, error) {
	// A segment can be read, and sent, without the right to mark it.
	f, err := d.root.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, unix.EROFS) {
		f, err = d.root.Open(name)
	}
	return asFile(f, err)
}

// asFile keeps a nil *os.File from becoming a file that is not nil.
func asFile(f *os.File, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Remove implements [Disk].
func (d *directory) Remove(name string) error { return d.root.Remove(name) }

// Sync implements [Disk].
func (d *directory) Sync() error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// Close implements [Disk]. The lock's file stays: to remove it would let
// two processes lock two files of the same name.
func (d *directory) Close() error {
	var err error
	if d.lock != nil {
		err = d.lock.Close()
	}
	return errors.Join(err, d.root.Close())
}
