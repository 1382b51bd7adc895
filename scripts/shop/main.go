// Command shop is a small web shop over SQLite: the service that the demo, the
// benchmark and the end-to-end tests watch. It is a plain net/http and
// database/sql program and imports nothing for tracing.
//
// It has a module of its own, so that its dependencies stay out of the agent's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
	"time"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8080", "address to serve on; port 0 picks a free one")
	dsn := flag.String("db", "file:/shop?vfs=memdb", "SQLite data source; the default lives in memory")
	logging := flag.Bool("log", false, "log every request to stderr")
	profile := flag.String("cpuprofile", "", "write a CPU profile to this file (for a PGO build)")
	flag.Parse()

	if err := run(*listen, *dsn, *profile, *logging); err != nil {
		fmt.Fprintln(os.Stderr, "shop:", err)
		os.Exit(1)
	}
}

// run serves until SIGINT or SIGTERM. It prints the address that it serves on
// as the first line of stdout.
func run(listen, dsn, profile string, logging bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()

	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return fmt.Errorf("create profile: %w", err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("start profile: %w", err)
		}
		defer pprof.StopCPUProfile()
	}

	st, err := openStore(ctx, dsn)
	if err != nil {
		return fmt.Errorf("open store: %w", err)
	}
	defer st.close()

	n, err := startNeighbour()
	if err != nil {
		return err
	}
	var handler http.Handler = newHandler(st, n)
	if logging {
		handler = logRequests(slog.New(slog.NewJSONHandler(os.Stderr, nil)), handler)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second}

	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	fmt.Printf("shop listens on http://%s\n", ln.Addr())

	go func() {
		<-ctx.Done()
		bye, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		_ = srv.Shutdown(bye)
	}()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// logRequests writes one line for each request, from the request's goroutine.
func logRequests(logger *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		logger.InfoContext(r.Context(), "request", "method", r.Method, "path", r.URL.Path)
		next.ServeHTTP(w, r)
	})
}
