package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// A steady measurement is of pairs: two shops, one of them under the agent, loaded in turns
// for so short that the machine is the same for both.
const (
	steadyPairs    = 6 // a round
	steadySlice    = 400 * time.Millisecond
	steadyInterval = 3 * time.Millisecond
)

// pair is what a request cost each of the two shops, in us of CPU.
type pair struct{ bare, with float64 }

func (p pair) costBare() float64 { return p.bare }
func (p pair) costWith() float64 { return p.with }
func (p pair) added() float64    { return p.with - p.bare }
func (p pair) ratio() float64    { return p.with / p.bare }

// startBareShop starts a shop that the agent does not look for: a copy of the executable.
func startBareShop(ctx context.Context, cfg config, dir string) (*process, string, error) {
	path := filepath.Join(dir, "bare-shop")
	if err := copyFile(path, cfg.shop); err != nil {
		return nil, "", fmt.Errorf("copy shop: %w", err)
	}
	cfg.shop = path
	return startShop(ctx, cfg, dir)
}

// steady measures every path under a steady load; the agent is on b.shop.
func (b *bench) steady(ctx context.Context, rate float64) error {
	bare, err := newPacer(ctx, b.bareURL, b.cfg.connections, steadyInterval)
	if err != nil {
		return err
	}
	defer bare.close()
	with, err := newPacer(ctx, b.url, b.cfg.connections, steadyInterval)
	if err != nil {
		return err
	}
	defer with.close()
	for _, r := range requests {
		for i := range steadyPairs + 1 {
			var p pair
			first := func() error { p.bare, err = slice(ctx, bare, b.bareShop, r.path); return err }
			second := func() error { p.with, err = slice(ctx, with, b.shop, r.path); return err }
			if i%2 == 1 {
				first, second = second, first
			}
			if err := first(); err != nil {
				return err
			}
			if err := second(); err != nil {
				return err
			}
			if i > 0 { // the first one warms up
				k := key{r.path, rate}
				b.res.steady[k] = append(b.res.steady[k], p)
			}
		}
	}
	return nil
}

// slice returns the CPU time in us that a request cost a shop.
func slice(ctx context.Context, load *pacer, shop *process, path string) (float64, error) {
	before, err := shop.cpu()
	if err != nil {
		return 0, err
	}
	n, err := load.run(ctx, path, steadySlice)
	if err != nil {
		return 0, err
	}
	after, err := shop.cpu()
	return micros(after-before) / float64(n), err
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o700)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}
