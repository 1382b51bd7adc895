package process

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// start starts a command that runs until the test ends.
func start(t testing.TB, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

func open(t testing.TB, pid int) *Process {
	t.Helper()
	p, err := Open(pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func kill(t testing.TB, cmd *exec.Cmd) {
	t.Helper()
	cmd.Process.Kill()
	cmd.Wait()
}

func TestOpen(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(sleep, "60")
	cmd.Env = []string{"A=1", "EMPTY=", "B=x=y\nz"}
	start(t, cmd)
	p := open(t, cmd.Process.Pid)
	want, _ := filepath.EvalSymlinks(sleep)
	if p.ExePath() != want || p.PID() != cmd.Process.Pid || p.StartTime() == 0 {
		t.Errorf("path %q, pid %d, start %d", p.ExePath(), p.PID(), p.StartTime())
	}
	id, err := Stat(sleep)
	if err != nil || id != p.ExeID() {
		t.Errorf("identity %v, want %v (%v)", p.ExeID(), id, err)
	}
	magic := make([]byte, 4)
	if _, err := p.Exe().ReadAt(magic, 0); err != nil || string(magic) != "\x7fELF" {
		t.Errorf("executable begins %q, %v", magic, err)
	}
	if env, err := p.Environ(); err != nil || !slices.Equal(env, cmd.Env) {
		t.Errorf("environ %q, %v", env, err)
	}
	if args, err := p.Cmdline(); err != nil || !slices.Equal(args, cmd.Args) {
		t.Errorf("cmdline %q, %v", args, err)
	}
	if p.Exited() {
		t.Error("running process counts as exited")
	}
}

func TestOpenErrors(t *testing.T) {
	exited := exec.Command("true")
	if err := exited.Run(); err != nil {
		t.Fatal(err)
	}
	zombie := exec.Command("true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	defer zombie.Wait()
	fd, err := unix.PidfdOpen(zombie.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 5000)
	unix.Close(fd)
	tests := []struct {
		name string
		pid  int
		kind error
		text string
	}{
		{"exited", exited.Process.Pid, ErrGone, "does not exist"},
		{"zombie", zombie.Process.Pid, ErrGone, "has exited"},
		{"zero", 0, ErrGone, "does not exist"},
		{"negative", -1, ErrGone, "does not exist"},
		{"thread", thread(t), nil, "is a thread of another process"},
	}
	if b, err := os.ReadFile("/proc/2/comm"); err == nil && string(b) == "kthreadd\n" {
		tests = append(tests, struct {
			name string
			pid  int
			kind error
			text string
		}{"kernel thread", 2, ErrKernelThread, "process 2 is a kernel thread"})
	} else {
		t.Log("no kernel threads visible here")
	}
	for _, tt := range tests {
		p, err := Open(tt.pid)
		if err == nil {
			p.Close()
			t.Errorf("%s: opened", tt.name)
			continue
		}
		if tt.kind != nil && !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// thread returns the number of a thread of this process that is not its first.
func thread(t *testing.T) int {
	ids := make(chan int)
	stop := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		ids <- unix.Gettid()
		<-stop
		runtime.UnlockOSThread()
	}()
	id := <-ids
	t.Cleanup(func() { close(stop) })
	if id == os.Getpid() { // the main thread: take another
		return thread(t)
	}
	return id
}

func TestGone(t *testing.T) {
	cmd := start(t, exec.Command("sleep", "60"))
	p := open(t, cmd.Process.Pid)
	kill(t, cmd)
	if !p.Exited() {
		t.Error("killed process counts as running")
	}
	if _, err := p.Environ(); !errors.Is(err, ErrGone) {
		t.Errorf("environ: %v", err)
	}
	if _, err := p.Cmdline(); !errors.Is(err, ErrGone) {
		t.Errorf("cmdline: %v", err)
	}
	if _, err := p.OpenFile("/etc/hostname"); !errors.Is(err, ErrGone) {
		t.Errorf("open file: %v", err)
	}
	if id := p.Container().ID; id != "" {
		t.Errorf("container %q", id)
	}
	if _, err := p.Resource(nil, Agent{}, Surroundings{}); !errors.Is(err, ErrGone) {
		t.Errorf("resource: %v", err)
	}
	if _, err := io.ReadAll(p.Exe()); err != nil {
		t.Errorf("executable after exit: %v", err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestPIDReuse gives the number of a dead process to another one.
func TestPIDReuse(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	cmd.Env = []string{"WHO=first"}
	start(t, cmd)
	pid := cmd.Process.Pid
	p := open(t, pid)
	kill(t, cmd)
	second := exec.Command("sleep", "60")
	second.Env = []string{"WHO=second"}
	// ns_last_pid sets the number that comes next; another process may be
	// faster, so try again.
	for range 50 {
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Skipf("kernel does not let choose the next PID: %v", err)
		}
		if err := second.Start(); err != nil {
			t.Fatal(err)
		}
		if second.Process.Pid == pid {
			break
		}
		kill(t, second)
		second = exec.Command("sleep", "60")
		second.Env = []string{"WHO=second"}
	}
	if second.Process == nil || second.Process.Pid != pid {
		t.Skip("the number was not given again in 50 tries")
	}
	defer kill(t, second)
	if env, err := p.Environ(); !errors.Is(err, ErrGone) {
		t.Errorf("environment of the first process: %q, %v", env, err)
	}
	if !p.Exited() {
		t.Error("first process counts as running")
	}
	q := open(t, pid)
	if env, err := q.Environ(); err != nil || len(env) != 1 || env[0] != "WHO=second" {
		t.Errorf("environment of the second process: %q, %v", env, err)
	}
	if q.instanceID() == p.instanceID() && q.StartTime() != p.StartTime() {
		t.Error("same instance id for two processes")
	}
}

func TestDeletedExe(t *testing.T) {
	for _, name := range []string{"plain", "odd (deleted)"} {
		path := filepath.Join(t.TempDir(), name)
		copyFile(t, "/bin/sleep", path)
		cmd := start(t, exec.Command(path, "60"))
		before := open(t, cmd.Process.Pid)
		if before.ExePath() != path {
			t.Errorf("path %q, want %q", before.ExePath(), path)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		after := open(t, cmd.Process.Pid)
		if after.ExePath() != path || after.ExeID() != before.ExeID() {
			t.Errorf("deleted: path %q, want %q", after.ExePath(), path)
		}
		want, _ := os.ReadFile("/bin/sleep")
		if got, err := io.ReadAll(after.Exe()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("deleted executable: %d bytes, %v", len(got), err)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestOtherRoot looks at a process in a mount namespace and root of its own.
func TestOtherRoot(t *testing.T) {
	root := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(root, "app"), "./testdata/sleeper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("inside", "inside")
	for link, target := range map[string]string{"link": "/inside", "up": "../../../../inside", "out": "/etc/passwd", "magic": "/proc/self/exe"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(filepath.Join(root, "dir"), 0o755), unix.Mkfifo(filepath.Join(root, "pipe"), 0o644)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/app")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Unshareflags: syscall.CLONE_NEWNS}
	in, _ := cmd.StdinPipe()
	defer in.Close()
	out, _ := cmd.StdoutPipe()
	start(t, cmd)
	bufio.NewReader(out).ReadString('\n')
	p := open(t, cmd.Process.Pid)
	if p.ExePath() != "/app" {
		t.Errorf("path %q, want /app", p.ExePath())
	}
	for name, want := range map[string]string{"/inside": "inside", "link": "inside", "/up": "inside", "../../inside": "inside"} {
		f, err := p.OpenFile(name)
		if err != nil {
			t.Error(err)
			continue
		}
		if b, _ := io.ReadAll(f); string(b) != want {
			t.Errorf("%s holds %q", name, b)
		}
		f.Close()
	}
	for _, name := range []string{"out", "magic", "dir", "pipe", "/none", "/", ""} {
		if f, err := p.OpenFile(name); err == nil {
			f.Close()
			t.Errorf("%q was opened", name)
		}
	}
}

// TestPermission opens a process of root as somebody else.
func TestPermission(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to stop being it")
	}
	cmd := start(t, exec.Command("sleep", "60"))
	type result struct{ open, scan error }
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		var r result
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			r.open = errno
			done <- r
			return
		}
		var p *Process
		if p, r.open = Open(cmd.Process.Pid); p != nil {
			p.Close()
		}
		_, r.scan = (&Watcher{}).Scan()
		done <- r
	}()
	r := <-done
	for _, err := range []error{r.open, r.scan} {
		if !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), "CAP_SYS_PTRACE") {
			t.Errorf("error %v does not name the capability", err)
		}
	}
}

func TestParseStat(t *testing.T) {
	line := "77 (a) b\n(c) S 1 77 77 0 -1 2097216 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1 2\n"
	st, err := parseStat([]byte(line))
	if err != nil || st.state != 'S' || st.parent != 1 || st.flags != 2097216 || st.start != 12345 {
		t.Errorf("%+v, %v", st, err)
	}
	for _, bad := range []string{"", ")", "1 (x) S", "1 (x", "1 (x) S a 1 1 0 -1 0 1 2 3 4 5 6 7 8 20 0 1 0 5", strings.Repeat(") ", 50)} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was parsed", bad)
		}
	}
}

func TestSplitNUL(t *testing.T) {
	tests := []struct {
		in    string
		limit int
		want  []string
	}{
		{"", 10, nil},
		{"\x00\x00", 10, nil},
		{"a\x00b", 10, []string{"a", "b"}},
		{"a\x00\x00b\x00\x00", 10, []string{"a", "", "b"}},
		{"abc\x00defghi", 10, []string{"abc"}},
		{"abcdefghij", 10, nil},
	}
	for _, tt := range tests {
		if got := splitNUL([]byte(tt.in), tt.limit); !slices.Equal(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.in, got, tt.want)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("77 (a) b) S 1 77 77 0 -1 2097216 1 2 3 4 5 6 7 8 20 0 1 0 12345 99 1 2\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseStat(b)
		if err == nil && st.state == 0 {
			t.Error("no state and no error")
		}
		splitNUL(b, 16)
	})
}
