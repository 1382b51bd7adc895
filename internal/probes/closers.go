package probes

import (
	"errors"
	"io"
	"sync"
)

// closers are links in the order in which they were attached.
type closers []io.Closer

// Close detaches first what begins spans, which was attached last, and then the rest,
// side by side: the kernel waits for running programs at each.
func (c closers) Close() error {
	if len(c) == 0 {
		return nil
	}
	last := len(c) - 1
	errs := make([]error, len(c))
	errs[last] = c[last].Close()
	var closing sync.WaitGroup
	for i, l := range c[:last] {
		closing.Go(func() { errs[i] = l.Close() })
	}
	closing.Wait()
	return errors.Join(errs...)
}
