package probes

import (
	"testing"
	"time"
)

func TestAdaptation(t *testing.T) {
	type step struct {
		usage choiceUsage
		off   []choice // afterwards
	}
	for name, steps := range map[string][]step{
		"route on the request itself": {
			{choiceUsage{routeSame: 10}, []choice{choiceRows}},
			{choiceUsage{routeSame: routeProof}, []choice{choiceRoute, choiceRows}},
			{choiceUsage{routeSame: routeProof}, []choice{choiceRoute, choiceRows}},
		},
		"route on a copy, late": {
			{choiceUsage{routeSame: routeProof}, []choice{choiceRoute, choiceRows}},
			{choiceUsage{routeSame: routeProof, routeMissing: 1}, []choice{choiceRows}},
			{choiceUsage{routeSame: 2 * routeProof, routeMissing: 1}, []choice{choiceRows}},
		},
		"route on a copy, now and then": {
			{choiceUsage{routeSame: routeProof, routeOther: 1}, []choice{choiceRows}},
			{choiceUsage{routeSame: 2 * routeProof, routeOther: 1}, []choice{choiceRows}},
		},
		"no route while the probe is there": {
			{choiceUsage{routeSame: 10, routeMissing: 7}, []choice{choiceRows}},
			{choiceUsage{routeSame: routeProof, routeMissing: 7}, []choice{choiceRoute, choiceRows}},
		},
		"queries in transactions": {
			{choiceUsage{directQueries: 200}, []choice{choiceRows}},
			{choiceUsage{directQueries: 200 + manyDirect + 1}, []choice{choiceReturn}},
			{choiceUsage{directQueries: 1201 + fewDirect}, []choice{choiceReturn}},
			{choiceUsage{directQueries: 1501 + fewDirect - 1}, []choice{choiceRows}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var a adaptation
			off := map[choice]bool{choiceRows: true}
			for i, s := range steps {
				off = a.after(s.usage, time.Second, off)
				want := map[choice]bool{}
				for _, c := range s.off {
					want[c] = true
				}
				for _, c := range []choice{choiceRoute, choiceRows, choiceReturn} {
					if off[c] != want[c] {
						t.Errorf("step %d: %s is off: %v, want %v", i, c, off[c], want[c])
					}
				}
			}
		})
	}
}
