package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a child on one core.
type process struct {
	cmd  *exec.Cmd
	log  *os.File
	done chan struct{} // closed when it has ended
}

// start runs name on a core, with its stderr in a file.
func start(cpu int, logFile string, stdout io.Writer, env []string, name string, args ...string) (*process, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, fmt.Errorf("create log: %w", err)
	}
	p := &process{log: log, done: make(chan struct{})}
	p.cmd = exec.Command("taskset", append([]string{"-c", strconv.Itoa(cpu), name}, args...)...)
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = stdout, log, append(os.Environ(), env...)
	// No child outlives this program.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		log.Close()
		return nil, fmt.Errorf("start %s: %w", filepath.Base(name), err)
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is in its log
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// stop ends the process, by force after 12 s, and waits for it.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(12 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	p.log.Close()
}

// lastWords is the last line of the process's stderr.
func (p *process) lastWords() string {
	data, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[len(lines)-1]
}

// cpu is the CPU time that all threads of the process have used, to the
// nanosecond: the kernel's clock for it (see clock_getcpuclockid).
func (p *process) cpu() (time.Duration, error) {
	const schedClock = 2
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^p.pid()<<3|schedClock), &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", p.pid(), err)
	}
	return time.Duration(ts.Nano()), nil
}

// memory returns the resident set now and at its peak, in bytes.
func (p *process) memory() (now, peak int64) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", p.pid()))
	if err != nil {
		return 0, 0
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		key, rest, _ := strings.Cut(lines.Text(), ":")
		kb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
		n, _ := strconv.ParseInt(kb, 10, 64)
		switch key {
		case "VmRSS":
			now = n << 10
		case "VmHWM":
			peak = n << 10
		}
	}
	return now, peak
}

// startShop returns the shop and its URL.
func startShop(ctx context.Context, cfg config, dir string) (*process, string, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, "", fmt.Errorf("start shop: %w", err)
	}
	defer r.Close()
	p, err := start(cfg.appCPU, filepath.Join(dir, "shop.log"), w, nil, cfg.shop, "-listen", "127.0.0.1:0")
	w.Close()
	if err != nil {
		return nil, "", err
	}
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		p.stop()
		return nil, "", fmt.Errorf("start shop: %w", err)
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	_, url, ok := strings.Cut(strings.TrimSpace(line), " listens on ")
	if err != nil || !ok {
		p.stop()
		return nil, "", fmt.Errorf("start shop: it says %q and %q", line, p.lastWords())
	}
	return p, url, get(ctx, url+"/plain")
}

// agent is a running agent.
type agent struct {
	*process
	status string // URL of its status server
}

// startAgent starts the agent on the shop and waits until it has attached.
func startAgent(ctx context.Context, cfg config, dir, sink string, rate float64) (*agent, error) {
	status, err := freeAddress()
	if err != nil {
		return nil, err
	}
	env := []string{
		"PLAIN_CLOUD_SPOOL_DIR=off", "PLAIN_AGENT_STATE_DIR=off", "PLAIN_CLOUD_EXPORT_TOKEN=bench", "PLAIN_CLOUD_EXPORT_URL=" + sink,
		"PLAIN_CLOUD_TRACE_SAMPLE_RATE=" + strconv.FormatFloat(rate, 'g', -1, 64),
	}
	if !cfg.keepErrors {
		env = append(env, "PLAIN_CLOUD_TRACE_KEEP_ERRORS=false")
	}
	p, err := start(cfg.otherCPU, filepath.Join(dir, "agent.log"), nil, env, cfg.agent, "run", "--exe", cfg.shop, "--status", status)
	if err != nil {
		return nil, err
	}
	a := &agent{process: p, status: "http://" + status}
	for deadline := time.Now().Add(20 * time.Second); ; {
		err := get(ctx, a.status+"/readyz")
		if err == nil {
			return a, nil
		}
		select {
		case <-p.done:
			err = errors.New(p.lastWords())
		case <-ctx.Done():
			err = ctx.Err()
		case <-time.After(20 * time.Millisecond):
			if time.Now().Before(deadline) {
				continue
			}
		}
		p.stop()
		return nil, fmt.Errorf("start agent: %w", err)
	}
}

func freeAddress() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("find a free port: %w", err)
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// get asks for a URL and returns an error for anything but 200.
func get(ctx context.Context, url string) error {
	_, err := fetch(ctx, url)
	return err
}

// fetch returns the body of a URL that answers 200.
func fetch(ctx context.Context, url string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, 8<<20))
	if err != nil {
		return nil, err
	}
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: status %d", url, res.StatusCode)
	}
	return body, nil
}
