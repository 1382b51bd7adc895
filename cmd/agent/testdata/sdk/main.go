// sdk is a service that makes spans of its own with OpenTelemetry's SDK, by hand and by
// instrumentations. It prints each: "span" kind name trace-id span-id.
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

	"github.com/XSAM/otelsql"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	pb "google.golang.org/grpc/health/grpc_health_v1"
)

type printer struct{}

func (printer) ExportSpans(_ context.Context, spans []sdktrace.ReadOnlySpan) error {
	for _, s := range spans {
		fmt.Println("span", s.SpanKind(), s.Name(), s.SpanContext().TraceID(), s.SpanContext().SpanID())
	}
	return nil
}

func (printer) Shutdown(context.Context) error { return nil }

func main() {
	otel.SetTextMapPropagator(propagation.TraceContext{})
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSyncer(printer{})))
	tracer := otel.Tracer("by hand")
	db := sql.OpenDB(connector{})
	wrapped := otelsql.OpenDB(connector{}, otelsql.WithSpanOptions(otelsql.SpanOptions{OmitConnResetSession: true, OmitConnectorConnect: true, OmitRows: true}))

	mux := http.NewServeMux()
	handle := func(pattern string, f func(ctx context.Context)) http.Handler {
		h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(r.Context()) })
		mux.Handle(pattern, h)
		return h
	}
	query := func(ctx context.Context, db *sql.DB, text string) {
		if _, err := db.ExecContext(ctx, text); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	spanned := func(name string, kind trace.SpanKind) func(context.Context) {
		return func(ctx context.Context) {
			ctx, span := tracer.Start(ctx, name, trace.WithSpanKind(kind))
			defer span.End()
			query(ctx, db, "DELETE FROM "+name)
		}
	}
	handle("/plain", func(ctx context.Context) { query(ctx, db, "DELETE FROM plain") })
	handle("/byhand", spanned("byhand", trace.SpanKindInternal))
	handle("/client", spanned("client", trace.SpanKindClient))
	handle("/otelsql", func(ctx context.Context) { query(ctx, wrapped, "DELETE FROM otelsql") })
	address := serveHealth()
	bare, handled := dial(address), dial(address, grpc.WithStatsHandler(otelgrpc.NewClientHandler()))
	handle("/grpc", func(ctx context.Context) { check(ctx, bare) })
	handle("/otelgrpc", func(ctx context.Context) { check(ctx, handled) })
	handle("/otelgrpc-stream", func(ctx context.Context) { watch(ctx, handled) })
	http.Handle("/", mux)
	instrument := func(pattern string, f func(context.Context)) {
		http.Handle(pattern, otelhttp.NewHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(r.Context()) }), pattern))
	}
	instrument("/otelhttp", func(ctx context.Context) { query(ctx, db, "DELETE FROM otelhttp") })
	instrument("/lost", func(context.Context) { query(context.Background(), db, "DELETE FROM lost") })

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Printf("sdk listens on http://%s\n", ln.Addr())
	http.Serve(ln, nil)
}

// serveHealth is a gRPC server without spans of its own.
func serveHealth() string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	s := grpc.NewServer()
	pb.RegisterHealthServer(s, health.NewServer())
	go s.Serve(ln)
	return ln.Addr().String()
}

func dial(address string, more ...grpc.DialOption) pb.HealthClient {
	conn, err := grpc.NewClient(address, append(more, grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return pb.NewHealthClient(conn)
}

func check(ctx context.Context, client pb.HealthClient) {
	if _, err := client.Check(ctx, &pb.HealthCheckRequest{}); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// watch takes one answer of a stream and leaves.
func watch(ctx context.Context, client pb.HealthClient) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Watch(ctx, &pb.HealthCheckRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	cancel()
	for err == nil { // until the client has ended it
		_, err = stream.Recv()
	}
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
