package main

import (
	"context"
	"log/slog"

	"go.opentelemetry.io/otel/log"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/export"
	"github.com/plainframework/agent/internal/probes"
	"github.com/plainframework/agent/internal/probes/logtext"
)

// prober is what run needs of internal/probes.
type prober interface {
	// Run follows the targets until ctx ends, then detaches, hands over what
	// was fired until then, and returns.
	Run(ctx context.Context) error
	// Close frees what New made; not while Run runs.
	Close() error
	Ready() bool
	Status() any // for JSON
}

// startProbes attaches to the targets of cfg.
func startProbes(cfg config.Config, state *probes.State, sink *export.Pipeline, logger *slog.Logger) (prober, error) {
	options, err := probeOptions(cfg)
	if err != nil {
		return nil, err
	}
	options.State, options.Handed = state, sink.Handed
	agent, err := probes.New(options, sink, logger)
	if err != nil {
		return nil, err
	}
	return statusProber{agent}, nil
}

// probeOptions is what cfg means to internal/probes.
func probeOptions(cfg config.Config) (probes.Options, error) {
	redact, err := logtext.NewRedactor(true, cfg.Logs.Redact)
	return probes.Options{
		PIDs: cfg.Targets.PIDs,
		Exes: cfg.Targets.Exes,
		Sampling: probes.Sampling{
			Rate: cfg.Traces.SampleRate, Sampler: cfg.Traces.Sampler,
			KeepErrors: cfg.Traces.KeepErrors, KeepSlowerThan: cfg.Traces.KeepSlowerThan,
			KeepLimit: cfg.Traces.KeepLimit, RemoteLimit: cfg.Traces.RemoteLimit,
		},
		Version:         readVersion().Version,
		RingSize:        int(cfg.Probes.RingSize),
		MaxOpenSpans:    cfg.Probes.MaxInFlight,
		MetricsInterval: cfg.Metrics.Interval,
		MaxSeries:       cfg.Metrics.MaxSeries,
		Logs: probes.Logs{
			Capture: cfg.Logs.Export, Floor: log.Severity(cfg.Logs.Level), Redact: redact,
			Rate: cfg.Logs.Rate, Burst: cfg.Logs.Burst,
		},
		MaxOverhead:    float64(cfg.Probes.MaxOverhead),
		DropPrivileges: true,
	}, err
}

// statusProber gives the status its type for JSON.
type statusProber struct{ *probes.Agent }

func (p statusProber) Status() any { return p.Agent.Status() }
