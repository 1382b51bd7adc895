// autosdk is a service that makes spans by hand with go.opentelemetry.io/auto/sdk, which
// exports none: they are for whoever looks on.
package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/auto/sdk"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

var (
	tracer = sdk.TracerProvider().Tracer("shop/orders", trace.WithInstrumentationVersion("1.2.3"))
	db     = sql.OpenDB(connector{})
)

func query(ctx context.Context, text string) {
	if _, err := db.ExecContext(ctx, text); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

func main() {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	self := "http://" + ln.Addr().String()
	for path, f := range map[string]func(context.Context){
		"/rich": rich, "/nested": nested, "/elsewhere": elsewhere, "/worker": worker,
		"/large": large, "/nan": nan, "/forgotten": forgotten, "/timed": timed, "/linked": linked,
		"/plain":  func(ctx context.Context) { query(ctx, "DELETE FROM plain") },
		"/client": func(ctx context.Context) { call(ctx, self+"/plain") },
	} {
		http.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) { f(r.Context()) })
	}
	http.HandleFunc("/failed", func(w http.ResponseWriter, r *http.Request) {
		nested(r.Context())
		w.WriteHeader(http.StatusInternalServerError)
	})
	fmt.Printf("autosdk listens on %s\n", self)
	http.Serve(ln, nil)
}

// rich has everything that a span can have.
func rich(ctx context.Context) {
	ctx, span := tracer.Start(ctx, "rich", trace.WithSpanKind(trace.SpanKindProducer), trace.WithAttributes(attribute.Int("items", 3)))
	span.SetAttributes(attribute.String("text", "grüße \xff"), attribute.Bool("gift", true), attribute.Float64("price", 2.5),
		attribute.StringSlice("tags", []string{"a", "b"}), attribute.Int64Slice("sizes", []int64{1, -2}))
	for i := range 100 {
		span.SetAttributes(attribute.Int(fmt.Sprint("n", i), i))
	}
	span.AddEvent("packed", trace.WithAttributes(attribute.String("by", "eva")))
	span.RecordError(errors.New("out of paper"))
	span.SetStatus(codes.Error, "not printed")
	span.SetName("rich, renamed")
	query(ctx, "DELETE FROM rich")
	span.End()
}

// nested has a span within a span, a query in each, and one beside both.
func nested(ctx context.Context) {
	outer, first := tracer.Start(ctx, "outer")
	inner, second := tracer.Start(outer, "inner")
	query(inner, "DELETE FROM inner")
	second.End()
	query(outer, "DELETE FROM outer")
	first.End()
	query(ctx, "DELETE FROM beside")
}

// elsewhere begins a span here and ends it on another goroutine, where it has a query.
func elsewhere(ctx context.Context) {
	ctx, span := tracer.Start(ctx, "elsewhere")
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		query(ctx, "DELETE FROM elsewhere")
		span.End()
	}()
	wg.Wait()
}

// worker is a job of its own, in which no request is.
func worker(context.Context) {
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		nested(context.Background())
	}()
	wg.Wait()
}

func large(ctx context.Context) {
	for _, kib := range []int{2, 20, 200} {
		_, span := tracer.Start(ctx, fmt.Sprint("large ", kib))
		span.SetAttributes(attribute.String("text", strings.Repeat("x", kib<<10)))
		span.End()
	}
}

// nan has an attribute that the SDK cannot write as JSON.
func nan(ctx context.Context) {
	_, span := tracer.Start(ctx, "not a number")
	zero := 0.0
	span.SetAttributes(attribute.Float64("nan", zero/zero))
	span.End()
}

func forgotten(ctx context.Context) {
	ctx, _ = tracer.Start(ctx, "forgotten")
	query(ctx, "DELETE FROM forgotten")
}

// timed says itself when it was.
func timed(ctx context.Context) {
	at := time.Unix(1_700_000_000, 0)
	_, span := tracer.Start(ctx, "timed", trace.WithTimestamp(at))
	span.End(trace.WithTimestamp(at.Add(time.Minute)))
}

func linked(ctx context.Context) {
	other := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{0xab, 15: 1}, SpanID: trace.SpanID{0xcd, 7: 2}, Remote: true})
	_, span := tracer.Start(ctx, "linked", trace.WithLinks(trace.Link{SpanContext: other, Attributes: []attribute.KeyValue{attribute.String("why", "batch")}}))
	span.End()
}

func call(ctx context.Context, url string) {
	ctx, span := tracer.Start(ctx, "call")
	defer span.End()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
}

// connector is of a driver that does nothing.
type connector struct{}

func (connector) Connect(context.Context) (driver.Conn, error) { return conn{}, nil }
func (connector) Driver() driver.Driver                        { return nil }

type conn struct{}

func (conn) Prepare(string) (driver.Stmt, error) { return nil, io.EOF }
func (conn) Close() error                        { return nil }
func (conn) Begin() (driver.Tx, error)           { return nil, io.EOF }

func (conn) ExecContext(context.Context, string, []driver.NamedValue) (driver.Result, error) {
	return driver.ResultNoRows, nil
}
