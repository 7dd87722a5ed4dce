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

// quadrant is a random resume: where it begins, which base rows its rows continue, and interventions inside.
type quadrant struct {
	from transformer.From
	ivs  []transformer.Intervention
}

// quadrant draws one. Position bounds the interventions and every fifth has none.
func (b *bench) quadrant(round int) quadrant {
	L, T := b.Config.Layers, len(b.ids[0])
	q := quadrant{from: transformer.From{Layer: b.rng.IntN(L), Position: b.rng.IntN(T)}}
	if b.Config.Encoder {
		q.from.Position = 0
	}
	for range round % 5 {
		q.from.Rows = append(q.from.Rows, b.rng.IntN(len(b.ids)))
	}
	rows := max(len(q.from.Rows), len(b.ids))
	if q.from.Rows != nil {
		rows = len(q.from.Rows)
	}
	sites := []transformer.Site{transformer.ResidPre, transformer.Key, transformer.HeadOut, transformer.Coef, transformer.ResidPost}
	for i := range round % 4 {
		s := sites[(round+i)%len(sites)]
		iv := transformer.Intervention{
			Site: s, Layer: q.from.Layer + b.rng.IntN(L-q.from.Layer), Op: transformer.OpAdd, Value: b.values(1),
			Rows: []int{b.rng.IntN(rows)}, Positions: []int{q.from.Position + b.rng.IntN(T-q.from.Position)},
		}
		if i == 2 {
			iv.Positions, iv.Rows = nil, nil // from where the run is taken up, in all rows
		}
		q.ivs = append(q.ivs, iv)
	}
	return q
}

// whole is the quadrant's run from the beginning: the rows it continues, with interventions from its position on. The
// longest row comes last, so that there are as many positions.
func (b *bench) whole(t *testing.T, q quadrant, before ...transformer.Intervention) *transformer.Run {
	t.Helper()
	ids := slices.Clone(b.ids)
	if q.from.Rows != nil {
		ids = nil
		for _, row := range q.from.Rows {
			ids = append(ids, b.ids[row])
		}
	}
	ids = append(ids, b.ids[0])
	ivs := slices.Clone(before)
	for _, iv := range q.ivs {
		if iv.Positions == nil {
			for p := q.from.Position; p < len(b.ids[0]); p++ {
				iv.Positions = append(iv.Positions, p)
			}
		}
		ivs = append(ivs, iv)
	}
	return run(t, b.Model, ids, everySite(b.Model), ivs...)
}

// agree compares a resumed run with a whole one, over the quadrant.
func (b *bench) agree(t *testing.T, what string, resumed, whole *transformer.Run, from transformer.From) {
	t.Helper()
	rows := upTo(resumed.Rows())
	for _, s := range everySite(b.Model).Sites {
		if s == transformer.Embed {
			continue
		}
		for l := from.Layer; l < max(b.Config.Layers, from.Layer+1); l++ {
			if s.InBlock() && (l == b.Config.Layers || !b.Config.HasSite(s, l)) {
				continue
			}
			got, err := resumed.Tensor(s, l)
			if err != nil {
				t.Fatal(err)
			}
			want, err := whole.Tensor(s, l)
			if err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprintf("%s: %s of layer %d", what, s, l), got, cut(want, string(s), rows, from.Position), 2.5*tolerance(string(s), want))
			if t.Failed() {
				return
			}
		}
	}
}

// TestResumeIsRerun: recomputing the quadrant behind any layer and position, for any rows in any order, with any
// interventions in it, gives what a run from the beginning gives.
func TestResumeIsRerun(t *testing.T) {
	backendtest.Long(t)
	onReference(t, referenceFamilies(), []string{"llama"}, func(t *testing.T, b *bench) {
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		rounds := 24
		if strings.Contains(t.Name(), "xla") {
			rounds = 4 // each is a shape of its own to compile
		}
		for round := range rounds {
			q := b.quadrant(round)
			what := fmt.Sprintf("round %d, %+v", round, q.from)
			for i := range q.ivs {
				what += "; " + describe(&q.ivs[i])
			}
			r, err := b.Resume(t.Context(), base, q.from, everySite(b.Model), q.ivs...)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			b.agree(t, what, r, b.whole(t, q), q.from)
			if r.Close(); t.Failed() {
				return
			}
		}
	})
}

// TestResumeShapes: long rows go up to buckets of their own; every position of them is a place to resume at, whichever
// program is at hand.
func TestResumeShapes(t *testing.T) {
	onReference(t, []string{"gpt2", "gemma2", "bloom"}, nil, func(t *testing.T, b *bench) {
		b.ids = b.sequences(19, 12)
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		for position := 1; position < 19; position++ {
			q := quadrant{from: transformer.From{Layer: 1, Position: position}}
			q.ivs = []transformer.Intervention{{
				Site: transformer.Value, Layer: 1, Op: transformer.OpScale, Value: []float32{-2},
			}}
			r, err := b.Resume(t.Context(), base, q.from, everySite(b.Model), q.ivs...)
			if err != nil {
				t.Fatal(err)
			}
			b.agree(t, fmt.Sprint("position ", position), r, b.whole(t, q), q.from)
			if r.Close(); t.Failed() {
				return
			}
		}
	})
}

// TestResumeOverChangedBase: what interventions did to the base outside the quadrant stays, at every position, and those
// inside act only if they are passed again.
func TestResumeOverChangedBase(t *testing.T) {
	onReference(t, []string{"gpt2", "gemma2", "gptj"}, nil, func(t *testing.T, b *bench) {
		b.ids = b.sequences(19, 12)
		early := []transformer.Intervention{
			{Site: transformer.ResidPre, Layer: 0, Op: transformer.OpAdd, Value: []float32{0.4}},
			{Site: transformer.Value, Layer: 1, Op: transformer.OpScale, Value: []float32{3}, Positions: upTo(6)},
		}
		inside := transformer.Intervention{
			Site: transformer.Coef, Layer: 1, Op: transformer.OpZero, Positions: []int{6, 7, 8, 9, 10, 11, 12, 13, 14},
		}
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true}, append(early, inside)...)
		for _, position := range []int{6, 7, 9, 13} {
			q := quadrant{from: transformer.From{Layer: 1, Position: position}}
			before := append(slices.Clone(early), inside)
			before[2].Positions = upTo(position)[6:]
			r, err := b.Resume(t.Context(), base, q.from, everySite(b.Model))
			if err != nil {
				t.Fatal(err)
			}
			b.agree(t, fmt.Sprint("position ", position), r, b.whole(t, q, before...), q.from)
			r.Close()
			again := inside
			again.Positions = []int{14}
			q.ivs = []transformer.Intervention{again}
			if r, err = b.Resume(t.Context(), base, q.from, everySite(b.Model), q.ivs...); err != nil {
				t.Fatal(err)
			}
			b.agree(t, fmt.Sprint("passed again, position ", position), r, b.whole(t, q, before...), q.from)
			r.Close()
		}
	})
}

// TestResumeHeadOnly: taking a run up behind its last layer computes final and logits alone, with interventions there.
func TestResumeHeadOnly(t *testing.T) {
	onReference(t, []string{"gpt2", "opt_post", "bert"}, []string{"gpt2"}, func(t *testing.T, b *bench) {
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		q := quadrant{from: transformer.From{Layer: b.Config.Layers, Rows: []int{1, 0, 1}}}
		if !b.Config.Encoder {
			q.from.Position = 2
		}
		q.ivs = []transformer.Intervention{{
			Site: transformer.Final, Op: transformer.OpProject, Directions: b.directions(1, b.Config.Width), Rows: []int{2},
		}}
		capture := transformer.Capture{Sites: []transformer.Site{transformer.Final, transformer.Logits}}
		r, err := b.Resume(t.Context(), base, q.from, capture, q.ivs...)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b.agree(t, "head", r, b.whole(t, q), q.from)
	})
}

// TestResumeCapture: chosen positions count from the row's end when negative; positions ahead of the resumed part are
// zero, and a run may capture nothing but those.
func TestResumeCapture(t *testing.T) {
	onReference(t, []string{"llama"}, nil, func(t *testing.T, b *bench) {
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		capture := transformer.Capture{Sites: []transformer.Site{transformer.ResidPost, transformer.Logits}, Positions: []int{-1, 1, 4}}
		r, err := b.Resume(t.Context(), base, transformer.From{Layer: 1, Position: 4}, capture)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		whole := run(t, b.Model, b.ids, capture)
		for _, s := range capture.Sites {
			got, err := r.Tensor(s, 1)
			if err != nil {
				t.Fatal(err)
			}
			want, err := whole.Tensor(s, 1)
			if err != nil {
				t.Fatal(err)
			}
			for row := range b.ids {
				clear(want.At(row, 1).Data) // position 1 was not recomputed
			}
			clear(want.At(2).Data) // and the third row ends ahead of position 4
			near(t, string(s), got, want, 2.5e-4)
		}
		none, err := b.Resume(t.Context(), base, transformer.From{Layer: 1, Position: 4},
			transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{0}})
		if err != nil {
			t.Fatal(err)
		}
		defer none.Close()
		x, err := none.Tensor(transformer.Logits, -1)
		if err != nil || !slices.Equal(x.Shape, []int{3, 1, b.Config.Vocab}) || slices.Max(x.Data) != 0 {
			t.Errorf("logits ahead of the resumed part: shape %v, %v", x.Shape, err)
		}
	})
}

// TestBadResumes: each thing that cannot be resumed is refused, and the message says what.
func TestBadResumes(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		b, other, encoder := lab(t, be, "gpt2"), lab(t, be, "gpt2"), lab(t, be, "bert")
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		plain := run(t, b.Model, b.ids, transformer.Capture{})
		closed := run(t, b.Model, b.ids, transformer.Capture{Base: true})
		closed.Close()
		resumed, err := b.Resume(t.Context(), base, transformer.From{Layer: 1, Position: 1}, transformer.Capture{})
		if err != nil {
			t.Fatal(err)
		}
		defer resumed.Close()
		both := run(t, encoder.Model, encoder.ids, transformer.Capture{Base: true})
		at := func(layer, position int, rows ...int) transformer.From {
			return transformer.From{Layer: layer, Position: position, Rows: rows}
		}
		for _, c := range []struct {
			m       *bench
			base    *transformer.Run
			from    transformer.From
			capture transformer.Capture
			text    string
		}{
			{b, nil, at(0, 0), transformer.Capture{}, "not a run of this model"},
			{other, base, at(0, 0), transformer.Capture{}, "not a run of this model"},
			{b, resumed, at(0, 0), transformer.Capture{}, "itself resumed"},
			{b, plain, at(0, 0), transformer.Capture{}, "not run with Capture.Base"},
			{b, closed, at(0, 0), transformer.Capture{}, "is closed"},
			{b, base, at(0, 0), transformer.Capture{Base: true}, "cannot be a base"},
			{b, base, at(4, 0), transformer.Capture{}, "at layer 4: the model has 3"},
			{b, base, at(-1, 0), transformer.Capture{}, "at layer -1: the model has 3"},
			{b, base, at(0, 9), transformer.Capture{}, "at position 9: the base has 9"},
			{b, base, at(0, -1), transformer.Capture{}, "at position -1: the base has 9"},
			{b, base, at(0, 0, 3), transformer.Capture{}, "of row 3: the base has 3"},
			{b, base, at(0, 0, -1), transformer.Capture{}, "of row -1: the base has 3"},
			{b, base, transformer.From{Rows: []int{}}, transformer.Capture{}, "no rows"},
			{encoder, both, at(0, 1), transformer.Capture{}, "an encoder's positions all see each other"},
		} {
			r, err := c.m.Resume(t.Context(), c.base, c.from, c.capture)
			if !errors.Is(err, transformer.ErrResume) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("error %v, want %q", err, c.text)
			}
			if r != nil {
				r.Close()
			}
		}
		outside := transformer.Intervention{Site: transformer.Coef, Op: transformer.OpZero}
		if _, err := b.Resume(t.Context(), base, at(1, 0), transformer.Capture{}, outside); !errors.Is(err, transformer.ErrIntervention) {
			t.Errorf("an intervention below the resumed layers: %v", err)
		}
		outside.Layer, outside.Positions = 1, []int{2}
		if _, err := b.Resume(t.Context(), base, at(1, 3), transformer.Capture{}, outside); !errors.Is(err, transformer.ErrIntervention) {
			t.Errorf("an intervention ahead of the resumed positions: %v", err)
		}
		outside.Site, outside.Positions = transformer.Embed, nil
		if _, err := b.Resume(t.Context(), base, at(0, 0), transformer.Capture{}, outside); !errors.Is(err, transformer.ErrIntervention) {
			t.Errorf("an intervention at the embedding of a resumed run: %v", err)
		}
	})
}
