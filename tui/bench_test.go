package tui

import (
	"fmt"
	"testing"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/muesli/termenv"

	"github.com/engram-go/engram/probes"
)

// BenchmarkFrame draws every screen at 200×50 in true colour; the bound is 2 ms a frame.
func BenchmarkFrame(b *testing.B) {
	d := withFakes(200, 50, framePrompt, answers())
	d.app.theme = newTheme(termenv.TrueColor, true)
	for i, s := range d.app.screens {
		d.run(d.app.goTo(i))
		b.Run(s.Name(), func(b *testing.B) {
			for b.Loop() {
				_ = d.app.View()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/2000, "of-2ms")
		})
	}
}

// BenchmarkKey moves through a table of 300,000 memories and draws; the bound is 5 ms a key.
func BenchmarkKey(b *testing.B) {
	all := answers()
	r := &probes.RankingResult{Position: 4}
	for i := range 300_000 {
		r.Memories = append(r.Memories, probes.RankedMemory{Layer: i / 10_000, Index: i % 10_000, Coef: float64(i%977) / 100, Score: float64(i % 977)})
	}
	all["ranking"] = r
	d := withFakes(200, 50, framePrompt, all)
	d.app.theme = newTheme(termenv.TrueColor, true)
	d.keys("3")
	for _, key := range []tea.KeyType{tea.KeyDown, tea.KeyPgDown, tea.KeyEnd, tea.KeyHome} {
		b.Run(fmt.Sprint(tea.KeyMsg{Type: key}), func(b *testing.B) {
			for b.Loop() {
				d.app.Update(tea.KeyMsg{Type: key}) // looking up tokens runs in a command
				_ = d.app.View()
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/5000, "of-5ms")
		})
	}
}
