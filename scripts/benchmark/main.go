// Command benchmark measures what the agent costs a service: CPU time of the
// service and of the agent for each request, throughput and latency, with and
// without the agent, in turns within one run. scripts/bench builds everything
// and calls it.
//
// The service is the sample shop, alone on one core. wrk, the agent and this
// program share another. The sink takes the agent's requests and only puts them
// aside; they are unpacked and counted between the measurements.
//
// The files, in the order of the data: config.go the flags, processes.go what is
// started, idle.go what idle cores do meanwhile, wrk.go and pace.go the load at full speed
// and a steady one, sink.go the agent's endpoint, traps.go the kernel's counts, calibrate.go
// what a trap costs at least, measure.go one run over all of these, steady.go its pairs under
// steady load, table.go and plot.go the result.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == spinArg {
		spin()
		return
	}
	cfg, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err = run(ctx, cfg)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmark:", err)
		os.Exit(1)
	}
}

// run measures and writes the table to stdout and, where asked for, to files.
func run(ctx context.Context, cfg config) error {
	b, err := newBench(ctx, cfg)
	if err != nil {
		return err
	}
	defer b.close()
	if polling, err := pollWhenIdle(); err != nil {
		fmt.Fprintln(os.Stderr, "benchmark: what wakes wrk costs the shop more the slower it is:", err)
	} else {
		defer polling.Close()
		b.res.polling = true
	}
	calibration, err := calibrate(ctx, cfg.appCPU)
	if err != nil {
		return err
	}
	res, err := b.measure(ctx)
	if err != nil {
		return err
	}
	res.calibration = calibration
	text := res.markdown()
	fmt.Print(text)
	if cfg.markdown != "" {
		if err := os.WriteFile(cfg.markdown, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write table: %w", err)
		}
	}
	if cfg.svg != "" {
		if err := os.WriteFile(cfg.svg, []byte(res.plot()), 0o644); err != nil {
			return fmt.Errorf("write plot: %w", err)
		}
	}
	return nil
}
