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

// disk is what a spool needs of a directory. Tests put faults between.
type disk interface {
	list() ([]fs.DirEntry, error)
	create(name string) (file, error) // fails if it exists
	open(name string) (file, error)
	remove(name string) error
	sync() error // makes created and removed names durable
	close() error
}

type file interface {
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

// openDirectory makes the directory if need be and locks it.
func openDirectory(path string) (*directory, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	d := &directory{root: root}
	if err := d.check(path); err != nil {
		return nil, errors.Join(err, d.close())
	}
	d.lock, err = root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, errors.Join(err, d.close())
	}
	if err := unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrLocked
		}
		return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), d.close())
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

func (d *directory) list() ([]fs.DirEntry, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

func (d *directory) create(name string) (file, error) {
	return asFile(d.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600))
}

func (d *directory) open(name string) (file, error) {
	// A segment can be read, and sent, without the right to mark it.
	f, err := d.root.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, unix.EROFS) {
		f, err = d.root.Open(name)
	}
	return asFile(f, err)
}

// asFile keeps a nil *os.File from becoming a file that is not nil.
func asFile(f *os.File, err error) (file, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d *directory) remove(name string) error { return d.root.Remove(name) }

func (d *directory) sync() error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// close also gives up the lock. The lock's file stays: to remove it would let
// two processes lock two files of the same name.
func (d *directory) close() error {
	var err error
	if d.lock != nil {
		err = d.lock.Close()
	}
	return errors.Join(err, d.root.Close())
}
