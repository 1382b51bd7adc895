package probes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/plainframework/agent/bpf"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/kubernetes"
	"github.com/plainframework/agent/internal/probes/process"
)

// Options say what to instrument, and how much room it may take.
type Options struct {
	PIDs     []int    // processes; others of the same binary stay free of probes
	Exes     []string // executables: every process, now and later
	Rules    process.Rules
	Sampling Sampling
	Version  string // of the agent

	RingSize     int // bytes, a power of two
	MaxOpenSpans int // goroutines of the node that have an open span

	MaxDuration time.Duration // of a span; one that is open for longer is cut off

	MetricsInterval time.Duration
	MaxSeries       int // of one metric and process; the rest is one overflow series

	Logs Logs

	// State is where the kernel's side outlives the agent; nil: nowhere. The caller
	// closes it after the agent.
	State *State
	// Handed is how many spans the sink was given, those of agents before with this
	// state included; nil: those of this agent.
	Handed func() uint64
	// Numbers are added to each collection of metrics: the agent's own. nil: none.
	Numbers func() []event.Number

	Cluster     Cluster       // nil outside one
	ClusterWait time.Duration // for what the cluster does not know yet

	Propagation Propagation

	MaxOverhead float64 // share of a target's CPU time that probes may cost; 0: any

	// DropPrivileges has New give up, for the whole process, all capabilities that are
	// not needed any more once the programs are loaded.
	DropPrivileges bool

	mode attachMode // tests try those of older kernels
}

// Agent is the probes of one node.
type Agent struct {
	log     *slog.Logger
	kernel  *kernel
	exec    *execWatch
	ring    *ringbuf.Reader
	logRing *ringbuf.Reader
	targets *targets
	reader  *reader
	collect *collector
	overdue *overdue
	options Options

	attachTime time.Duration
	loaded     atomic.Bool // all programs, or as many as are needed

	closeOnce sync.Once
	closeErr  error
}

// New loads the BPF programs and attaches them to what Options name; whatever a
// target does from then on waits in the ring until Run. An error is about what was
// asked for: a PID that is gone, a path that is a directory, a missing capability.
func New(o Options, sink event.Sink, log *slog.Logger) (*Agent, error) {
	a := &Agent{log: log, options: o}
	if err := a.start(sink); err != nil {
		a.Close()
		return nil, err
	}
	return a, nil
}

func (a *Agent) start(sink event.Sink) (err error) {
	began := time.Now()
	o, log := a.options, a.log
	if err := process.CheckNamespace(); err != nil {
		return err
	}
	if a.kernel, err = loadKernel(o); err != nil {
		return err
	}
	if err := a.kernel.configure(o); err != nil {
		return err
	}
	if _, err := a.kernel.offsets(); err != nil {
		log.Warn("hops over loopback are not joined: network namespaces cannot be told apart", "error", err)
	}
	a.kernel.propagation = newPropagation(a.kernel, o.Propagation, log)
	for _, n := range a.kernel.missing {
		log.Warn("missing " + capabilityNames[n.bits[0]] + ", which is needed " + n.why)
	}
	if o.DropPrivileges { // before any file of others is read
		if err := dropPrivileges(a.kernel.least); err != nil {
			log.Warn("the agent keeps capabilities that it does not need", "reason", err)
		}
		log.Debug("capabilities", "kept", a.kernel.least)
	}
	if a.ring, err = ringbuf.NewReader(a.kernel.mapOf("ring")); err != nil {
		return fmt.Errorf("open ring buffer: %w", err)
	}
	if a.exec, err = watchExec(a.kernel); err != nil {
		log.Warn("new processes are found by scanning, not at once", "error", err)
	}
	if a.targets, err = newTargets(a.kernel, o, log); err != nil {
		return err
	}
	a.collect = newCollector(a.kernel, a.targets, sink, log, o.Version)
	a.collect.own = o.Numbers
	a.targets.retired, a.targets.replaced, a.targets.measure = a.retired, a.replaced, a.collect.replaced
	a.reader = newReader(a.ring, sink, a.targets, a.collect, o.Version)
	a.reader.decode.threshold, a.reader.decode.keepErrors = o.Sampling.thresholdText(), o.Sampling.KeepErrors
	a.kernel.off = map[*library]bool{&standardError: !o.Logs.Capture}
	if o.Logs.Capture {
		if err := a.captureLogs(sink); err != nil {
			return err
		}
	}
	if a.overdue, err = newOverdue(a.kernel, a.targets, a.reader, o.MaxDuration, log); err != nil {
		return err
	}
	if err := a.inherit(); err != nil {
		return err
	}
	if err := a.targets.start(); err != nil {
		return err
	}
	a.targets.settleInherited()
	o.State.attached()
	a.attachTime = time.Since(began)
	return nil
}

// captureLogs lets the reader make log records, too.
func (a *Agent) captureLogs(sink event.Sink) (err error) {
	if a.logRing, err = ringbuf.NewReader(a.kernel.mapOf("log_ring")); err != nil {
		return fmt.Errorf("open ring buffer of logs: %w", err)
	}
	a.reader.logRing = a.logRing
	a.reader.logs = newLogs(a.options.Logs, sink, a.reader.exceptions, a.options.State, a.options.Version, a.kernel.droppedLogs)
	return nil
}

// retired and replaced are told of the end of a target; see targets.
func (a *Agent) retired(pid int, t *target) {
	a.reader.logs.retire(t)
	a.collect.retire(pid, t)
}

func (a *Agent) replaced(_ int, t *target) { a.reader.logs.retire(t) }

// Run follows the targets and hands their spans to the sink until ctx is done. Then it
// detaches all probes, hands over what was fired until then, and returns.
func (a *Agent) Run(ctx context.Context) error {
	readCtx, stopReading := context.WithCancel(context.Background())
	defer stopReading()
	rings := []*ebpf.Map{a.kernel.mapOf("ring")}
	if a.logRing != nil {
		rings = append(rings, a.kernel.mapOf("log_ring"))
	}
	bell, err := newBell(rings...)
	if err != nil {
		return err
	}
	defer func() {
		if err := bell.close(); err != nil {
			a.log.Debug("the end of waiting for full rings", "error", err)
		}
	}()
	a.reader.full = bell.rings
	read := make(chan error, 1)
	go func() { read <- a.reader.run(readCtx) }()

	var following sync.WaitGroup
	following.Go(a.loadRest)
	following.Go(func() { a.targets.run(ctx) })
	if a.exec != nil {
		following.Go(func() { a.exec.run(ctx, a.targets.execs) })
	}
	following.Go(func() { a.collect.run(ctx, a.options.MetricsInterval) })
	following.Go(func() { a.overdue.run(ctx) })
	following.Go(func() { a.kernel.propagation.run(ctx) })
	if a.options.MaxOverhead > 0 {
		following.Go(func() { newBackoff(a.kernel, a.targets, a.options.MaxOverhead, a.log).run(ctx) })
	}

	select {
	case <-ctx.Done():
	case err = <-read: // the ring is broken: nothing can be read any more
		return errors.Join(err, a.targets.detach())
	}
	following.Wait()
	err = a.targets.detach()
	a.overdue.settle() // no program runs any more
	stopReading()
	err = errors.Join(err, <-read)
	a.collect.collect()
	return err
}

// Close frees everything; the targets run on at their own speed. It may be called
// more than once, not while Run runs.
func (a *Agent) Close() error {
	a.closeOnce.Do(func() {
		var errs []error
		if a.targets != nil {
			errs = append(errs, a.targets.close())
		}
		if a.exec != nil {
			errs = append(errs, a.exec.Close())
		}
		for _, ring := range []*ringbuf.Reader{a.ring, a.logRing} {
			if ring != nil {
				errs = append(errs, ring.Close())
			}
		}
		if a.overdue != nil {
			errs = append(errs, a.overdue.close())
		}
		if a.kernel != nil {
			a.kernel.Close()
		}
		a.closeErr = errors.Join(errs...)
	})
	return a.closeErr
}

// loadRest loads what no binary has needed yet. A process that starts later is then attached
// before its first request, which does not wait for the verifier. Where only processes are
// named, none comes.
func (a *Agent) loadRest() {
	defer a.loaded.Store(true)
	if len(a.options.Exes) == 0 && !a.options.Rules.Any() {
		return
	}
	if err := a.kernel.programs.loadAll(); err != nil {
		a.log.Warn("services with these libraries will not be covered", "error", err)
	}
}

// Ready tells whether every target found so far is attached or refused, and the next one
// will be at once.
func (a *Agent) Ready() bool { return a.targets.ready() && a.loaded.Load() }

// Status is a snapshot; it may be called at any time.
func (a *Agent) Status() Status {
	s := a.targets.status()
	s.Spans.Decoded = a.reader.decoded.Load()
	if a.reader.logs != nil {
		s.Logs = a.reader.logs.counts.status()
	}
	if n := a.reader.invalid.Load(); n > 0 {
		s.Losses["invalid_record"] = n
	}
	s.State = a.options.State.status(s.Losses)
	if n := a.reader.unselected.Load(); n > 0 {
		s.Losses["not_selected"] = n
	}
	if c, ok := a.options.Cluster.(*kubernetes.Cluster); ok {
		s.Cluster = c.Status()
	}
	s.AttachSeconds = a.attachTime.Seconds()
	s.Rings = map[string]RingStatus{}
	for name, ring := range map[string]*ringbuf.Reader{"spans": a.ring, "logs": a.logRing} {
		if ring != nil {
			s.Rings[name] = RingStatus{Size: ring.BufferSize(), Used: ring.AvailableBytes()}
		}
	}
	s.Programs = a.kernel.programStatus()
	s.Propagation = a.kernel.propagation.status()
	return s
}

// programStatus is what the kernel counts of the programs; nil if it does not.
func (k *kernel) programStatus() map[string]ProgramStatus {
	var all map[string]ProgramStatus
	for name, p := range k.programs.all() {
		stats, err := p.Stats()
		if err != nil || stats.RunCount == 0 {
			continue
		}
		if all == nil {
			all = map[string]ProgramStatus{}
		}
		all[name] = ProgramStatus{Runs: stats.RunCount, Time: stats.Runtime}
	}
	return all
}

// configure tells the programs the settings of the agent.
func (k *kernel) configure(o Options) error {
	s, err := o.Sampling.settings()
	if err != nil {
		return err
	}
	s.MaxSeries = uint32(o.MaxSeries)
	s.LogIntervalNs, s.LogBurstNs = o.Logs.kernelLimit()
	if err := k.storeDropRules(o.Sampling.Drop); err != nil {
		return err
	}
	offsets, _ := k.offsets() // without, hops over loopback are not joined
	s.TaskNsproxy, s.NsproxyNet = offsets.taskNsproxy, offsets.nsproxyNet
	if err := k.mapOf("agent_settings").Put(uint32(0), &s); err != nil {
		return fmt.Errorf("store settings: %w", err)
	}
	return nil
}

// counterNames are the reasons of enum counter as they are reported.
var counterNames = [bpf.AgentCounterCOUNTERS]string{
	bpf.AgentCounterCOUNT_LOST_RING_FULL:       "ring_full",
	bpf.AgentCounterCOUNT_LOST_GOROUTINES_FULL: "goroutines_full",
	bpf.AgentCounterCOUNT_LOST_STACK_FULL:      "stack_full",
	bpf.AgentCounterCOUNT_LOST_UNFINISHED:      "unfinished",
	bpf.AgentCounterCOUNT_LOST_EXITED:          "exited",
	bpf.AgentCounterCOUNT_LOST_MAX_DURATION:    "max_duration",
	bpf.AgentCounterCOUNT_STOOD_DOWN:           "stood_down",
	bpf.AgentCounterCOUNT_LOST_STASH_FULL:      "stash_full",
	bpf.AgentCounterCOUNT_LOST_BACKED_OFF:      "backed_off",
	bpf.AgentCounterCOUNT_LOST_UNKNOWN_PROCESS: "unknown_process",
	bpf.AgentCounterCOUNT_DROPPED_BY_RULE:      "dropped_by_rule",
	bpf.AgentCounterCOUNT_REMOTE_LIMITED:       "remote_limited",
	bpf.AgentCounterCOUNT_BAD_READ:             "bad_read",
	bpf.AgentCounterCOUNT_CONTEXTS_FULL:        "contexts_full",
	bpf.AgentCounterCOUNT_LOGS_RING_FULL:       "logs_ring_full",
	bpf.AgentCounterCOUNT_LOGS_RATE_LIMITED:    "logs_rate_limited",
	bpf.AgentCounterCOUNT_SERIES_FULL:          "series_full",
}
