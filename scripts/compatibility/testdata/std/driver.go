package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"strings"
)

// A database driver that answers everything at once: one row for a query, an error for
// a table that is "broken".
type (
	memory     struct{}
	memoryConn struct{}
	memoryStmt struct{ query string }
	memoryTx   struct{}
	memoryRows struct{ read bool }
)

func (memory) Open(string) (driver.Conn, error) { return &memoryConn{}, nil }

func (*memoryConn) Prepare(query string) (driver.Stmt, error) { return &memoryStmt{query}, nil }
func (*memoryConn) Close() error                              { return nil }
func (*memoryConn) Begin() (driver.Tx, error)                 { return memoryTx{}, nil }

func (*memoryConn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	return memoryTx{}, nil
}

func (*memoryConn) QueryContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Rows, error) {
	return answer(query)
}

func (*memoryConn) ExecContext(_ context.Context, query string, _ []driver.NamedValue) (driver.Result, error) {
	_, err := answer(query) // reads the text, as every driver does
	return driver.RowsAffected(1), err
}

func (*memoryStmt) Close() error  { return nil }
func (*memoryStmt) NumInput() int { return -1 }

func (s *memoryStmt) Query([]driver.Value) (driver.Rows, error) { return answer(s.query) }
func (*memoryStmt) Exec([]driver.Value) (driver.Result, error)  { return driver.RowsAffected(1), nil }
func (memoryTx) Commit() error                                  { return nil }
func (memoryTx) Rollback() error                                { return nil }
func (*memoryRows) Columns() []string                           { return []string{"name"} }
func (*memoryRows) Close() error                                { return nil }

func (r *memoryRows) Next(dest []driver.Value) error {
	if r.read {
		return io.EOF
	}
	r.read = true
	dest[0] = "x"
	return nil
}

func answer(query string) (driver.Rows, error) {
	if strings.Contains(query, "broken") {
		return nil, errors.New("no such table")
	}
	return &memoryRows{}, nil
}
