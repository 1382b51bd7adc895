package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"go.opentelemetry.io/otel/log"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/export"
	"github.com/plainframework/agent/internal/probes"
	"github.com/plainframework/agent/internal/probes/event"
	"github.com/plainframework/agent/internal/probes/kubernetes"
	"github.com/plainframework/agent/internal/probes/logtext"
	"github.com/plainframework/agent/internal/probes/process"
)

// prober is what run needs of internal/probes.
type prober interface {
	// Run follows the targets until ctx ends, then detaches, hands over what
	// was fired until then, and returns.
	Run(ctx context.Context) error
	// Close frees what New made; not while Run runs.
	Close() error
	Ready() bool
	// Change puts those settings in force that can change while it runs.
	Change(context.Context, config.Config) error
	// Alive returns an error if nothing moves any more.
	Alive() error
	Status() any // for JSON
}

// probeContext is what the probes work with, beside their settings.
type probeContext struct {
	state   *probes.State
	sink    *export.Pipeline
	numbers func() []event.Number // the agent's own
}

// startProbes attaches to the targets of cfg.
func startProbes(cfg config.Config, c probeContext, logger *slog.Logger) (prober, error) {
	options, err := probeOptions(cfg)
	if err != nil {
		return nil, err
	}
	options.State, options.Handed, options.Numbers = c.state, c.sink.Handed, c.numbers
	p := &nodeProber{}
	if cluster := startCluster(cfg.Kubernetes, logger, p); cluster != nil {
		options.Cluster = cluster
	}
	agent, err := probes.New(options, c.sink, logger)
	if err != nil {
		p.stop()
		return nil, err
	}
	p.Agent = agent
	return p, nil
}

// probeOptions is what cfg means to internal/probes.
func probeOptions(cfg config.Config) (probes.Options, error) {
	redact, err := logtext.NewRedactor(true, cfg.Logs.Redact)
	return probes.Options{
		PIDs:  cfg.Targets.PIDs,
		Exes:  cfg.Targets.Exes,
		Rules: rulesOf(cfg.Targets),
		Sampling: probes.Sampling{
			Rate: cfg.Traces.SampleRate, Sampler: cfg.Traces.Sampler,
			KeepErrors: cfg.Traces.KeepErrors, KeepSlowerThan: cfg.Traces.KeepSlowerThan,
			KeepLimit: cfg.Traces.KeepLimit, RemoteLimit: cfg.Traces.RemoteLimit, Drop: dropRulesOf(cfg.Traces.Drop),
		},
		Version:         readVersion().Version,
		RingSize:        int(cfg.Probes.RingSize),
		MaxOpenSpans:    cfg.Probes.MaxInFlight,
		MaxDuration:     cfg.Traces.MaxDuration,
		MetricsInterval: cfg.Metrics.Interval,
		MaxSeries:       cfg.Metrics.MaxSeries,
		Logs: probes.Logs{
			Capture: cfg.Logs.Export, Floor: log.Severity(cfg.Logs.Level), Redact: redact,
			Rate: cfg.Logs.Rate, Burst: cfg.Logs.Burst,
		},
		Propagation:    propagationOf(cfg.Propagation),
		MaxOverhead:    float64(cfg.Probes.MaxOverhead),
		ClusterWait:    cfg.Kubernetes.Wait,
		DropPrivileges: true,
	}, err
}

// nodeProber is the probes, and what they know of the cluster they run in.
type nodeProber struct {
	*probes.Agent
	stopCluster context.CancelFunc
	cluster     sync.WaitGroup
}

// Change puts settings in force.
func (p *nodeProber) Change(ctx context.Context, cfg config.Config) error {
	options, err := probeOptions(cfg)
	if err != nil {
		return err
	}
	return p.Agent.Change(ctx, options)
}

// Status gives the status its type for JSON.
func (p *nodeProber) Status() any { return p.Agent.Status() }

// Close frees the probes and ends the cluster's informers.
func (p *nodeProber) Close() error {
	p.stop()
	return p.Agent.Close()
}

func (p *nodeProber) stop() {
	if p.stopCluster != nil {
		p.stopCluster()
		p.cluster.Wait()
	}
}

// startCluster follows the pods of the node, nil outside a cluster. Without it there
// are spans all the same, so what is wrong with it is said, and no error.
func startCluster(k config.Kubernetes, logger *slog.Logger, p *nodeProber) *kubernetes.Cluster {
	if !k.Enabled || k.APIServer == "" {
		return nil
	}
	cluster, err := kubernetes.New(kubernetes.Options{
		APIServer: k.APIServer, Node: k.Node, Cluster: k.Cluster,
		TokenFile: kubernetes.TokenFile, CAFile: kubernetes.CAFile,
		UserAgent: "plain-agent/" + readVersion().String(),
	}, logger)
	if err != nil {
		logger.Warn("nothing is known of the cluster's pods", "error", err)
		return nil
	}
	ctx, stop := context.WithCancel(context.Background())
	p.stopCluster = stop
	p.cluster.Go(func() {
		if err := cluster.Run(ctx); err != nil {
			logger.Warn("nothing is known of the cluster's pods", "error", fmt.Errorf("follow pods: %w", err))
		}
	})
	return cluster
}

func dropRulesOf(list []config.DropRule) []probes.DropRule {
	out := make([]probes.DropRule, len(list))
	for i, r := range list {
		out[i] = probes.DropRule(r)
	}
	return out
}

func propagationOf(p config.Propagation) probes.Propagation {
	networks, names, dotless, _ := p.Allowed() // validated
	return probes.Propagation{
		Headers: p.Mode != config.PropagateOff, Messages: p.Mode == config.PropagateHeaders,
		Networks: networks, Names: names, Dotless: dotless,
	}
}

func rulesOf(t config.Targets) process.Rules {
	rules := func(list []config.Rule) []process.Rule {
		out := make([]process.Rule, len(list))
		for i, r := range list {
			out[i] = process.Rule(r)
		}
		return out
	}
	return process.Rules{All: t.All, Include: rules(t.Include), Exclude: rules(t.Exclude)}
}
