package process

import (
	"fmt"
	"hash/fnv"
	"os"

	"golang.org/x/sys/unix"
)

// FileID identifies the inode behind a file, which is what a uprobe belongs to,
// among all that exist at the same time.
//
// On overlayfs, where containers have their files, a mount has a device of its
// own, and so the one file of an image that ten containers run has ten: whoever
// told them apart would probe the same inode ten times. What such files have in
// common is the inode number of the layer below, and its times. When a container
// changes its copy the number stays, but the time of change does not.
type FileID struct {
	Dev, Ino uint64
}

// Identify is the identity of an open file, whose stat is st.
func Identify(f *os.File, st *unix.Stat_t) FileID { return identify(int(f.Fd()), st) }

// identify reads the identity of an open file, whose stat is st.
func identify(fd int, st *unix.Stat_t) FileID {
	id := FileID{Dev: uint64(st.Dev), Ino: st.Ino}
	var fs unix.Statfs_t
	if unix.Major(id.Dev) != 0 { // a disk; overlayfs has none
		return id
	}
	if err := unix.Fstatfs(fd, &fs); err != nil || fs.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return id
	}
	h := fnv.New64a()
	fmt.Fprint(h, st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec)
	// The numbers of devices have 32 bits: no device is taken for this.
	return FileID{Dev: h.Sum64() | 1<<63, Ino: st.Ino}
}

// Version tells the contents of a file from what it held before it was written to
// in place, or from the file that had its inode before it.
type Version struct {
	Size, Modified int64
}

func version(st *unix.Stat_t) Version { return Version{st.Size, st.Mtim.Nano()} }

// Stat returns the identity of the file at path, in the agent's own root, for
// FindByExe.
func Stat(path string) (FileID, error) {
	id, _, err := StatVersion(path)
	return id, err
}

// StatVersion is Stat, with what the file holds now.
func StatVersion(path string) (FileID, Version, error) {
	// Only a reference: to open a device or a pipe can have effects.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return FileID{}, Version{}, Denied(fmt.Errorf("%s: %w", path, err))
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return FileID{}, Version{}, fmt.Errorf("%s: %w", path, err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return identify(fd, &st), version(&st), nil
	case unix.S_IFDIR:
		return FileID{}, Version{}, fmt.Errorf("%s is a directory, not an executable", path)
	}
	return FileID{}, Version{}, fmt.Errorf("%s is no regular file", path)
}
