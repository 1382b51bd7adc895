package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/export"
	"github.com/plainframework/agent/internal/probes"
	"github.com/plainframework/agent/internal/probes/event"
)

// Limits of the way down: the whole agent has 10 s from the signal to its end.
const (
	stopProbes   = 4 * time.Second // detaching, and draining the ring
	stopAll      = 9500 * time.Millisecond
	stopStatus   = 500 * time.Millisecond
	stateActive  = "active"
	stateIdle    = "idle"
	stateStart   = "starting"
	stateStopped = "stopping"
)

func newRunCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:     "run",
		Short:   "Instrument Go processes until stopped",
		Long:    runHelp(),
		Example: runExamples,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := givenFlags(cmd)
			load := func() (config.Config, error) { return config.Load(config.Sources{File: file, Flags: flags}) }
			fileSeen := fileState(file)
			cfg, err := load()
			if err != nil {
				return err
			}
			// Before anything else: by default the signal would end the process.
			reloads := make(chan os.Signal, 1)
			signal.Notify(reloads, syscall.SIGHUP)
			defer signal.Stop(reloads)
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			// After the first signal the second one ends the agent at once.
			context.AfterFunc(ctx, stop)
			logger, level := newLogger(cmd.ErrOrStderr(), cfg.Agent)
			r := runner{
				cfg: cfg, logger: logger, level: level, file: file, fileSeen: fileSeen, load: load, reloads: reloads,
				notify: &notifier{logger}, openState: probes.OpenState, startProbes: startProbes,
			}
			return r.run(ctx)
		},
	}
	addFlags(cmd, &file)
	return cmd
}

// newLogger makes the agent's own log. It goes to stderr and nowhere else.
// Its level can be changed.
func newLogger(w io.Writer, a config.Agent) (*slog.Logger, *slog.LevelVar) {
	level := &slog.LevelVar{}
	_ = level.UnmarshalText([]byte(a.LogLevel)) // it was validated
	opts := &slog.HandlerOptions{Level: level}
	if a.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts)), level
	}
	return slog.New(slog.NewTextHandler(w, opts)), level
}

// runner is one run of the agent.
type runner struct {
	cfg         config.Config
	logger      *slog.Logger
	openState   func(dir string, logger *slog.Logger) (*probes.State, error)
	startProbes func(config.Config, probeContext, *slog.Logger) (prober, error)
	listening   func(addr string) // told the status address; for tests

	// For changes of settings while it runs; load is nil where there are none.
	load     func() (config.Config, error)
	file     string // of settings, "" for none
	fileSeen string // state of the file that was loaded
	reloads  <-chan os.Signal
	level    *slog.LevelVar // of the log
	notify   *notifier      // nil: nobody is told

	started time.Time
	state   atomic.Pointer[string]
	reason  string
	stages  atomic.Pointer[stages]
	own     atomic.Pointer[ownMetrics]
}

// stages are what the flow runs through, once they are all there.
type stages struct {
	probes prober
	export *export.Pipeline
}

var errNoTargets = errors.New("nothing to instrument: name a process with --pid or a binary with --exe, take everything with --all, or write rules under targets in the config file")

// run returns nil when ctx has ended and everything was shut down in time.
func (r *runner) run(ctx context.Context) (err error) {
	r.started = time.Now()
	r.setState(stateStart)
	for _, w := range r.cfg.Warnings {
		r.logger.Warn(w)
	}
	if r.cfg.Active() && !r.cfg.Targets.Named() {
		return errNoTargets
	}
	status, err := listenStatus(r.cfg.Agent.Status)
	if err != nil {
		return err
	}
	if !r.cfg.Active() {
		r.idle()
	}
	status.serve(r.snapshot, r.logger)
	if r.listening != nil {
		r.listening(status.addr())
	}
	defer func() {
		bye, cancel := context.WithTimeout(context.Background(), stopStatus)
		defer cancel()
		err = errors.Join(err, status.shutdown(bye))
	}()
	if r.reason != "" {
		r.notify.ready()
		go r.notify.watchdog(ctx, func() error { return nil })
		return r.doNothing(ctx, status.failure())
	}
	return r.export(ctx, status.failure())
}

// idle is the no-op: nothing is attached, and the agent stays up and healthy,
// so that a missing token does not make a node restart it for ever.
func (r *runner) idle() {
	r.reason = "no token: set PLAIN_CLOUD_EXPORT_TOKEN or PLAIN_CLOUD_EXPORT_TOKEN_FILE"
	if !r.cfg.Export.Enabled {
		r.reason = "export is switched off by PLAIN_CLOUD_EXPORT_ENABLED"
	}
	r.setState(stateIdle)
	r.logger.Info("the agent does nothing: "+r.reason, "status", r.cfg.Agent.Status)
}

// doNothing waits for the end.
func (r *runner) doNothing(ctx context.Context, statusFailed <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.reloads:
			r.logger.Warn("the agent does nothing, and goes on so until it is started again")
		case err := <-statusFailed:
			return err
		}
	}
}

// export builds the stages from the last to the first, runs them until ctx
// ends or one breaks, and stops them from the first to the last.
func (r *runner) export(ctx context.Context, statusFailed <-chan error) (err error) {
	tuneMemory(r.cfg)
	version := readVersion()
	state, err := r.openState(r.cfg.Agent.StateDir, r.logger)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	pipeline, err := export.New(r.cfg, r.logger, export.WithResource(ownResource(version)), export.WithBook(func(signal int) export.Memory {
		if memory := state.Book(signal); memory != nil {
			return memory
		}
		return nil
	}))
	if err != nil {
		return err
	}
	sendCtx, stopSending := context.WithCancel(context.WithoutCancel(ctx))
	sending := make(chan error, 1)
	go func() { sending <- pipeline.Run(sendCtx) }()
	// Also when a panic passes here, which must not wait for a pipeline that
	// nobody has shut down.
	defer func() { stopSending(); <-sending }()

	prober, err := r.startProbes(r.cfg, probeContext{state, pipeline, r.ownNumbers}, r.logger)
	if err != nil {
		return errors.Join(err, pipeline.Shutdown(context.WithoutCancel(ctx)))
	}
	r.stages.Store(&stages{probes: prober, export: pipeline})
	r.own.Store(newOwnMetrics(version.Version, r.snapshot()))
	r.setState(stateActive)
	releaseStartup()
	r.logger.Info("agent runs", "version", version.String(), "status", r.cfg.Agent.Status)

	probing, stopProbing := context.WithCancel(ctx)
	defer stopProbing()
	probed := make(chan error, 1)
	go func() { probed <- prober.Run(probing) }()
	r.notify.ready()
	var watching sync.WaitGroup
	watching.Go(func() { r.watch(probing, prober) })
	watching.Go(func() { r.notify.watchdog(probing, prober.Alive) })
	select {
	case <-ctx.Done():
	case err = <-probed:
		probed <- nil // for shutdown, which waits for it
		if err == nil && ctx.Err() == nil {
			err = errors.New("probes: ended on their own")
		}
	case err = <-statusFailed:
	}
	stopProbing()
	r.notify.stopping()
	watching.Wait()
	stopped, stopErr := r.shutdown(prober, probed, pipeline)
	if stopped {
		state.Release()
	}
	return errors.Join(err, stopErr)
}

// shutdown stops the probes, waits for what they still hand over, and flushes. Unless the
// probes did not stop, all that they saw is exported, spooled or counted as lost then.
func (r *runner) shutdown(prober prober, probed <-chan error, pipeline *export.Pipeline) (stopped bool, err error) {
	r.setState(stateStopped)
	ctx, cancel := context.WithTimeout(context.Background(), stopAll)
	defer cancel()
	var errs []error
	select {
	case err := <-probed:
		errs, stopped = append(errs, err, prober.Close()), true
	case <-time.After(stopProbes):
		// Not closed: Run still uses it. The kernel detaches everything when
		// the process ends.
		errs = append(errs, fmt.Errorf("probes: not stopped within %v", stopProbes))
	}
	if err := pipeline.Shutdown(ctx); err != nil {
		errs = append(errs, err)
	}
	for name, s := range pipeline.Stats().Signals {
		if s.Received > 0 {
			r.logger.Info("exported", "signal", name, "received", s.Received, "exported", s.Exported, "spooled", s.Spooled, "lost", s.LostTotal())
		}
	}
	return stopped, errors.Join(errs...)
}

// ownNumbers are the agent's own metrics.
func (r *runner) ownNumbers() []event.Number {
	if own := r.own.Load(); own != nil {
		return own.numbers(r.snapshot())
	}
	return nil
}

func (r *runner) setState(s string) { r.state.Store(&s) }

// snapshot is what the status server shows.
func (r *runner) snapshot() report {
	rep := report{
		Agent: readVersion(), State: *r.state.Load(), Reason: r.reason, Started: r.started,
		PID: os.Getpid(), Process: readProcess(),
	}
	rep.Ready = rep.State == stateIdle
	if s := r.stages.Load(); s != nil {
		stats := s.export.Stats()
		rep.Ready, rep.Probes, rep.Export = s.probes.Ready(), s.probes.Status(), &stats
	}
	return rep
}
