package spool

import (
	"errors"
	"io/fs"
	"slices"
	"time"
)

// touched notes that a file has to be synced soon.
func (s *Spool) touched(f File) {
	if !slices.Contains(s.dirty, f) {
		s.dirty = append(s.dirty, f)
	}
	s.arm()
}

// arm sees to a sync within a second. It is not done at once: a disk takes
// milliseconds for it, and the worker that puts has more to do.
func (s *Spool) arm() {
	if s.timer == nil && !s.closed {
		s.timer = time.AfterFunc(syncDelay, func() {
			s.mu.Lock()
			s.timer = nil
			s.mu.Unlock()
			s.sync() // an error is counted
		})
	}
}

// sync makes durable what was written before. The spool stays unlocked while
// the disk works.
func (s *Spool) sync() error {
	s.syncing.Lock()
	defer s.syncing.Unlock()
	s.mu.Lock()
	dirty, retired := s.dirty, s.retired
	s.dirty, s.retired = nil, nil
	s.mu.Unlock()
	var errs []error
	for _, f := range dirty {
		if err := f.Sync(); !errors.Is(err, fs.ErrClosed) { // removed meanwhile
			errs = append(errs, err)
		}
	}
	for _, f := range retired {
		errs = append(errs, f.Sync(), f.Close())
	}
	if len(dirty)+len(retired) > 0 {
		errs = append(errs, s.disk.Sync())
	}
	err := errors.Join(errs...)
	if err != nil {
		s.mu.Lock()
		s.stats.Errors++
		s.mu.Unlock()
	}
	return err
}
