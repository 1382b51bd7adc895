package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/plainframework/agent/internal/config"
	"github.com/plainframework/agent/internal/observer"
)

const observeHelp = `Receive OTLP/HTTP and print the traces as trees, each with its log lines.

This is for looking, on one's own machine: nothing is stored and nothing is sent
on. Point an agent at it and use the service that the agent watches:

    agent observe
    sudo PLAIN_CLOUD_EXPORT_TOKEN=local PLAIN_CLOUD_EXPORT_URL=http://127.0.0.1:4318 \
        agent run --exe /usr/local/bin/shop

A trace is printed when nothing of it has arrived for a moment. Colours are used
on a terminal, unless NO_COLOR is set.`

func newObserveCommand() *cobra.Command {
	var listen, colour string
	var perSecond int
	cmd := &cobra.Command{
		Use:   "observe",
		Short: "Print the traces that an agent sends, as trees",
		Long:  observeHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			out := cmd.OutOrStdout()
			coloured, err := useColour(colour, out)
			if err != nil {
				return err
			}
			ln, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("observe: %w", err)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "observe listens on http://%s\n", ln.Addr())
			got, err := observe(ctx, ln, observer.NewPrinter(out, observer.PrinterOptions{Colour: coloured, PerSecond: perSecond}))
			fmt.Fprintf(cmd.ErrOrStderr(), "observe received %d spans, %d log records, %d metric points\n", got.Spans, got.Logs, got.Points)
			return err
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:4318", "address to receive on; port 0 picks a free one")
	cmd.Flags().StringVar(&colour, "color", "auto", "auto, always or never")
	cmd.Flags().IntVar(&perSecond, "limit", 50, "traces printed in a second at most; the rest is counted")
	return cmd
}

// observe serves on ln until ctx ends, prints, and returns what came. It closes
// ln.
func observe(ctx context.Context, ln net.Listener, p *observer.Printer) (observer.Counts, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seen := observer.New(observer.Options{Keep: 1, Sink: p}) // what is shown need not be kept
	srv := &http.Server{
		Handler:           seen.Handler(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Second,
	}
	served := make(chan error, 1)
	go func() {
		served <- srv.Serve(ln)
		cancel()
	}()
	printed := p.Run(ctx)
	bye, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	stopped := srv.Shutdown(bye)
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return seen.Counts(), fmt.Errorf("observe: %w", err)
	}
	return seen.Counts(), errors.Join(printed, p.Flush(), stopped)
}

// useColour decides for "auto": on a terminal, unless the person said no.
func useColour(want string, out io.Writer) (bool, error) {
	switch want {
	case "always":
		return true, nil
	case "never":
		return false, nil
	case "auto":
		f, ok := out.(*os.File)
		if !ok || !config.Colour(nil) {
			return false, nil
		}
		_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
		return err == nil, nil
	}
	return false, fmt.Errorf("--color is %q; it takes auto, always or never", want)
}
