package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strconv"
	"strings"
	"time"
)

// shop holds the handlers. Beside each route stands the number of database
// calls that one request makes.
type shop struct {
	*store
	late *leftover
}

// leftover is what a request has started and not waited for.
type leftover struct{ goOn, done chan struct{} }

func newHandler(st *store, n *neighbour) http.Handler {
	s := shop{st, &leftover{make(chan struct{}), make(chan struct{})}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /plain", s.plain)                // 0
	mux.HandleFunc("GET /items", s.list)                 // 1
	mux.HandleFunc("GET /items/{id}", s.getItem)         // 1
	mux.HandleFunc("GET /mw/{id}", s.getItem)            // 1, behind copyRequest
	mux.HandleFunc("GET /stmt/{id}", s.preparedItem)     // 1
	mux.HandleFunc("GET /literal/{id}", s.literalItem)   // 1
	mux.HandleFunc("GET /conn/{id}", s.connItem)         // 2
	mux.HandleFunc("GET /report", s.report)              // 5
	mux.HandleFunc("GET /late", s.leave)                 // 1, during the next request
	mux.HandleFunc("GET /follow", s.follow)              // 1
	mux.HandleFunc("POST /orders", s.postOrder)          // 5
	mux.HandleFunc("GET /sqlerror", s.sqlError)          // 1
	mux.HandleFunc("GET /sqlfail/{kind}", s.sqlFail)     // 1
	mux.HandleFunc("GET /error", s.serverError)          // 0
	mux.HandleFunc("GET /panic", s.panics)               // 1
	mux.HandleFunc("GET /abort", s.abort)                // 1
	mux.HandleFunc("GET /goexit", s.goexit)              // 1
	mux.HandleFunc("GET /hijack", s.hijack)              // 1
	mux.HandleFunc("GET /stream", s.stream)              // 1
	mux.HandleFunc("GET /nowrite", s.nowrite)            // 0
	mux.HandleFunc("GET /slow", s.slow)                  // 0
	mux.HandleFunc("GET /client", n.call)                // 0, and a call
	mux.Handle("/timeout/", withTimeout(s.maybeTooSlow)) // 1

	return copyRequest("/mw/", mux)
}

type tenantKey struct{}

// copyRequest is a middleware as many are: it hands a copy of the request on,
// so the server's own request never learns which pattern matched.
func copyRequest(prefix string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, prefix) {
			r = r.WithContext(context.WithValue(r.Context(), tenantKey{}, "main"))
		}
		next.ServeHTTP(w, r)
	})
}

// withTimeout serves h on another goroutine and with another context, through
// a second mux.
func withTimeout(h http.HandlerFunc) http.Handler {
	inner := http.NewServeMux()
	inner.HandleFunc("GET /timeout/{ms}", h)
	return http.TimeoutHandler(inner, 200*time.Millisecond, "too slow\n")
}

// reply writes the text, or 404 or 500 for an error.
func reply(w http.ResponseWriter, text string, err error) {
	switch {
	case errors.Is(err, sql.ErrNoRows):
		http.Error(w, "no such item", http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		_, _ = io.WriteString(w, text)
	}
}

func (s shop) plain(w http.ResponseWriter, _ *http.Request) {
	reply(w, "hello\n", nil)
}

func (s shop) list(w http.ResponseWriter, r *http.Request) {
	rows, err := s.db.QueryContext(r.Context(), "SELECT id, name FROM items ORDER BY name LIMIT ?", 20)
	if err != nil {
		reply(w, "", err)
		return
	}
	defer rows.Close()
	var b strings.Builder
	for rows.Next() {
		var id int
		var name string
		if err := rows.Scan(&id, &name); err != nil {
			reply(w, "", err)
			return
		}
		fmt.Fprintf(&b, "%d %s\n", id, name)
	}
	reply(w, b.String(), rows.Err())
}

func (s shop) getItem(w http.ResponseWriter, r *http.Request) {
	text, err := scanItem(s.db.QueryRowContext(r.Context(), "SELECT name, price FROM items WHERE id = ?", r.PathValue("id")))
	reply(w, text, err)
}

func (s shop) preparedItem(w http.ResponseWriter, r *http.Request) {
	text, err := scanItem(s.item.QueryRowContext(r.Context(), r.PathValue("id")))
	reply(w, text, err)
}

// literalItem writes the id into the query's text, as one should not.
func (s shop) literalItem(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.PathValue("id"))
	if err != nil {
		http.Error(w, "not a number", http.StatusBadRequest)
		return
	}
	text, err := scanItem(s.db.QueryRowContext(r.Context(),
		fmt.Sprintf("SELECT name, price FROM items WHERE id = %d AND name <> 'secret word'", id)))
	reply(w, text, err)
}

// connItem uses a connection of its own for one query and one exec.
func (s shop) connItem(w http.ResponseWriter, r *http.Request) {
	conn, err := s.db.Conn(r.Context())
	if err != nil {
		reply(w, "", err)
		return
	}
	defer conn.Close()
	text, err := scanItem(conn.QueryRowContext(r.Context(), "SELECT name, price FROM items WHERE id = ?", r.PathValue("id")))
	if err != nil {
		reply(w, "", err)
		return
	}
	_, err = conn.ExecContext(r.Context(), "UPDATE items SET stock = stock WHERE id = ?", r.PathValue("id"))
	reply(w, text, err)
}

// report asks five questions: three with the request's context, one without
// any, and one on another goroutine.
func (s shop) report(w http.ResponseWriter, r *http.Request) {
	ctx := r.Context()
	stock := make(chan error, 1)
	var n [5]int
	go func() {
		stock <- s.db.QueryRowContext(ctx, "SELECT min(stock) FROM items").Scan(&n[0])
	}()
	err := errors.Join(
		s.db.QueryRowContext(ctx, "SELECT count(*) FROM items").Scan(&n[1]),
		s.db.QueryRowContext(ctx, "SELECT count(*) FROM orders").Scan(&n[2]),
		s.db.QueryRow("SELECT max(price) FROM items").Scan(&n[3]),
		s.db.QueryRowContext(ctx, "SELECT count(*) FROM order_lines").Scan(&n[4]),
		<-stock,
	)
	reply(w, fmt.Sprintln(n[1:]), err)
}

// leave answers at once, and has a goroutine ask something with the context of its
// request while follow answers the next one.
func (s shop) leave(w http.ResponseWriter, r *http.Request) {
	ctx := context.WithoutCancel(r.Context())
	go func() {
		<-s.late.goOn
		var n int
		_ = s.db.QueryRowContext(ctx, "SELECT min(price) FROM items").Scan(&n)
		s.late.done <- struct{}{}
	}()
	reply(w, "later\n", nil)
}

// follow waits until what leave has left is done, and asks on a goroutine of its own.
func (s shop) follow(w http.ResponseWriter, r *http.Request) {
	s.late.goOn <- struct{}{}
	<-s.late.done
	answer := make(chan error)
	var n int
	go func() {
		answer <- s.db.QueryRowContext(r.Context(), "SELECT max(stock) FROM items").Scan(&n)
	}()
	err := <-answer
	reply(w, fmt.Sprintln(n), err)
}

func (s shop) postOrder(w http.ResponseWriter, r *http.Request) {
	id, err := s.order(r.Context(), "alice", 1+int(s.orders.Load()%items))
	if err != nil {
		reply(w, "", err)
		return
	}
	w.WriteHeader(http.StatusCreated)
	reply(w, "order "+strconv.FormatInt(id, 10)+"\n", nil)
}

func (s shop) sqlError(w http.ResponseWriter, r *http.Request) {
	_, err := s.db.QueryContext(r.Context(), "SELECT name FROM no_such_table WHERE id = ?", 1)
	reply(w, "", orNone(err))
}

func (s shop) sqlFail(w http.ResponseWriter, r *http.Request) {
	err := s.fail(r.Context(), r.PathValue("kind"))
	if errors.Is(err, errNoFailure) {
		http.NotFound(w, r)
		return
	}
	http.Error(w, err.Error(), http.StatusServiceUnavailable)
}

func (s shop) serverError(w http.ResponseWriter, _ *http.Request) {
	http.Error(w, "broken", http.StatusInternalServerError)
}

// touch makes one query, so that the request has a child before it ends badly.
func (s shop) touch(ctx context.Context) {
	var n int
	_ = s.db.QueryRowContext(ctx, "SELECT count(*) FROM items").Scan(&n)
}

func (s shop) panics(_ http.ResponseWriter, r *http.Request) {
	s.touch(r.Context())
	panic("the shop burns")
}

func (s shop) abort(_ http.ResponseWriter, r *http.Request) {
	s.touch(r.Context())
	panic(http.ErrAbortHandler)
}

func (s shop) goexit(_ http.ResponseWriter, r *http.Request) {
	s.touch(r.Context())
	runtime.Goexit()
}

// hijack takes the connection over and answers by hand.
func (s shop) hijack(w http.ResponseWriter, r *http.Request) {
	s.touch(r.Context())
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		reply(w, "", err)
		return
	}
	defer conn.Close()
	_, _ = buf.WriteString("HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhijacked\n")
	_ = buf.Flush()
}

// stream sends four pieces, 10 ms apart.
func (s shop) stream(w http.ResponseWriter, r *http.Request) {
	s.touch(r.Context())
	rc := http.NewResponseController(w)
	for i := range 4 {
		if i > 0 {
			time.Sleep(10 * time.Millisecond)
		}
		fmt.Fprintf(w, "piece %d\n", i)
		_ = rc.Flush()
	}
}

func (s shop) nowrite(http.ResponseWriter, *http.Request) {}

func (s shop) slow(w http.ResponseWriter, r *http.Request) {
	pause(r.URL.Query().Get("ms"))
	reply(w, "done\n", nil)
}

// maybeTooSlow is over its time from 200 ms on.
func (s shop) maybeTooSlow(w http.ResponseWriter, r *http.Request) {
	s.touch(r.Context())
	pause(r.PathValue("ms"))
	reply(w, "in time\n", nil)
}

// pause sleeps for up to 10 s.
func pause(ms string) {
	n, _ := strconv.Atoi(ms)
	time.Sleep(time.Duration(min(max(n, 0), 10_000)) * time.Millisecond)
}
