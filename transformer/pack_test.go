package transformer_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// ownPositions draws a resume whose rows begin at positions of their own, with interventions in it.
func (b *bench) ownPositions(round int) quadrant {
	L := b.Config.Layers
	q := quadrant{from: transformer.From{Layer: b.rng.IntN(L)}}
	for range 2 + b.rng.IntN(9) {
		row := b.rng.IntN(len(b.ids))
		q.from.Rows = append(q.from.Rows, row)
		q.from.Positions = append(q.from.Positions, b.rng.IntN(len(b.ids[row])))
	}
	sites := []transformer.Site{transformer.ResidPre, transformer.Key, transformer.HeadOut, transformer.Coef, transformer.FFNOut}
	for i := range round % 4 {
		row := b.rng.IntN(len(q.from.Rows))
		first, end := q.from.Positions[row], len(b.ids[q.from.Rows[row]])
		q.ivs = append(q.ivs, transformer.Intervention{
			Site: sites[(round+i)%len(sites)], Layer: q.from.Layer + b.rng.IntN(L-q.from.Layer), Op: transformer.OpAdd,
			Value: b.values(1), Rows: []int{row}, Positions: []int{first + b.rng.IntN(end-first)},
		})
	}
	return q
}

// wholePacked is the whole run of a quadrant with nothing ahead of where each row begins.
func (b *bench) wholePacked(t *testing.T, q quadrant) func(s transformer.Site, layer int) *transformer.Tensor {
	t.Helper()
	whole, first := b.whole(t, q), slices.Min(q.from.Positions)
	return func(s transformer.Site, layer int) *transformer.Tensor {
		x, err := whole.Tensor(s, layer)
		if err != nil {
			t.Fatal(err)
		}
		x = cut(x, string(s), upTo(len(q.from.Rows)), first)
		for row, p := range q.from.Positions {
			for at := range p - first {
				if s != transformer.Pattern {
					clear(x.At(row, at).Data)
					continue
				}
				for h := range x.Shape[1] {
					clear(x.At(row, h, at).Data)
				}
			}
		}
		return x
	}
}

// TestResumeAtOwnPositions: rows that begin at positions of their own give what runs from the beginning give, wherever
// they stand in the frame, and nothing ahead of where they begin.
func TestResumeAtOwnPositions(t *testing.T) {
	backendtest.Long(t)
	onReference(t, []string{"gpt2", "gemma2", "bloom", "llama", "gptj", "qwen2_moe"}, []string{"llama"}, func(t *testing.T, b *bench) {
		b.ids = b.sequences(13, 9, 13)
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		rounds := 20
		if strings.Contains(t.Name(), "xla") {
			rounds = 3
		}
		for round := range rounds {
			q := b.ownPositions(round)
			r, err := b.Resume(t.Context(), base, q.from, everySite(b.Model), q.ivs...)
			if err != nil {
				t.Fatal(err)
			}
			want := b.wholePacked(t, q)
			for _, s := range everySite(b.Model).Sites {
				for l := q.from.Layer; l < b.Config.Layers; l++ {
					if s == transformer.Embed || s.InBlock() && !b.Config.HasSite(s, l) {
						continue
					}
					got, err := r.Tensor(s, l)
					if err != nil {
						t.Fatal(err)
					}
					w := want(s, l)
					near(t, fmt.Sprintf("round %d, %+v: %s of layer %d", round, q.from, s, l), got, w, 2.5*tolerance(string(s), w))
				}
			}
			if r.Close(); t.Failed() {
				return
			}
		}
	})
}

// TestGradientAtOwnPositions: the gradient of packed rows is that of the same rows resumed one by one.
func TestGradientAtOwnPositions(t *testing.T) {
	onReference(t, []string{"gpt2", "gemma2"}, []string{"gpt2"}, func(t *testing.T, b *bench) {
		b.ids = b.sequences(11, 11, 11)
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		from := transformer.From{Layer: 1, Rows: []int{0, 1, 0, 2, 1}, Positions: []int{9, 3, 4, 8, 10}}
		want := transformer.GradientOptions{Sites: []transformer.Site{transformer.ResidPre, transformer.FFNOut}}
		gradient := func(from transformer.From) *transformer.Gradients {
			r, err := b.Resume(t.Context(), base, from, transformer.Capture{Cuts: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(r.Close)
			g, err := b.Gradient(t.Context(), r, transformer.LogProb(5), want)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(g.Close)
			return g
		}
		packed := gradient(from)
		for i, row := range from.Rows {
			alone := gradient(transformer.From{Layer: 1, Rows: []int{row}, Position: from.Positions[i]})
			for _, s := range want.Sites {
				got, err := packed.Tensor(s, 1)
				if err != nil {
					t.Fatal(err)
				}
				expect, err := alone.Tensor(s, 1)
				if err != nil {
					t.Fatal(err)
				}
				got = cut(got, string(s), []int{i}, from.Positions[i]-slices.Min(from.Positions))
				near(t, fmt.Sprintf("row %d, gradient at %s", i, s), got, expect, 2e-5)
			}
		}
	})
}

// TestPackedRowsShareFrames: rows of complementary lengths fill a frame without holes.
func TestPackedRowsShareFrames(t *testing.T) {
	const n, total = 3, 10
	from := transformer.From{}
	for p := range total {
		for row := range n {
			from.Rows, from.Positions = append(from.Rows, row), append(from.Positions, p)
		}
	}
	for slots, rows := range map[int]int{10: 6, 11: 5, 20: 3, 28: 2} {
		got, shared := transformer.PackedRows(from, []int{total, total, total}, n, slots)
		if got != rows*n || !shared {
			t.Errorf("%d slots: %d rows, shared %v, want %d", slots, got, shared, rows*n)
		}
	}
	alone := transformer.From{Rows: []int{1, 1, 1}, Positions: []int{8, 0, 2}}
	if got, shared := transformer.PackedRows(alone, []int{total, total, total}, n, 10); got != 2 || shared {
		t.Errorf("one base row of three: %d rows, shared %v", got, shared)
	}
	short := transformer.From{Rows: []int{0, 1, 2}, Positions: []int{8, 2, 4}}
	if got, shared := transformer.PackedRows(short, []int{10, 4, 6}, n, 2); got != n || !shared {
		t.Errorf("base rows of different lengths, resumed two positions before their ends: %d rows, shared %v", got, shared)
	}
}

func TestBadOwnPositions(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		b, encoder := lab(t, be, "gpt2"), lab(t, be, "bert")
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		both := run(t, encoder.Model, encoder.ids, transformer.Capture{Base: true})
		from := func(positions ...int) transformer.From {
			return transformer.From{Layer: 1, Rows: []int{0, 1}, Positions: positions}
		}
		for _, c := range []struct {
			m    *bench
			base *transformer.Run
			from transformer.From
			text string
		}{
			{b, base, from(1), "1 positions for 2 rows"},
			{b, base, from(1, 99), "base row 1 has"},
			{b, base, from(-1, 2), "at position -1"},
			{encoder, both, from(0, 1), "an encoder's positions all see each other"},
		} {
			_, err := c.m.Resume(t.Context(), c.base, c.from, transformer.Capture{})
			if !errors.Is(err, transformer.ErrResume) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %q", err, c.text)
			}
		}
		maximum := transformer.Capture{Reduce: map[transformer.Site]transformer.Reduce{
			transformer.Coef: {Kind: transformer.MaxPositions},
		}}
		if _, err := b.Resume(t.Context(), base, from(1, 2), maximum); !errors.Is(err, transformer.ErrSite) {
			t.Errorf("a maximum over positions: %v", err)
		}
		for what, iv := range map[string]transformer.Intervention{
			"the pattern":                 {Site: transformer.Pattern, Layer: 1, Op: transformer.OpZero, Positions: []int{2}},
			"ahead of where a row begins": {Site: transformer.Coef, Layer: 1, Op: transformer.OpZero, Positions: []int{1}},
		} {
			_, err := b.Resume(t.Context(), base, from(1, 2), transformer.Capture{}, iv)
			if !errors.Is(err, transformer.ErrIntervention) {
				t.Errorf("an intervention at %s: %v", what, err)
			}
		}
	})
}
