package main

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"os"
	"time"

	kitlog "github.com/go-kit/log"
	"github.com/go-kit/log/level"
	"github.com/hashicorp/go-hclog"
	pkgerrors "github.com/pkg/errors"
	"github.com/rs/zerolog"
	zpkgerrors "github.com/rs/zerolog/pkgerrors"
	"github.com/sirupsen/logrus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	logsapi "k8s.io/component-base/logs/api/v1"
	"k8s.io/component-base/logs/json"
	"k8s.io/klog/v2"
)

var errBoom = errors.New("dial tcp 127.0.0.1:5432: connect: connection refused")

func init() {
	cases["log"] = stdlog
	cases["slog-json"] = func() {
		useSlog(slog.New(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{AddSource: true, Level: slog.LevelDebug})))
	}
	cases["slog-text"] = func() {
		useSlog(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{AddSource: true, Level: slog.LevelDebug})))
	}
	cases["slog-default"] = func() { useSlog(slog.Default()) }
	cases["zap-json"] = func() {
		l, _ := zap.NewProduction()
		useZap(l)
	}
	cases["zap-console"] = func() {
		l, _ := zap.NewDevelopment()
		useZap(l)
	}
	cases["zap-console-epoch"] = func() {
		c := zap.NewProductionConfig()
		c.Encoding = "console"
		l, _ := c.Build()
		useZap(l)
	}
	cases["zap-iso"] = func() {
		c := zap.NewProductionConfig()
		c.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
		c.EncoderConfig.EncodeLevel = zapcore.CapitalColorLevelEncoder
		l, _ := c.Build()
		useZap(l)
	}
	cases["zerolog-json"] = func() {
		zerolog.ErrorStackMarshaler = zpkgerrors.MarshalStack
		useZerolog(zerolog.New(os.Stderr).With().Timestamp().Caller().Logger())
	}
	cases["zerolog-unix"] = func() {
		zerolog.TimeFieldFormat = zerolog.TimeFormatUnixMs
		useZerolog(zerolog.New(os.Stderr).With().Timestamp().Logger())
	}
	cases["zerolog-console"] = func() {
		useZerolog(zerolog.New(zerolog.ConsoleWriter{Out: os.Stderr}).With().Timestamp().Caller().Logger())
	}
	cases["logrus-text"] = func() { useLogrus(&logrus.TextFormatter{}) }
	cases["logrus-json"] = func() { useLogrus(&logrus.JSONFormatter{}) }
	cases["logrus-tty"] = func() { useLogrus(&logrus.TextFormatter{ForceColors: true}) }
	cases["klog"] = useKlog
	cases["klog-json"] = func() {
		l, _ := json.NewJSONLogger(logsapi.VerbosityLevel(5), json.AddNopSync(os.Stderr), nil, nil)
		klog.SetLogger(l)
		useKlog()
	}
	cases["gokit"] = useGokit
	cases["hclog"] = func() { useHclog(false) }
	cases["hclog-json"] = func() { useHclog(true) }
}

func stdlog() {
	log.Print("plain message with key=value")
	log.SetFlags(log.LstdFlags | log.Lmicroseconds | log.Lshortfile)
	log.Print("where: it was said")
	log.SetFlags(log.LstdFlags | log.Llongfile | log.LUTC)
	log.Print("where, at length")
	log.SetFlags(log.Ltime)
	log.Print("only the time")
	log.SetFlags(0)
	log.Print("nothing but text")
	log.SetFlags(log.LstdFlags)
	log.SetPrefix("[shop] ")
	log.Print("with a prefix")
	log.SetPrefix("")
	log.Print("several\nlines\n\tof text")
	log.Print("[WARN] a level in brackets")
	log.Print("ERROR: a level in words")
	log.Fatal("the end")
}

type point struct{ X, Y int }

func useSlog(l *slog.Logger) {
	l.Debug("debugging")
	l.Info("request done", "method", "GET", "status", 200, "duration", 1500*time.Microsecond, "ok", true, "ratio", 0.5, "nothing", nil)
	l.Warn("grouped", slog.Group("http", "path", "/items/{id}", slog.Group("peer", "port", 4711)), "list", []int{1, 2}, "p", point{1, 2})
	l.Error("query failed", "error", errBoom, "query", "SELECT \"x\"\nFROM y", "empty", "")
	l.Log(context.Background(), slog.LevelInfo+2, "notable")
	l.Log(context.Background(), slog.LevelDebug-4, "not shown")
	l.With("trace_id", "4bf92f3577b34da6a3ce929d0e0e4736", "span_id", "00f067aa0ba902b7").Info("correlated by the program")
	l.Info("unicode äöü 日本 \u2028 \"quoted\" \\ tab\t.")
}

func useZap(l *zap.Logger) {
	l.Debug("debugging")
	l.Info("request done", zap.String("method", "GET"), zap.Int("status", 200), zap.Duration("duration", 1500*time.Microsecond), zap.Bool("ok", true))
	l.Named("db").Warn("slow query", zap.Any("p", map[string]any{"a": []int{1, 2}, "b": nil}), zap.Namespace("http"), zap.String("path", "/"))
	l.Error("query failed", zap.Error(errBoom), zap.Int64("big", 1<<62), zap.Float64("nan", 1.5))
	l.Error("no error value")
	l.Error("with a stack of its own", zap.Error(pkgerrors.Wrap(errBoom, "load item")))
	l.Info("several\nlines")
	l.Sync()
}

func useZerolog(l zerolog.Logger) {
	l.Debug().Msg("debugging")
	l.Info().Str("method", "GET").Int("status", 200).Dur("duration", 1500*time.Microsecond).Bool("ok", true).Msg("request done")
	l.Warn().Dict("http", zerolog.Dict().Str("path", "/").Ints("list", []int{1, 2})).Send()
	l.Error().Err(errBoom).Str("query", "SELECT \"x\"\nFROM y").Msg("query failed")
	l.Error().Stack().Err(pkgerrors.Wrap(errBoom, "load item")).Msg("with a stack")
	l.Trace().Msg("tracing")
	l.Log().Str("a", "b").Msg("no level")
	l.Fatal().Msg("the end")
}

func useLogrus(f logrus.Formatter) {
	l := logrus.New()
	l.SetFormatter(f)
	l.SetLevel(logrus.TraceLevel)
	l.Trace("tracing")
	l.Debug("debugging")
	l.WithFields(logrus.Fields{"method": "GET", "status": 200, "duration": 1500 * time.Microsecond, "text": "two words"}).Info("request done")
	l.WithError(errBoom).Warn("query failed")
	l.Error("several\nlines")
	l.SetReportCaller(true)
	l.WithField("time", "clash").Error("with caller")
	l.Fatal("the end")
}

func useKlog() {
	klog.Info("plain message")
	klog.Warningf("formatted %d", 5)
	klog.Error("failed: ", errBoom)
	klog.InfoS("Pod status updated", "pod", klog.KRef("kube-system", "kubedns"), "status", "ready", "count", 3)
	klog.ErrorS(errBoom, "Unable to load", "item", "a \"quoted\" one")
	klog.InfoS("several lines", "data", "first\nsecond")
	klog.Info("message of\ntwo lines")
	klog.Flush()
}

func useGokit() {
	l := kitlog.NewLogfmtLogger(kitlog.NewSyncWriter(os.Stderr))
	l = kitlog.With(l, "ts", kitlog.DefaultTimestampUTC, "caller", kitlog.DefaultCaller)
	level.Info(l).Log("msg", "Starting exporter", "version", "1.2.3", "port", 9187)
	level.Error(l).Log("msg", "scrape failed", "err", errBoom)
	l.Log("component", "web", "address", "[::]:9187")
	j := kitlog.NewJSONLogger(kitlog.NewSyncWriter(os.Stderr))
	level.Warn(kitlog.With(j, "ts", kitlog.DefaultTimestampUTC, "caller", kitlog.DefaultCaller)).Log("msg", "as JSON", "n", 5)
}

func useHclog(asJSON bool) {
	l := hclog.New(&hclog.LoggerOptions{Name: "agent", Level: hclog.Trace, JSONFormat: asJSON, IncludeLocation: true})
	l.Trace("tracing")
	l.Info("request done", "method", "GET", "status", 200)
	l.Named("raft").Warn("heartbeat timeout reached", "last-leader-addr", "")
	l.Error("query failed", "error", errBoom)
}
