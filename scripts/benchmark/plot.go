package main

import (
	"fmt"
	"math"
	"strings"
)

// Geometry of the plot, in pixels.
const (
	plotWidth, plotHeight  = 720, 400
	plotLeft, plotRight    = 64, 16
	plotTop, plotBottom    = 56, 48
	plotInnerW, plotInnerH = plotWidth - plotLeft - plotRight, plotHeight - plotTop - plotBottom
)

// Fill of the bars: bare, then the rates in order.
var plotColours = []string{"#8a94a6", "#d9480f", "#f59f00", "#2b8a3e", "#1971c2", "#862e9c"}

// plot draws the app's CPU time for each request at a steady load as bars, one group for
// each path, with the quartiles over the pairs as a line on each bar.
func (r *result) plot() string {
	conditions := append([]float64{bare}, r.cfg.rates...)
	top := 0.0
	for _, req := range requests {
		for _, c := range conditions {
			top = max(top, r.steadyCost(req.path, c).high)
		}
	}
	step := axisStep(top)
	top = math.Ceil(top/step) * step
	y := func(v float64) float64 { return plotTop + plotInnerH*(1-v/top) }

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<text x="%d" y="20" font-size="14">CPU time of the service at a steady load, µs a request</text>`+"\n", plotLeft)
	for v := 0.0; v <= top+step/2; v += step {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
			plotLeft, plotWidth-plotRight, y(v), y(v), plotLeft-8, y(v)+4, v)
	}
	group := float64(plotInnerW) / float64(len(requests))
	bar := group * 0.8 / float64(len(conditions))
	for i, req := range requests {
		x0 := plotLeft + group*(float64(i)+0.1)
		for j, c := range conditions {
			r.bar(&b, req.path, c, x0+bar*float64(j), bar, plotColours[j%len(plotColours)], y)
		}
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s (%s)</text>`+"\n", x0+group*0.4, plotHeight-plotBottom+20, req.path, req.label)
	}
	for j, c := range conditions {
		x := plotLeft + j*110
		fmt.Fprintf(&b, `<rect x="%d" y="30" width="12" height="12" fill="%s"/><text x="%d" y="40">%s</text>`+"\n", x, plotColours[j%len(plotColours)], x+18, conditionName(c))
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func (r *result) bar(b *strings.Builder, path string, rate, x, width float64, fill string, y func(float64) float64) {
	s := r.steadyCost(path, rate)
	mid := x + width/2
	fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`, x+1, y(s.median), width-2, y(0)-y(s.median), fill)
	fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#222"/>`, mid, mid, y(s.low), y(s.high))
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="middle" font-size="10">%.1f</text>`+"\n", mid, y(s.high)-4, s.median)
}

// axisStep returns a round step that divides 0 to top into about five.
func axisStep(top float64) float64 {
	if top <= 0 {
		return 1
	}
	unit := math.Pow(10, math.Floor(math.Log10(top/5)))
	for _, m := range []float64{1, 2, 5} {
		if top/5 <= m*unit {
			return m * unit
		}
	}
	return 10 * unit
}
