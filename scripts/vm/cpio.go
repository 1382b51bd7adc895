package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
)

// archive is an initramfs: the kernel unpacks it into its first file system and runs
// /init there. The format is cpio's "newc" (see initramfs-buffer-format.rst of the kernel).
type archive map[string]source

// source is a file of the archive: a file of this machine, or bytes.
type source struct {
	file string
	data []byte
}

// write writes the archive, parents before what is in them.
func (a archive) write(w io.Writer) error {
	out := &cpioWriter{w: bufio.NewWriterSize(w, 1<<20)}
	done := map[string]bool{".": true, "/": true}
	names := make([]string, 0, len(a))
	for name := range a {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		out.dirs(path.Dir(name), done)
		if err := out.file(name, a[name]); err != nil {
			return fmt.Errorf("put %s into the initramfs: %w", name, err)
		}
	}
	out.entry("TRAILER!!!", 0, 0)
	if out.err != nil {
		return fmt.Errorf("write initramfs: %w", out.err)
	}
	return out.w.Flush()
}

// Modes of the entries: a directory and an executable file of root.
const (
	modeDir  = 0o040755
	modeFile = 0o100755
)

type cpioWriter struct {
	w     *bufio.Writer
	inode int
	at    int64
	err   error // the first
}

func (c *cpioWriter) dirs(name string, done map[string]bool) {
	if done[name] {
		return
	}
	c.dirs(path.Dir(name), done)
	done[name] = true
	c.entry(name, modeDir, 0)
}

func (c *cpioWriter) file(name string, s source) error {
	if s.file == "" {
		c.entry(name, modeFile, int64(len(s.data)))
		c.write(s.data)
		c.pad()
		return nil
	}
	f, err := os.Open(s.file)
	if err != nil {
		return err
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		return err
	}
	c.entry(name, modeFile, stat.Size())
	n, err := io.CopyN(c.w, f, stat.Size())
	c.at += n
	c.pad()
	return err
}

// entry writes a header: thirteen numbers of eight hexadecimal digits, and the name.
func (c *cpioWriter) entry(name string, mode uint32, size int64) {
	c.inode++
	header := "070701"
	for _, n := range []int64{int64(c.inode), int64(mode), 0, 0, 1, 0, size, 0, 0, 0, 0, int64(len(name)) + 1, 0} {
		header += fmt.Sprintf("%08x", n)
	}
	c.write([]byte(header + name + "\x00"))
	c.pad()
}

func (c *cpioWriter) write(b []byte) {
	n, err := c.w.Write(b)
	c.at += int64(n)
	if c.err == nil {
		c.err = err
	}
}

// pad aligns to four bytes.
func (c *cpioWriter) pad() { c.write(make([]byte, -c.at&3)) }
