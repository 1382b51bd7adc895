package main

import (
	"context"
	"log/slog"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/probes"
	"github.com/plainframework/agent/internal/probes/event"
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
func startProbes(cfg config.Config, sink event.Sink, logger *slog.Logger) (prober, error) {
	agent, err := probes.New(probeOptions(cfg), sink, logger)
	if err != nil {
		return nil, err
	}
	return statusProber{agent}, nil
}

// probeOptions is what cfg means to internal/probes.
func probeOptions(cfg config.Config) probes.Options {
	return probes.Options{
		PIDs: cfg.Targets.PIDs,
		Exes: cfg.Targets.Exes,
		Sampling: probes.Sampling{
			Rate: cfg.Traces.SampleRate, Sampler: cfg.Traces.Sampler,
			KeepErrors: cfg.Traces.KeepErrors, KeepSlowerThan: cfg.Traces.KeepSlowerThan,
			KeepLimit: cfg.Traces.KeepLimit,
		},
		Version:         readVersion().Version,
		RingSize:        int(cfg.Probes.RingSize),
		MaxOpenSpans:    cfg.Probes.MaxInFlight,
		MetricsInterval: cfg.Metrics.Interval,
		MaxSeries:       cfg.Metrics.MaxSeries,
		MaxOverhead:     float64(cfg.Probes.MaxOverhead),
		DropPrivileges:  true,
	}
}

// statusProber gives the status its type for JSON.
type statusProber struct{ *probes.Agent }

func (p statusProber) Status() any { return p.Agent.Status() }
