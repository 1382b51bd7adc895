package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	_ "modernc.org/sqlite"
)

// items is the number of items on sale; their ids are 1 to items.
const items = 100

// openOrders bounds the orders table: order ids are used again after so many,
// so that a long load run does not grow the database.
const openOrders = 10_000

// store is the shop's database. busy is a second, small pool for the failures
// that need one: it has a single connection.
type store struct {
	db, busy *sql.DB
	item     *sql.Stmt
	orders   atomic.Int64
}

func openStore(ctx context.Context, dsn string) (_ *store, err error) {
	s := &store{}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	// An immediate transaction takes the write lock at once, so that two of
	// them wait for each other instead of failing halfway.
	if !strings.Contains(dsn, "?") {
		dsn += "?"
	}
	dsn += "&_pragma=busy_timeout(5000)&_txlock=immediate"
	if s.db, err = sql.Open("sqlite", dsn); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	s.db.SetMaxOpenConns(8)
	s.db.SetMaxIdleConns(8)
	if s.busy, err = sql.Open("sqlite", dsn); err != nil {
		return nil, fmt.Errorf("open second pool: %w", err)
	}
	s.busy.SetMaxOpenConns(1)
	if err = s.fill(ctx); err != nil {
		return nil, fmt.Errorf("fill database: %w", err)
	}
	if s.item, err = s.db.PrepareContext(ctx, "SELECT name, price FROM items WHERE id = ?"); err != nil {
		return nil, fmt.Errorf("prepare: %w", err)
	}
	return s, nil
}

func (s *store) fill(ctx context.Context) error {
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	for _, text := range []string{
		"CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT NOT NULL, price INTEGER NOT NULL, stock INTEGER NOT NULL)",
		"CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY, customer TEXT NOT NULL, total INTEGER NOT NULL)",
		"CREATE TABLE IF NOT EXISTS order_lines (order_id INTEGER NOT NULL, item_id INTEGER NOT NULL, amount INTEGER NOT NULL, PRIMARY KEY (order_id, item_id))",
	} {
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return err
		}
	}
	for id := 1; id <= items; id++ {
		if _, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO items (id, name, price, stock) VALUES (?, ?, ?, ?)",
			id, "item "+strconv.Itoa(id), 100+id, 1_000_000_000); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func (s *store) close() {
	if s.item != nil {
		s.item.Close()
	}
	if s.busy != nil {
		s.busy.Close()
	}
	if s.db != nil {
		s.db.Close()
	}
}

// scanItem reads one row of name and price.
func scanItem(row *sql.Row) (string, error) {
	var name string
	var price int
	if err := row.Scan(&name, &price); err != nil {
		return "", err
	}
	return name + " costs " + strconv.Itoa(price) + "\n", nil
}

// order books one order: a query and four execs inside one transaction.
func (s *store) order(ctx context.Context, customer string, item int) (int64, error) {
	id := s.orders.Add(1) % openOrders
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback()
	var price int
	if err := tx.QueryRowContext(ctx, "SELECT price FROM items WHERE id = ?", item).Scan(&price); err != nil {
		return 0, fmt.Errorf("price: %w", err)
	}
	if _, err := tx.ExecContext(ctx, "DELETE FROM order_lines WHERE order_id = ?", id); err != nil {
		return 0, fmt.Errorf("clear lines: %w", err)
	}
	if _, err := tx.ExecContext(ctx, "INSERT OR REPLACE INTO orders (id, customer, total) VALUES (?, ?, ?)", id, customer, 2*price); err != nil {
		return 0, fmt.Errorf("insert order: %w", err)
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO order_lines (order_id, item_id, amount) VALUES (?, ?, ?)", id, item, 2); err != nil {
		return 0, fmt.Errorf("insert line: %w", err)
	}
	if _, err := tx.ExecContext(ctx, "UPDATE items SET stock = stock - ? WHERE id = ?", 2, item); err != nil {
		return 0, fmt.Errorf("take from stock: %w", err)
	}
	return id, tx.Commit()
}

// fail makes one database call that fails in the way that kind names. It
// returns the call's error, or errNoFailure.
func (s *store) fail(ctx context.Context, kind string) error {
	const one = "SELECT 1"
	switch kind {
	case "closedstmt":
		return s.failClosedStmt(ctx)
	case "txdone":
		tx, err := s.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err := tx.Commit(); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM orders")
		return orNone(err)
	case "conndone":
		conn, err := s.db.Conn(ctx)
		if err != nil {
			return err
		}
		conn.Close()
		_, err = conn.QueryContext(ctx, one)
		return orNone(err)
	case "pooltimeout":
		return s.failPoolTimeout(ctx)
	case "dbdown", "dbclosed":
		db, err := sql.Open("sqlite", "file:/no/such/folder/shop.db?mode=ro")
		if err != nil {
			return err
		}
		defer db.Close()
		if kind == "dbclosed" {
			db.Close()
		}
		_, err = db.QueryContext(ctx, one)
		return orNone(err)
	case "canceled":
		gone, cancel := context.WithCancel(ctx)
		cancel()
		_, err := s.db.QueryContext(gone, one)
		return orNone(err)
	case "constraint":
		_, err := s.db.ExecContext(ctx, "INSERT INTO items (id, name, price, stock) VALUES (?, ?, ?, ?)", 1, "twice", 1, 1)
		return orNone(err)
	}
	return errNoFailure
}

func (s *store) failClosedStmt(ctx context.Context) error {
	stmt, err := s.db.PrepareContext(ctx, "SELECT name FROM items WHERE id = ?")
	if err != nil {
		return err
	}
	stmt.Close()
	_, err = stmt.QueryContext(ctx, 1)
	return orNone(err)
}

// failPoolTimeout holds the only connection of the small pool and asks for
// another one.
func (s *store) failPoolTimeout(ctx context.Context) error {
	held, err := s.busy.Conn(ctx)
	if err != nil {
		return err
	}
	defer held.Close()
	short, cancel := context.WithTimeout(ctx, 20*time.Millisecond)
	defer cancel()
	_, err = s.busy.QueryContext(short, "SELECT name FROM items WHERE id = ?", 1)
	return orNone(err)
}

var errNoFailure = errors.New("did not fail")

func orNone(err error) error {
	if err == nil {
		return errNoFailure
	}
	return err
}
