package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

type key struct{}

// Contexts of every shape that a parent is found in.
type (
	embedsIface struct {
		n int
		context.Context
	}
	embedsPointer  struct{ *embedsIface } // an interface holds the pointer itself
	embedsPointer2 struct {
		n int
		*embedsIface
	}
	embedsStruct struct {
		a, b int
		embedsIface
	}
	holdsField struct {
		name   string
		parent context.Context
	}
	holdsRequest struct {
		w http.ResponseWriter
		r *http.Request
	}
	wider interface {
		context.Context
		More() int
	}
	embedsWider struct {
		n int
		wider
	}
	// notOne holds a context but is none.
	notOne struct{ ctx context.Context }
)

func (*holdsField) Deadline() (t time.Time, ok bool)   { return }
func (*holdsField) Done() <-chan struct{}              { return nil }
func (*holdsField) Err() error                         { return nil }
func (h *holdsField) Value(k any) any                  { return h.parent.Value(k) }
func (*holdsRequest) Deadline() (t time.Time, ok bool) { return }
func (*holdsRequest) Done() <-chan struct{}            { return nil }
func (*holdsRequest) Err() error                       { return nil }
func (h *holdsRequest) Value(k any) any                { return h.r.Context().Value(k) }
func (embedsIface) More() int                          { return 1 }

func contexts(ctx context.Context, r *http.Request) context.Context {
	a := &embedsIface{1, ctx}
	for _, c := range []context.Context{
		a, *a, embedsPointer{a}, &embedsPointer2{1, a}, &embedsStruct{embedsIface: *a},
		&holdsField{"x", a}, &holdsRequest{nil, r}, &embedsWider{1, a},
	} {
		ctx = context.WithValue(newer(c), key{}, fmt.Sprint(&notOne{c}))
	}
	return ctx
}

// Two types of one name, which cannot be told apart in the binary.
func localA() any {
	type local struct{ a int }
	return &local{1}
}

func localB() any {
	type local struct{ b string }
	return &local{"1"}
}

type pair[T any] struct {
	first, second T
}

//go:noinline
func generic[T int | float64](v T) T {
	fmt.Fprintln(io.Discard, &pair[T]{v, v})
	return v
}

type (
	driverImpl struct{}
	conn       struct{}
	stmt       struct{}
	rows       struct{ n int }
)

func (driverImpl) Open(string) (driver.Conn, error) { return &conn{}, nil }
func (*conn) Prepare(q string) (driver.Stmt, error) { return &stmt{}, nil }
func (*conn) Close() error                          { return nil }
func (*conn) Begin() (driver.Tx, error)             { return &conn{}, nil }
func (*conn) Commit() error                         { return nil }
func (*conn) Rollback() error                       { return nil }
func (*stmt) Close() error                          { return nil }
func (*stmt) NumInput() int                         { return -1 }
func (*stmt) Exec([]driver.Value) (driver.Result, error) {
	return driver.RowsAffected(1), nil
}
func (*stmt) Query([]driver.Value) (driver.Rows, error) { return &rows{}, nil }
func (*rows) Columns() []string                         { return []string{"a"} }
func (*rows) Close() error                              { return nil }
func (r *rows) Next(dest []driver.Value) error {
	if r.n++; r.n > 1 {
		return io.EOF
	}
	dest[0] = int64(1)
	return nil
}
func (*conn) QueryContext(_ context.Context, q string, _ []driver.NamedValue) (driver.Rows, error) {
	if q == "bad" {
		return nil, errors.New("bad query")
	}
	return &rows{}, nil
}
