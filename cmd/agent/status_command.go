package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/export"
	"github.com/plainframework/agent/internal/probes"
)

// maxStatus bounds what is read of a status page.
const maxStatus = 64 << 20

func newStatusCommand() *cobra.Command {
	var file, address string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Tell what the running agent does, and where every span went",
		Long: `Tell what the running agent does, and where every span went: one line for each
process that is instrumented, one for each signal that is exported. It asks the
agent's status server, on this machine.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags := map[string]any{}
			if cmd.Flags().Changed("status") {
				flags["agent.status"] = address
			}
			address, err := config.StatusAddress(config.Sources{File: file, Flags: flags})
			if err != nil {
				return err
			}
			return printStatus(cmd.Context(), cmd.OutOrStdout(), address, asJSON)
		},
	}
	cmd.Flags().StringVar(&address, "status", "", "address of the agent's status server")
	cmd.Flags().StringVar(&file, "config", "", "YAML file with the agent's settings")
	cmd.Flags().BoolVar(&asJSON, "json", false, "the whole page, as JSON")
	return cmd
}

// page is what is read of /status.
type page struct {
	report
	Probes *probes.Status `json:"probes"`
}

func printStatus(ctx context.Context, w io.Writer, address string, asJSON bool) error {
	if address == "" {
		return errors.New("the agent has no status server: agent.status is empty")
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/status", nil)
	if err != nil {
		return fmt.Errorf("ask the agent: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask the agent: %w; is it running, and is --status its address?", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxStatus))
	if err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	if asJSON {
		_, err := w.Write(body)
		return err
	}
	var p page
	if err := json.Unmarshal(body, &p); err != nil || resp.StatusCode != http.StatusOK || p.State == "" {
		return fmt.Errorf("what answers at %s is no agent of this version (%s)", address, resp.Status)
	}
	var b strings.Builder
	p.print(&b, time.Now())
	_, err = io.WriteString(w, b.String())
	return err
}

func (p *page) print(b *strings.Builder, now time.Time) {
	fmt.Fprintf(b, "agent %s, process %d: %s for %v", clean(p.Agent.String()), p.PID, p.State, now.Sub(p.Started).Round(time.Second))
	if p.Reason != "" {
		fmt.Fprintf(b, ": %s", clean(p.Reason))
	}
	fmt.Fprintf(b, "\n%s of memory, %v of CPU time\n", size(p.Process.MemoryBytes), p.Process.CPU.Round(10*time.Millisecond))
	if p.Probes != nil {
		p.printState(b)
		p.printTargets(b)
	}
	if p.Export != nil {
		printSignals(b, p.Export, now)
	}
}

func (p *page) printState(b *strings.Builder) {
	s := p.Probes.State
	if !s.Kept {
		fmt.Fprintf(b, "counts would not survive a crash of the agent: %s\n", clean(s.Reason))
		return
	}
	fmt.Fprintf(b, "counts since %s", s.Since.Format(time.DateTime))
	if s.UnattendedAll > 0 {
		fmt.Fprintf(b, ", %.1f s of that without an agent", s.UnattendedAll)
	}
	b.WriteByte('\n')
}

// printTargets is a line for each process, and one for all, those that are gone included.
func (p *page) printTargets(b *strings.Builder) {
	b.WriteByte('\n')
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "TARGET\tPID\tSTATE\tSPANS\tSAMPLED OUT\tLOST\tEXECUTABLE")
	for _, s := range p.Probes.Targets {
		name, pid, state := clean(s.Service), fmt.Sprint(s.PID), s.State
		if s.PID == 0 {
			name, pid = "-", "-"
		}
		if s.Reason != "" {
			state += ": " + clean(s.Reason)
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", name, pid, state, s.Spans.Emitted, s.Spans.SampledOut, losses(s.Losses), clean(s.Exe))
	}
	all := p.Probes
	fmt.Fprintf(t, "all, and those before\t\t\t%d\t%d\t%s\t\n", all.Spans.Emitted, all.Spans.SampledOut, losses(all.Losses))
	t.Flush()
	for _, bin := range all.Binaries {
		if bin.State != "attached" {
			fmt.Fprintf(b, "%s: %s: %s\n", clean(bin.Path), bin.State, clean(bin.Reason))
		}
		for _, g := range bin.Groups {
			if g.State != "attached" {
				fmt.Fprintf(b, "%s: %s %s is %s %s\n", clean(bin.Path), g.Library, g.Group, g.State, clean(g.Reason))
			}
		}
		if bin.Backoff != nil {
			fmt.Fprintf(b, "%s: given up (%s): %s\n", clean(bin.Path), bin.Backoff.Level, clean(bin.Backoff.Reason))
		}
	}
}

func printSignals(b *strings.Builder, e *export.Stats, now time.Time) {
	b.WriteByte('\n')
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SIGNAL\tRECEIVED\tEXPORTED\tIN MEMORY\tON DISK\tLOST\tMAYBE TWICE\tENDPOINT")
	for _, name := range slices.Sorted(maps.Keys(e.Signals)) {
		s, end := e.Signals[name], e.Endpoints[name]
		state := "no answer yet"
		if !end.LastSuccess.IsZero() {
			state = fmt.Sprintf("took data %v ago", now.Sub(end.LastSuccess).Round(time.Second))
		}
		if end.LastError != "" {
			state += "; " + end.LastError
		}
		lost := map[string]uint64{}
		for reason, n := range s.Lost {
			lost[reason] = uint64(n)
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%d\t%s\t%d\t%s: %s\n", name, s.Received, s.Exported, s.Queued, s.Spooled, losses(lost), s.MaybeTwice, clean(end.URL), clean(state))
	}
	t.Flush()
	fmt.Fprintf(b, "\nspool %s: %s of %s", e.Spool.State, size(e.Spool.Bytes), size(e.Spool.Limit))
	if e.Spool.OldestAge > 0 {
		fmt.Fprintf(b, ", the oldest %v old", time.Duration(e.Spool.OldestAge*float64(time.Second)).Round(time.Second))
	}
	if e.Spool.Reason != "" {
		fmt.Fprintf(b, " (%s)", clean(e.Spool.Reason))
	}
	b.WriteByte('\n')
}

// losses is "-", or numbers with their reasons.
func losses(by map[string]uint64) string {
	var parts []string
	for _, reason := range slices.Sorted(maps.Keys(by)) {
		if by[reason] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", by[reason], clean(reason)))
		}
	}
	if len(parts) == 0 {
		return "-"
	}
	return strings.Join(parts, ", ")
}

// size is a number of bytes for a person.
func size(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
