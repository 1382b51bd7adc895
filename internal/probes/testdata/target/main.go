// Command target is a service for tests of the probes: net/http and database/sql with a
// driver that answers at once. It prints its address, and ends with its input.
package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
)

func main() {
	db := sql.OpenDB(connector{})
	release := make(chan struct{})
	mux := http.NewServeMux()
	mux.HandleFunc("/plain", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/query", func(w http.ResponseWriter, r *http.Request) {
		if _, err := db.ExecContext(r.Context(), "UPDATE t SET a = 1"); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	mux.HandleFunc("/other", func(_ http.ResponseWriter, r *http.Request) { other(r.Context(), db) })
	mux.HandleFunc("/hold", func(http.ResponseWriter, *http.Request) { <-release })
	mux.HandleFunc("/release", func(http.ResponseWriter, *http.Request) { close(release) })

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(ln.Addr())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Fprintln(os.Stderr, http.Serve(ln, mux))
}

// other uses what else of database/sql the agent wants to find in a binary.
func other(ctx context.Context, db *sql.DB) {
	if stmt, err := db.PrepareContext(ctx, "SELECT 1"); err == nil {
		_, _ = stmt.ExecContext(ctx)
	}
	if tx, err := db.BeginTx(ctx, nil); err == nil {
		_, _ = tx.ExecContext(ctx, "SELECT 1")
		_ = tx.Rollback()
	}
}

type connector struct{}

func (connector) Connect(context.Context) (driver.Conn, error) { return conn{}, nil }
func (connector) Driver() driver.Driver                        { return nil }

type conn struct{}

func (conn) Prepare(string) (driver.Stmt, error) { return nil, driver.ErrSkip }
func (conn) Close() error                        { return nil }
func (conn) Begin() (driver.Tx, error)           { return nil, driver.ErrSkip }

func (conn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.RowsAffected(1), nil
}
