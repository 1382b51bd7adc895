package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/plainframework/agent/internal/export"
)

// report is the body of /status.
type report struct {
	Agent   buildVersion `json:"agent"`
	State   string       `json:"state"`            // starting, active, idle, stopping
	Reason  string       `json:"reason,omitempty"` // why it is idle
	Started time.Time    `json:"started"`
	Ready   bool         `json:"ready"`
	PID     int          `json:"pid"`
	// Process is what the agent itself takes.
	Process processStatus `json:"process"`
	// Probes is what is attached to each target, what is not and why, and
	// the losses on the way to here; nil while idle.
	Probes any `json:"probes,omitempty"`
	// Export is where the telemetry went; nil while idle.
	Export *export.Stats `json:"export,omitempty"`
}

// statusServer answers /healthz, /readyz and /status.
type statusServer struct {
	srv    *http.Server
	ln     net.Listener
	failed chan error
}

// listenStatus binds the address, so that a port in use is an error before
// anything is attached. It serves after serve was called. An empty address is
// no server: nil, on which all methods work.
func listenStatus(addr string) (*statusServer, error) {
	if addr == "" {
		return nil, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("status server: %w; choose another address with --status, or none with --status \"\"", err)
	}
	return &statusServer{ln: ln, failed: make(chan error, 1)}, nil
}

// addr is the address that was bound, or "".
func (s *statusServer) addr() string {
	if s == nil {
		return ""
	}
	return s.ln.Addr().String()
}

func (s *statusServer) serve(snapshot func() report, logger *slog.Logger) {
	if s == nil {
		return
	}
	s.srv = &http.Server{
		Handler:           statusHandler(snapshot),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	go func() {
		if err := s.srv.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
			s.failed <- fmt.Errorf("status server: %w", err)
		}
	}()
}

// failure is a channel that gets the error if the server breaks off.
func (s *statusServer) failure() <-chan error {
	if s == nil {
		return nil
	}
	return s.failed
}

func (s *statusServer) shutdown(ctx context.Context) error {
	switch {
	case s == nil:
		return nil
	case s.srv == nil:
		return s.ln.Close()
	}
	return errors.Join(s.srv.Shutdown(ctx), s.srv.Close())
}

func statusHandler(snapshot func() report) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if !snapshot().Ready {
			http.Error(w, "not every target is attached or refused yet", http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		body, err := json.MarshalIndent(snapshot(), "", "  ")
		if err != nil {
			http.Error(w, "encode status: "+err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(append(body, '\n'))
	})
	return mux
}
