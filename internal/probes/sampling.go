package probes

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"

	"github.com/plainframework/agent/bpf"
)

// Samplers decide in the kernel, where a trace starts; bpf/span.h has them.
const (
	SamplerRatio       = "traceidratio"             // by the low 64 bits of the trace id
	SamplerParentRatio = "parentbased_traceidratio" // as a remote parent decided, else likewise
	SamplerProbability = "probability"              // OpenTelemetry's consistent sampling
)

// Sampling says which traces are kept.
type Sampling struct {
	Rate    float64 // 0 to 1
	Sampler string  // one of the samplers; "" is SamplerRatio

	KeepErrors     bool          // keep what the sampler does not, if its local root failed
	KeepSlowerThan time.Duration // or took longer; 0: off
	KeepLimit      int           // how many such traces a second and process; 0: 100

	// RemoteLimit is how many traces a second and process are sampled whose ids callers
	// chose, at a rate below 1; 0: 1000.
	RemoteLimit int
	Drop        []DropRule
}

const (
	defaultKeepLimit   = 100
	defaultRemoteLimit = 1000
	limitBurst         = time.Second // of limited traces may come at once
)

// settings is what the programs are told.
func (s Sampling) settings() (bpf.AgentSettings, error) {
	out := bpf.AgentSettings{KeepSlowerNs: uint64(max(s.KeepSlowerThan, 0))}
	switch s.Sampler {
	case "", SamplerRatio:
		out.Sampler = uint32(bpf.AgentSamplerSAMPLER_RATIO)
		out.SampleThreshold = sampleBound(s.Rate)
	case SamplerParentRatio:
		out.Sampler = uint32(bpf.AgentSamplerSAMPLER_PARENT_RATIO)
		out.SampleThreshold = sampleBound(s.Rate)
	case SamplerProbability:
		out.Sampler = uint32(bpf.AgentSamplerSAMPLER_PROBABILITY)
		out.SampleThreshold = probabilityThreshold(s.Rate)
	default:
		return out, fmt.Errorf("sampler %q is not known: it is %s, %s or %s", s.Sampler, SamplerRatio, SamplerParentRatio, SamplerProbability)
	}
	if s.Rate >= 1 {
		out.SampleAll = 1
	}
	if s.KeepErrors {
		out.KeepErrors = 1
	}
	rules, err := dropRules(s.Drop)
	if err != nil {
		return out, err
	}
	out.DropRules = uint32(len(rules))
	out.KeepIntervalNs, out.KeepBurstNs = limitOf(s.KeepLimit, defaultKeepLimit)
	out.RemoteIntervalNs, out.RemoteBurstNs = limitOf(s.RemoteLimit, defaultRemoteLimit)
	return out, nil
}

// limitOf is a limit a second as the programs have it: the time between two, and how
// far ahead of that they may come.
func limitOf(limit, otherwise int) (interval, burst uint64) {
	if limit <= 0 {
		limit = otherwise
	}
	return uint64(time.Second) / uint64(limit), uint64(limitBurst)
}

// sampleBound is round(rate·2⁶⁴), as Python computes it: exactly. A trace is kept if the
// low 64 bits of its id, as a number, are below. Rate 1 does not fit, and has a flag of
// its own.
func sampleBound(rate float64) uint64 {
	if rate <= 0 {
		return 0
	}
	f := new(big.Float).SetMantExp(big.NewFloat(rate), 64)
	n, _ := f.Add(f, big.NewFloat(0.5)).Int(nil)
	if !n.IsUint64() {
		return math.MaxUint64
	}
	return n.Uint64()
}

// probabilityThreshold is (1−rate)·2⁵⁶: a trace is kept if the low 56 bits of its id, as
// a number, are not below. Rate 0 is above all of them.
func probabilityThreshold(rate float64) uint64 {
	const space = 1 << 56
	if rate <= 0 {
		return space
	}
	return space - uint64(math.Round(min(rate, 1)*space))
}

// thresholdText is a threshold as the tracestate carries it: 14 hex digits without
// trailing zeros. "" for a sampler that has none.
func (s Sampling) thresholdText() string {
	if s.Sampler != SamplerProbability || s.Rate <= 0 {
		return ""
	}
	t := fmt.Sprintf("%014x", probabilityThreshold(s.Rate))
	if t = strings.TrimRight(t, "0"); t == "" {
		return "0"
	}
	return t
}

// withThreshold sets th in the ot entry of a tracestate, or takes it out for "". The
// entries of other vendors stay, behind it, as the specification of tracestate asks.
func withThreshold(state, th string) string {
	var ot []string
	var others []string
	for entry := range strings.SplitSeq(state, ",") {
		entry = strings.TrimSpace(entry)
		fields, ok := strings.CutPrefix(entry, "ot=")
		if !ok {
			if entry != "" {
				others = append(others, entry)
			}
			continue
		}
		for field := range strings.SplitSeq(fields, ";") {
			if field != "" && !strings.HasPrefix(field, "th:") {
				ot = append(ot, field)
			}
		}
	}
	if th != "" {
		ot = append([]string{"th:" + th}, ot...)
	}
	if len(ot) > 0 {
		others = append([]string{"ot=" + strings.Join(ot, ";")}, others...)
	}
	return strings.Join(others, ",")
}

func (s Sampling) String() string {
	return s.Sampler + " " + strconv.FormatFloat(s.Rate, 'g', -1, 64)
}
