// Command producers writes to standard error with the logging libraries that
// Go programs use, and captures what they write: one file a case, with the
// time of the capture in the first line and one line, quoted as in Go, for
// each write.
//
//	go run . ../golden
//
// With more arguments it captures another program as the case of that name:
//
//	go run . ../golden go1.18-panic-again /path/of/oldcrash panic-again
package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// cases are the programs, by name; they write to os.Stderr and may die.
var cases = map[string]func(){}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "run" {
		cases[os.Args[2]]()
		return
	}
	self, err := os.Executable()
	if err != nil {
		fail(err)
	}
	switch len(os.Args) {
	case 2:
		for name := range cases {
			if err := capture(os.Args[1], name, self, "run", name); err != nil {
				fail(err)
			}
		}
	case 5:
		if err := capture(os.Args[1], os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fail(err)
		}
	default:
		fail("usage: producers DIR [NAME PROGRAM ARGUMENT]")
	}
}

func fail(why any) {
	fmt.Fprintln(os.Stderr, why)
	os.Exit(1)
}

// capture runs a program with a socket that keeps the writes apart as its
// standard error.
func capture(dir, name, program string, args ...string) error {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	cmd := exec.Command(program, args...)
	cmd.Stderr = theirs
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TZ=America/New_York", "GOTRACEBACK=single"}
	if err := cmd.Start(); err != nil {
		return err
	}
	theirs.Close()
	var out bytes.Buffer
	fmt.Fprintln(&out, time.Now().UnixNano())
	buf := make([]byte, 1<<20)
	for {
		n, err := ours.Read(buf)
		if n == 0 || err != nil {
			break
		}
		fmt.Fprintln(&out, strconv.Quote(string(buf[:n])))
	}
	cmd.Wait()
	return os.WriteFile(filepath.Join(dir, name+".writes"), out.Bytes(), 0o644)
}
