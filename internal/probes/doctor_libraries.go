package probes

import (
	"runtime/debug"
	"strings"

	"github.com/plainframework/agent/internal/probes/gobin"
)

// A library is told by a function that every use of it links, since builds without
// modules, such as those of Debian, do not list what they are made of.
type knownLibrary struct {
	module    string // import path, or the beginning of it; of the standard library the package
	functions []string
	note      string
}

// otherLibraries do work that a span could tell of. Those that a line of libraries covers
// are left out.
var otherLibraries = []knownLibrary{
	{"google.golang.org/grpc", []string{"google.golang.org/grpc.(*Server).Serve", "google.golang.org/grpc.(*ClientConn).Invoke"}, "RPCs"},
	{"github.com/valyala/fasthttp", []string{"github.com/valyala/fasthttp.(*Server).Serve", "github.com/valyala/fasthttp.(*Client).Do"}, "HTTP without net/http"},
	{"github.com/jackc/pgx/v5", []string{"github.com/jackc/pgx/v5.(*Conn).Query"}, "queries that do not go through database/sql"},
	{"github.com/jackc/pgx/v4", []string{"github.com/jackc/pgx/v4.(*Conn).Query"}, "queries that do not go through database/sql"},
	{"github.com/redis/go-redis/v9", []string{"github.com/redis/go-redis/v9.(*baseClient).process"}, "Redis commands"},
	{"go.mongodb.org/mongo-driver", []string{"go.mongodb.org/mongo-driver/mongo.(*Collection).Find", "go.mongodb.org/mongo-driver/v2/mongo.(*Collection).Find"}, "MongoDB commands"},
	{"github.com/segmentio/kafka-go", []string{"github.com/segmentio/kafka-go.(*Writer).WriteMessages"}, "Kafka messages"},
	{"github.com/IBM/sarama", []string{"github.com/IBM/sarama.(*asyncProducer).dispatcher"}, "Kafka messages"},
}

// telemetryLibraries report from inside a program.
var telemetryLibraries = []knownLibrary{
	{"go.opentelemetry.io/otel/sdk", []string{"go.opentelemetry.io/otel/sdk/trace.(*TracerProvider).Tracer"}, "spans that the program makes itself go their own way; what they cover has no second one"},
	{"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp", []string{
		"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*middleware).serveHTTP",
		"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Handler).ServeHTTP",
		"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp.(*Transport).RoundTrip",
	}, "what the program itself has a span of, by OpenTelemetry's SDK, has no second one"},
	{"github.com/XSAM/otelsql", []string{"github.com/XSAM/otelsql.(*otConn).QueryContext"}, "what the program itself has a span of, by OpenTelemetry's SDK, has no second one"},
	{"gopkg.in/DataDog/dd-trace-go.v1", []string{"gopkg.in/DataDog/dd-trace-go.v1/ddtrace/tracer.Start"}, "it makes spans of its own: where it exports, an operation can have two"},
	{"github.com/DataDog/dd-trace-go/v2", []string{"github.com/DataDog/dd-trace-go/v2/ddtrace/tracer.Start"}, "it makes spans of its own: where it exports, an operation can have two"},
	{"github.com/newrelic/go-agent/v3", []string{"github.com/newrelic/go-agent/v3/newrelic.NewApplication"}, "it makes spans of its own: where it exports, an operation can have two"},
}

// librariesOf lists what a binary is made of, as far as it matters here.
func librariesOf(b *gobin.Binary, groups []GroupStatus) (found, telemetry []LibraryFound) {
	covered := map[string]bool{}
	for _, lib := range libraries {
		var groupsOf, attached int
		for _, g := range groups {
			if g.Library == lib.name {
				groupsOf++
				if g.State == groupAttached {
					attached++
				}
			}
		}
		again := covered[lib.name] // several libraries are parts of one
		covered[lib.name] = true
		if groupsOf > 0 && !again && !lib.beside && lib.serves == nil {
			l := LibraryFound{Name: lib.name, Version: versionOf(b, lib.name), Covered: attached == groupsOf}
			if attached < groupsOf {
				l.Note = "some of its operations are not seen"
			}
			if attached == 0 {
				l.Note = "none of its operations are seen"
			}
			found = append(found, l)
		}
	}
	for _, known := range otherLibraries {
		if !covered[known.module] && known.in(b) {
			found = append(found, LibraryFound{Name: known.module, Version: versionOf(b, known.module), Note: "not covered yet: " + known.note})
		}
	}
	for _, known := range telemetryLibraries {
		if known.in(b) {
			telemetry = append(telemetry, LibraryFound{Name: known.module, Version: versionOf(b, known.module), Note: known.note})
		}
	}
	return found, telemetry
}

func (l knownLibrary) in(b *gobin.Binary) bool {
	for _, f := range l.functions {
		if has(b, f) {
			return true
		}
	}
	return false
}

// versionOf is the version of the module that holds a package; "" where the build info
// does not list modules.
func versionOf(b *gobin.Binary, pkg string) string {
	if first, _, _ := strings.Cut(pkg, "/"); !strings.Contains(first, ".") {
		return b.GoVersion().String() // the standard library
	}
	info := b.BuildInfo()
	if info == nil {
		return ""
	}
	version, length := "", 0
	for _, m := range append([]*debug.Module{&info.Main}, info.Deps...) {
		if m.Path == "" || m.Path != pkg && !strings.HasPrefix(pkg, m.Path+"/") && !strings.HasPrefix(m.Path, pkg+"/") || len(m.Path) <= length {
			continue
		}
		if m.Replace != nil && m.Replace.Version != "" {
			m = m.Replace
		}
		version, length = m.Version, len(m.Path)
	}
	return version
}
