// Command std is what the compatibility matrix builds and runs: a server that
// passes every probe of the standard library's packages. It compiles with Go
// 1.18, and needs no module.
package main

import (
	"context"
	"database/sql"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
)

var (
	db       *sql.DB
	prepared *sql.Stmt
	self     string // this server's URL
)

func main() {
	profile := flag.String("cpuprofile", "", "write a CPU profile to this `file`, for a build with -pgo")
	stressed := flag.Bool("stress", false, "make the runtime work hard, for scripts/safety")
	flag.Parse()
	if *stressed {
		stress()
	}
	if err := run(*profile); err != nil {
		fmt.Fprintln(os.Stderr, "std:", err)
		os.Exit(1)
	}
}

// run serves until SIGTERM. The first line of its output is its URL.
func run(profile string) error {
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	sql.Register("memory", memory{})
	var err error
	if db, err = sql.Open("memory", ""); err != nil {
		return err
	}
	if prepared, err = db.Prepare("SELECT name FROM items WHERE id = ?"); err != nil {
		return err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	self = "http://" + ln.Addr().String()
	fmt.Println(self)
	srv := &http.Server{Handler: routes()}
	go func() {
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, syscall.SIGTERM)
		<-stop
		_ = srv.Close()
	}()
	if err := srv.Serve(ln); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/plain", func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, "plain\n") })
	for path, work := range map[string]func(context.Context) error{
		"/db": pool, "/stmt": statement, "/tx": transaction, "/conn": connection,
		"/goroutine": elsewhere, "/fail": fails, "/abort": aborts, "/client": client, "/deep": deep,
	} {
		work := work
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if err := work(r.Context()); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_, _ = io.WriteString(w, "ok\n")
		})
	}
	return mux
}

// drain reads rows to their end.
func drain(rows *sql.Rows, err error) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
	}
	return rows.Err()
}

func pool(ctx context.Context) error {
	if err := drain(db.QueryContext(ctx, "SELECT name FROM items WHERE id = 7")); err != nil {
		return err
	}
	_, err := db.ExecContext(ctx, "UPDATE items SET name = 'x' WHERE id = 7")
	return err
}

func statement(ctx context.Context) error {
	if err := drain(prepared.QueryContext(ctx, 7)); err != nil {
		return err
	}
	_, err := prepared.ExecContext(ctx, 7)
	return err
}

func transaction(ctx context.Context) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO orders VALUES (1)"); err != nil {
		_ = tx.Rollback()
		return err
	}
	if err := drain(tx.QueryContext(ctx, "SELECT id FROM orders")); err != nil {
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
}

func connection(ctx context.Context) error {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := drain(c.QueryContext(ctx, "SELECT id FROM orders")); err != nil {
		return err
	}
	_, err = c.ExecContext(ctx, "DELETE FROM orders")
	return err
}

// elsewhere queries on another goroutine, which only the context leads back from.
func elsewhere(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error)
	go func() { done <- drain(db.QueryContext(ctx, "SELECT id FROM orders")) }()
	return <-done
}

func fails(ctx context.Context) error {
	return drain(db.QueryContext(ctx, "SELECT id FROM broken"))
}

func aborts(ctx context.Context) error {
	_ = drain(db.QueryContext(ctx, "SELECT id FROM orders"))
	panic(http.ErrAbortHandler)
}

// client calls this very server.
func client(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, "GET", self+"/plain", nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return err
}
