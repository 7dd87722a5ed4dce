package editing_test

import (
	"errors"
	"math"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/transformer"
)

// textOf is sentences as a corpus.
func textOf(t *testing.T, m *transformer.Model, sentences ...string) *corpus.Corpus {
	t.Helper()
	c := &corpus.Corpus{}
	for i, s := range sentences {
		c.Append(idsOf(t, m, s), i)
	}
	return c
}

// outputs are what a layer's down projection puts out for a row, by position.
func outputs(t *testing.T, m *transformer.Model, row []int, layer int) *transformer.Tensor {
	t.Helper()
	run, err := m.Run(t.Context(), [][]int{row}, transformer.Capture{
		Sites: []transformer.Site{transformer.DownOut}, Layers: []int{layer},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	x, err := run.Tensor(transformer.DownOut, layer)
	if err != nil {
		t.Fatal(err)
	}
	return x
}

// TestImpactIsWhatTheEditDoes: loads are how far the layer's output moves when the edit is in force, KL that of whole
// runs, the list is in order, and a context is related when it names the subject.
func TestImpactIsWhatTheEditDoes(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		edit := rome(t, m, sadTom(), someEditor(t, m))
		text := textOf(t, m, "One day, Tom was very happy.", "Lily had a red ball.", "Ben saw Tom.")
		got, err := editing.Impact(t.Context(), m, editing.ImpactOptions{
			Edits: []*editing.Edit{edit}, Text: text, Top: len(text.IDs), Bins: 3, Sample: 100,
		})
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Deltas()) != 0 || len(got.Contexts) != len(text.IDs) || got.Positions != len(text.IDs) {
			t.Fatalf("%d changes left, %d contexts, %d positions", len(m.Deltas()), len(got.Contexts), got.Positions)
		}
		total, related := 0.0, 0
		for i, c := range got.Contexts {
			if i > 0 && c.Load > got.Contexts[i-1].Load {
				t.Errorf("context %d is out of order", i)
			}
			sameContext(t, m, edit, text.Row(c.Sequence), &got.Contexts[i])
			if total += c.KL; c.Related {
				related++
			}
		}
		// "Tom" begins at a token of its own in the first and the last sentence.
		if n := related; n == 0 || n != got.Related.Measured || got.Unrelated.Measured != len(text.IDs)-n {
			t.Errorf("%d related contexts, %+v and %+v", n, got.Related, got.Unrelated)
		}
		positions, sum := 0, 0.0
		for i, g := range got.Curve {
			positions, sum = positions+g.Positions, sum+g.KL*float64(g.Measured)
			if i > 0 && (g.From > got.Curve[i-1].To || g.Positions < got.Curve[i-1].Positions) {
				t.Errorf("group %d: %+v behind %+v", i, g, got.Curve[i-1])
			}
		}
		if positions != len(text.IDs) {
			t.Errorf("groups of %d positions", positions)
		}
		near(t, "KL of all groups", sum, total, 1e-9)
		if got.Contexts[0].Text[len(got.Contexts[0].Text)-1] != 'm' || !got.Contexts[0].Related || got.Correlation <= 0 {
			t.Errorf("most loaded is %+v, rank correlation %g", got.Contexts[0], got.Correlation)
		}
	})
}

// sameContext works out what an edit does at a context.
func sameContext(t *testing.T, m *transformer.Model, edit *editing.Edit, row []int, c *editing.ImpactContext) {
	t.Helper()
	before := outputs(t, m, row, edit.Layer).At(0, c.Position).Data
	first := nextProbs(t, m, row[:c.Position+1])
	if err := m.SetDeltas([]transformer.Delta{edit.Delta()}); err != nil {
		t.Fatal(err)
	}
	after := outputs(t, m, row, edit.Layer).At(0, c.Position).Data
	then := nextProbs(t, m, row[:c.Position+1])
	if err := m.SetDeltas(nil); err != nil {
		t.Fatal(err)
	}
	moved, base, kl := 0.0, 0.0, 0.0
	for j := range before {
		moved += math.Pow(float64(after[j])-float64(before[j]), 2)
		base += math.Pow(float64(before[j]), 2)
	}
	for j, p := range first {
		kl += p * math.Log(p/then[j])
	}
	near(t, "load of "+c.Text, c.Load, math.Sqrt(moved/base), 1e-4)
	near(t, "KL of "+c.Text, c.KL, kl, 1e-4)
	near(t, "probability", c.After.Prob, then[c.After.ID], 1e-4)
}

func TestImpactRefused(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	edit, text := rome(t, m, sadTom(), someEditor(t, m)), textOf(t, m, "Tom")
	other := *edit
	other.Layer = 40
	for what, c := range map[string]struct {
		opts editing.ImpactOptions
		want error
	}{
		"no edits": {editing.ImpactOptions{Text: text}, editing.ErrImpact},
		"no text":  {editing.ImpactOptions{Edits: []*editing.Edit{edit}}, editing.ErrImpact},
		"a layer":  {editing.ImpactOptions{Edits: []*editing.Edit{&other}, Text: text}, editing.ErrLayer},
		"groups":   {editing.ImpactOptions{Edits: []*editing.Edit{edit}, Text: text, Bins: -1}, editing.ErrImpact},
	} {
		if _, err := editing.Impact(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
