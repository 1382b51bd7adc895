package main

import (
	"errors"
	"flag"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// config is one run of the benchmark.
type config struct {
	agent, shop   string // executables
	rates         []float64
	rounds        int
	duration      time.Duration // of one measurement
	connections   int
	appCPU        int
	otherCPU      int
	keepErrors    bool
	markdown, svg string // files to write, or ""
}

// request is a path of the shop.
type request struct {
	path, label string
	children    int // database calls, and calls of others, that one request makes
}

var requests = []request{
	{"/plain", "no SQL", 0},
	{"/items/7", "1 query", 1},
	{"/report", "5 queries", 5},
	{"/client", "1 call", 1},
}

func parse(args []string) (config, error) {
	var cfg config
	var rates string
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&cfg.agent, "agent", "", "the agent's executable")
	fs.StringVar(&cfg.shop, "shop", "", "the shop's executable")
	fs.StringVar(&rates, "rates", "1.0,0.1,0.01", "sample rates to measure, separated by commas")
	fs.IntVar(&cfg.rounds, "rounds", 5, "how often each measurement is taken")
	fs.DurationVar(&cfg.duration, "duration", 5*time.Second, "length of one measurement, in whole seconds")
	fs.IntVar(&cfg.connections, "connections", 16, "connections of wrk")
	fs.IntVar(&cfg.appCPU, "app-cpu", 0, "core of the shop")
	fs.IntVar(&cfg.otherCPU, "other-cpu", 1, "core of wrk, the agent and the sink")
	fs.BoolVar(&cfg.keepErrors, "keep-errors", true, "leave PLAIN_CLOUD_TRACE_KEEP_ERRORS at its default, true")
	fs.StringVar(&cfg.markdown, "markdown", "", "also write the tables to this file")
	fs.StringVar(&cfg.svg, "svg", "", "write a plot to this file")
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	for _, text := range strings.Split(rates, ",") {
		rate, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil || rate < 0 || rate > 1 {
			return cfg, fmt.Errorf("-rates has %q; a rate is a number from 0 to 1", text)
		}
		cfg.rates = append(cfg.rates, rate)
	}
	switch {
	case cfg.agent == "" || cfg.shop == "":
		return cfg, errors.New("-agent and -shop are needed; scripts/bench sets them")
	case fs.NArg() > 0:
		return cfg, fmt.Errorf("unknown argument %q", fs.Arg(0))
	case cfg.rounds < 1 || cfg.rounds > 100:
		return cfg, errors.New("-rounds takes 1 to 100")
	case cfg.duration < time.Second || cfg.duration > time.Minute:
		return cfg, errors.New("-duration takes 1s to 1m")
	case cfg.connections < 1 || cfg.connections > 1000:
		return cfg, errors.New("-connections takes 1 to 1000")
	}
	return cfg, nil
}
