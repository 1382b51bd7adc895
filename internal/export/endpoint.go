package export

import (
	"fmt"
	"net/url"

	"github.com/plainframework/agent/internal/config"
)

// endpointsOf returns the URL of each signal.
func endpointsOf(e config.Export) ([signalCount]string, error) {
	own := [signalCount]string{signalSpans: e.TracesURL, signalMetrics: e.MetricsURL, signalLogs: e.LogsURL}
	var out [signalCount]string
	for s := range signalCount {
		out[s] = own[s]
		if out[s] == "" {
			base, err := url.Parse(e.URL)
			if err != nil {
				return out, fmt.Errorf("export URL: %w", err)
			}
			out[s] = base.JoinPath("v1", s.String()).String()
		}
	}
	return out, nil
}
