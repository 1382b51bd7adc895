package export

import "time"

// signal is one of the three kinds of telemetry.
type signal int

const (
	signalSpans signal = iota
	signalMetrics
	signalLogs
	signalCount
)

// String is the signal's name in URLs and in /status.
func (s signal) String() string { return [...]string{"traces", "metrics", "logs"}[s] }

// items names what the signal is counted in.
func (s signal) items() string { return [...]string{"spans", "data points", "log records"}[s] }

// reason is why an item was lost.
type reason int

const (
	lostQueueFull    reason = iota // no room: the endpoint is slower than the telemetry
	lostTooLarge                   // one item alone is larger than what can be sent
	lostRejected                   // the endpoint does not want it
	lostUnauthorized               // the endpoint does not know the token
	lostSendFailed                 // the endpoint could not be reached for too long
	lostEncode                     // an exporter could not make a request of it
	lostShutdown                   // the agent ended first
	lostSpoolFull                  // the oldest in the spool made room for newer
	lostSpoolDamaged               // the spool could not read it back
	lostCrash                      // in memory when an agent was killed; some may have arrived
	reasonCount
)

// String is the reason's name in /status and in metrics.
func (r reason) String() string {
	return [...]string{"queue_full", "too_large", "rejected", "unauthorized", "send_failed", "encode", "shutdown", "spool_full", "spool_damaged", "crash"}[r]
}

// losses counts items by reason.
type losses [reasonCount]int64

// lose is the loss of all items for one reason.
func lose(r reason, items int) (l losses) {
	l[r] = int64(items)
	return l
}

func (l *losses) total() (n int64) {
	for _, v := range l {
		n += v
	}
	return n
}

// SignalStats is where every item of a signal went:
// Received = Exported + Queued + Spooled + the sum of Lost. With [WithBook] it begins
// where an agent that was killed has ended.
type SignalStats struct {
	Received    int64            `json:"received"`
	Exported    int64            `json:"exported"`
	Queued      int64            `json:"queued"`       // waiting in memory or on their way
	QueuedBytes int64            `json:"queued_bytes"` // memory that they take
	Spooled     int64            `json:"spooled"`      // waiting on disk
	Restored    int64            `json:"restored"`     // of Received: found in the spool, from earlier runs
	MaybeTwice  int64            `json:"maybe_twice"`  // sent once more, when an attempt before may have arrived; each time counts
	Crashed     int64            `json:"crashed"`      // of Lost: in the memory of the agent before, which was killed
	Lost        map[string]int64 `json:"lost"`         // by reason; only reasons that occurred
}

// LostTotal is the sum of Lost.
func (s SignalStats) LostTotal() (n int64) {
	for _, v := range s.Lost {
		n += v
	}
	return n
}

// EndpointStats is how a signal's endpoint does.
type EndpointStats struct {
	URL         string    `json:"url"`
	Requests    int64     `json:"requests"`     // attempts that were made
	Failures    int64     `json:"failures"`     // of these, not answered with 2xx
	BytesSent   int64     `json:"bytes_sent"`   // compressed bodies that were taken
	LastSuccess time.Time `json:"last_success"` // zero if none yet
	LastError   string    `json:"last_error,omitempty"`
}

// Stats is a snapshot of the pipeline.
type Stats struct {
	Signals   map[string]SignalStats   `json:"signals"`
	Endpoints map[string]EndpointStats `json:"endpoints"`
	Spool     SpoolStats               `json:"spool"`
}

// Stats returns a snapshot. Each signal's numbers are of one moment.
func (p *Pipeline) Stats() Stats {
	s := Stats{
		Signals:   make(map[string]SignalStats, signalCount),
		Endpoints: make(map[string]EndpointStats, signalCount),
		Spool:     p.store.stats(p.cfg, p.spoolOff),
	}
	for _, l := range p.lanes {
		signal := l.stats()
		signal.MaybeTwice += p.deliver.ends[l.signal].again.Load()
		s.Signals[l.signal.String()] = signal
		s.Endpoints[l.signal.String()] = p.deliver.stats(l.signal)
	}
	return s
}
