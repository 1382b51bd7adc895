// Command app is what the tests of package gobin read: a program that uses
// the parts of the standard library that the probes hook. It compiles with
// Go 1.18 and is never run.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"
)

var db *sql.DB

func main() {
	sql.Register("tiny", driverImpl{})
	var err error
	if db, err = sql.Open("tiny", ""); err != nil {
		panic(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/x", handle)
	if len(os.Args) > 1 {
		resp, err := http.Get(os.Args[1])
		if err == nil {
			resp.Body.Close()
		}
		return
	}
	srv := &http.Server{Addr: "127.0.0.1:0", Handler: mux, ReadHeaderTimeout: time.Second}
	fmt.Println(srv.ListenAndServe())
}

func handle(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	ctx = contexts(context.WithValue(ctx, key{}, "v"), r)
	if err := pool(ctx); err != nil && !errors.Is(err, sql.ErrNoRows) {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_ = transaction(ctx)
	_ = connection(ctx)
	_ = statement(ctx)
	fmt.Fprintln(w, "ok", localA(), localB(), generic(1), generic(2.5))
}

func pool(ctx context.Context) error {
	rows, err := db.QueryContext(ctx, "select 1")
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var a int
		if err := rows.Scan(&a); err != nil {
			return err
		}
	}
	_, err = db.ExecContext(ctx, "insert")
	return err
}

func transaction(ctx context.Context) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "x"); err != nil {
		return tx.Rollback()
	}
	if rows, err := tx.QueryContext(ctx, "x"); err == nil {
		rows.Close()
	}
	return tx.Commit()
}

func connection(ctx context.Context) error {
	c, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if rows, err := c.QueryContext(ctx, "x"); err == nil {
		rows.Close()
	}
	_, err = c.ExecContext(ctx, "x")
	return err
}

func statement(ctx context.Context) error {
	st, err := db.PrepareContext(ctx, "y")
	if err != nil {
		return err
	}
	defer st.Close()
	if rows, err := st.QueryContext(ctx); err == nil {
		rows.Close()
	}
	_, err = st.ExecContext(ctx)
	return err
}
