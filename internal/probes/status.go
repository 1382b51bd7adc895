package probes

import "time"

// Status is what the agent instruments and what it does not, for people and for
// /status. Field names are part of the interface of `/status`.
type Status struct {
	Ready    bool           `json:"ready"`
	Binaries []BinaryStatus `json:"binaries"`
	Targets  []TargetStatus `json:"targets"`
	// Others is how many executables were looked at in which there is nothing to
	// instrument: no Go programs, or without a library that the agent knows.
	Others int `json:"others,omitempty"`
	// Cluster is how well the agent knows its Kubernetes cluster; nil outside one.
	Cluster any `json:"cluster,omitempty"`
	// Losses of the kernel side and of decoding, by reason, over all targets,
	// those that are gone included.
	Losses map[string]uint64 `json:"losses,omitempty"`
	Spans  SpanCounts        `json:"spans"`
	Logs   LogCounts         `json:"logs"`
	// State is what of this outlives a crash of the agent.
	State StateStatus `json:"state"`
	// Propagation is nil unless it is asked for.
	Propagation *PropagationStatus `json:"propagation,omitempty"`
	// Rings are the ways from the kernel to here.
	Rings map[string]RingStatus `json:"rings"` // spans, logs
	// AttachSeconds is how long it took to load the programs and to attach them to what
	// was there when the agent started.
	AttachSeconds float64 `json:"attach_seconds"`
	// Programs is what the kernel counts of the programs; nil unless it does so, which
	// sysctl kernel.bpf_stats_enabled=1 asks for.
	Programs map[string]ProgramStatus `json:"programs,omitempty"`
}

// RingStatus is a ring buffer, in bytes.
type RingStatus struct {
	Size int `json:"size"`
	Used int `json:"used"` // waits to be read
}

// ProgramStatus is how often a BPF program ran, and for how long, without the trap that
// leads to it.
type ProgramStatus struct {
	Runs uint64        `json:"runs"`
	Time time.Duration `json:"time_ns"`
}

// LogCounts says where the writes to standard error went, and their lines. Each line is
// in exactly one of Kept, BelowFloor, RateLimited, SDKErrors and Empty as soon as its
// record is complete.
type LogCounts struct {
	Writes      uint64 `json:"writes"` // given to user space
	Unread      uint64 `json:"unread"` // of those, without their text
	Lines       uint64 `json:"lines"`
	Kept        uint64 `json:"kept"`
	BelowFloor  uint64 `json:"below_floor"`
	RateLimited uint64 `json:"rate_limited"`
	SDKErrors   uint64 `json:"sdk_errors"` // of an OpenTelemetry exporter inside the process
	Empty       uint64 `json:"empty"`
}

// StateStatus says what is known across agents of this node.
type StateStatus struct {
	Kept   bool   `json:"kept"`             // maps are pinned: a crash loses no count
	Reason string `json:"reason,omitempty"` // why not
	Dir    string `json:"dir,omitempty"`
	// Since is when the accounts begin, with the first agent after one that ended in
	// good order.
	Since time.Time `json:"since,omitzero"`
	// Crash and LogsCrash are what this agent found to be lost when it took over: the
	// last part of the losses of these names.
	Crash     uint64 `json:"crash,omitempty"`
	LogsCrash uint64 `json:"logs_crash,omitempty"`
	Inherited bool   `json:"inherited"` // this agent goes on with what a killed one has left
	// Unattended is how long there was no agent before this one, and in all since the
	// accounts began, in seconds. What targets did in that time was not seen.
	Unattended    float64 `json:"unattended_seconds"`
	UnattendedAll float64 `json:"unattended_seconds_all"`
}

// SpanCounts says where the spans of the kernel side went. Ended = Emitted +
// SampledOut + losses of the kernel side.
type SpanCounts struct {
	Emitted    uint64 `json:"emitted"`     // given to user space
	SampledOut uint64 `json:"sampled_out"` // counted, not sent
	Decoded    uint64 `json:"decoded"`     // made into spans
}

// BinaryStatus is one executable that was analysed.
type BinaryStatus struct {
	Path      string        `json:"path"`
	GoVersion string        `json:"go_version,omitempty"`
	State     string        `json:"state"` // attached, refused, waiting
	Reason    string        `json:"reason,omitempty"`
	Groups    []GroupStatus `json:"groups,omitempty"`
	// Backoff says what is given up for its cost; nil: nothing.
	Backoff *BackoffStatus `json:"backoff,omitempty"`
}

// BackoffStatus is what is given up for a binary because the probes cost its processes
// more than they may.
type BackoffStatus struct {
	Level  string `json:"level"` // spans, sql (and spans), all
	Reason string `json:"reason"`
}

// States of a GroupStatus.
const (
	groupAttached  = "attached"
	groupUncovered = "uncovered"
)

// GroupStatus is one kind of operation of one library in one binary.
type GroupStatus struct {
	Library string       `json:"library"`
	Group   string       `json:"group,omitempty"`
	State   string       `json:"state"` // attached, uncovered
	Reason  string       `json:"reason,omitempty"`
	Hooks   []HookStatus `json:"hooks,omitempty"`
}

// HookStatus is one probe site, or the reason why there is none.
type HookStatus struct {
	Program     string `json:"program"`
	Function    string `json:"function,omitempty"`
	Address     string `json:"address,omitempty"`
	Instruction string `json:"instruction,omitempty"`
	Emulated    bool   `json:"emulated"`
	Rule        string `json:"rule,omitempty"`
	// While says when the hook is attached; "": always.
	While  string `json:"while,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// TargetStatus is one process, or one path that was asked for.
type TargetStatus struct {
	PID     int    `json:"pid,omitempty"`
	Exe     string `json:"exe"`
	Service string `json:"service,omitempty"`
	State   string `json:"state"` // attached, refused, waiting, gone
	Reason  string `json:"reason,omitempty"`
	// Spans and losses of this process, as in [Status].
	Spans  SpanCounts        `json:"spans,omitzero"`
	Losses map[string]uint64 `json:"losses,omitempty"`
}
