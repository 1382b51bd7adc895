package export

import (
	"context"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		began := time.Now()
		elapsed := func() time.Duration { return time.Since(began) }
		if !p.wait(t.Context()) || elapsed() != 0 {
			t.Errorf("waited %v without a failure", elapsed())
		}
		p.fail(7 * time.Second)
		p.fail(0)
		p.ok() // another worker's success
		if p.wait(t.Context()); elapsed() != 7*time.Second {
			t.Errorf("Retry-After of 7 s was kept for %v", elapsed())
		}

		// Failures in a row: 0.5, 1, 2 … 30 s, each within 25 %.
		want := firstBackoff
		for i := range 12 {
			began = time.Now()
			p.fail(0)
			p.wait(t.Context())
			if d := elapsed(); d < want*3/4 || d > want*5/4 {
				t.Errorf("failure %d: waited %v, want about %v", i, d, want)
			}
			want = min(2*want, maxBackoff)
		}

		// Two workers that fail at the same time are one failure.
		p.ok()
		began = time.Now()
		p.fail(0)
		p.fail(0)
		p.fail(0)
		if p.wait(t.Context()); elapsed() > firstBackoff*5/4 {
			t.Errorf("three failures at once: waited %v", elapsed())
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		p.fail(time.Hour)
		if began = time.Now(); p.wait(ctx) || elapsed() != time.Second {
			t.Errorf("the end of the context was seen after %v", elapsed())
		}
	})
}

func TestOneProbeAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p pace
		for range 3 {
			if !p.try() {
				t.Fatal("held up without a failure")
			}
		}
		p.fail(0)
		if p.try() {
			t.Error("let in during the wait")
		}
		time.Sleep(time.Second)
		if !p.try() || p.try() {
			t.Error("after the wait, want one at a time")
		}
		began := time.Now()
		time.AfterFunc(10*time.Second, func() { p.fail(0) }) // the probe hung, and failed
		if !p.turn(t.Context()) || time.Since(began) < 10*time.Second || time.Since(began) > 12*time.Second {
			t.Errorf("had the turn after %v", time.Since(began))
		}
		p.ok()
		for range 2 {
			if !p.try() {
				t.Error("held up after a success")
			}
		}
		p.fail(0)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if p.turn(ctx) {
			t.Error("had a turn after the end")
		}
	})
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for in, want := range map[string]time.Duration{
		"": 0, "0": 0, "12": 12 * time.Second, "-5": 0, "soon": 0, "999999999999": maxRetryAfter, "99999999999999999999": 0,
		now.Add(90 * time.Second).Format(http.TimeFormat): 90 * time.Second,
		now.Add(-time.Hour).Format(http.TimeFormat):       0,
		now.AddDate(5, 0, 0).Format(http.TimeFormat):      maxRetryAfter,
	} {
		if got := retryAfter(in, now); got != want {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}
