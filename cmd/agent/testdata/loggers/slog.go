//go:build go1.21

package main

import (
	"context"
	"log/slog"
	"os"
)

func addSlog() {
	opts := &slog.HandlerOptions{Level: slog.LevelDebug}
	add := func(name string, h slog.Handler) {
		l := slog.New(h)
		loggers[name] = func(level string) {
			var at slog.Level
			if err := at.UnmarshalText([]byte(level)); err != nil {
				panic(err)
			}
			l.Log(context.Background(), at, "hello there", "n", 7, "s", "two words", slog.Group("g", "x", 1.5, "ok", true))
		}
	}
	add("slog-json", slog.NewJSONHandler(os.Stderr, opts))
	add("slog-text", slog.NewTextHandler(os.Stderr, opts))
}
