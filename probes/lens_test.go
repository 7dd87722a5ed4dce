package probes_test

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestLensEqualsTheReference: top token, entropy, and probability and rank of a target, at every state and position.
func TestLensEqualsTheReference(t *testing.T) {
	dir := shared(t, "goldens-routes")
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, filepath.Join(dir, family))
				ref := openFile(t, filepath.Join(dir, family, "golden_ffn.safetensors"))
				ids := ref.ids("prompt.ids")
				all := make([]int, m.Config.Vocab)
				for i := range all {
					all[i] = i
				}
				r, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: ids, Targets: all, Top: 3})
				if err != nil {
					t.Fatal(err)
				}
				for _, at := range r.Positions {
					for _, s := range at.States {
						name := "lens.embed"
						switch s.Site {
						case transformer.ResidMid:
							name = fmt.Sprintf("lens.mid.%d", s.Layer)
						case transformer.ResidPost:
							name = fmt.Sprintf("lens.post.%d", s.Layer)
						}
						checkState(t, fmt.Sprintf("%s, position %d", name, at.Position), s, ref.rows(name)[at.Position])
					}
				}
				compareStats(t, ref, m, ids)
			})
		}
	})
}

// checkState compares a state with the reference's logits for the whole vocabulary.
func checkState(t *testing.T, what string, s probes.LensState, want []float64) {
	t.Helper()
	best, sum := 0, 0.0
	for id, v := range want {
		near(t, fmt.Sprintf("%s, logit %d", what, id), s.Targets[id].Logit, v, 1e-5)
		if v > want[best] {
			best = id
		}
		sum += math.Exp(v)
	}
	entropy := 0.0
	for id, v := range want {
		p := math.Exp(v) / sum
		near(t, fmt.Sprintf("%s, probability %d", what, id), s.Targets[id].Prob, p, 1e-5)
		entropy -= p * math.Log(p)
	}
	near(t, what+", entropy", s.Entropy, entropy, 1e-5)
	if s.Top[0].ID != best || s.Targets[best].Rank != 0 {
		t.Errorf("%s: top token %d of rank %d, want %d", what, s.Top[0].ID, s.Targets[best].Rank, best)
	}
}

// compareStats compares with the reference's table of statistics, whose target is the next token, at the last position
// the model's own.
func compareStats(t *testing.T, ref file, m *transformer.Model, ids []int) {
	t.Helper()
	rank, prob, cross := ref.rows("lens_stat.target_rank"), ref.rows("lens_stat.target_prob"), ref.rows("lens_stat.cross_entropy")
	entropy, kl := ref.rows("lens_stat.entropy"), ref.rows("lens_stat.kl_final")
	top, most := ref.rows("lens_stat.top1"), ref.rows("lens_stat.max_prob")
	r, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: ids, Next: true, Top: 1})
	if err != nil {
		t.Fatal(err)
	}
	for p, at := range r.Positions {
		for i, s := range at.States {
			what := fmt.Sprintf("position %d, state %d", p, i)
			near(t, what+", probability", s.Targets[0].Prob, prob[i][p], 1e-5)
			near(t, what+", cross-entropy", -math.Log(s.Targets[0].Prob), cross[i][p], 1e-5)
			near(t, what+", entropy", s.Entropy, entropy[i][p], 1e-5)
			near(t, what+", divergence", s.KL, kl[i][p], 1e-5)
			near(t, what+", largest probability", s.Top[0].Prob, most[i][p], 1e-5)
			if s.Targets[0].Rank != int(rank[i][p]) || s.Top[0].ID != int(top[i][p]) {
				t.Errorf("%s: rank %d, top %d, want %v, %v", what, s.Targets[0].Rank, s.Top[0].ID, rank[i][p], top[i][p])
			}
		}
	}
}

// TestLensEndsWithTheModel: in every family, the last state says what the model says, and by default follows it.
func TestLensEndsWithTheModel(t *testing.T) {
	entries, err := os.ReadDir(golden(""))
	if err != nil {
		t.Fatal(err)
	}
	ids := []int{3, 17, 5, 40, 9}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			t.Run(e.Name(), func(t *testing.T) {
				m := open(t, be, golden(e.Name()))
				r, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: ids})
				if err != nil {
					t.Fatal(err)
				}
				for p, at := range r.Positions {
					want, err := probes.Predict(t.Context(), m, probes.PredictOptions{IDs: [][]int{ids}, Position: &p, Top: 5})
					if err != nil {
						t.Fatal(err)
					}
					last := at.States[len(at.States)-1]
					if at.Position != p || last.Targets[0].ID != want.Rows[0].Next[0].ID || last.Targets[0].Rank != 0 {
						t.Errorf("position %d follows %+v, the model says %+v", p, last.Targets, want.Rows[0].Next[0])
					}
					near(t, "entropy", last.Entropy, want.Rows[0].Entropy, 1e-5)
					for k, next := range want.Rows[0].Next {
						near(t, fmt.Sprintf("position %d, place %d", p, k), last.Top[k].Logit, next.Logit, 2e-5)
					}
				}
			})
		}
	})
}

func TestLensDoesNotDependOnTheGroup(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	var ids []int
	for i := range 30 {
		ids = append(ids, 260+i)
	}
	all, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: ids})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []int{0, 7, 29} {
		one, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: ids, Positions: []int{p - 30}})
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range one.Positions[0].States {
			want := all.Positions[p].States[i]
			if s.Layer != want.Layer || s.Site != want.Site || s.Targets[0].Rank != want.Targets[0].Rank {
				t.Errorf("position %d: %+v alone, %+v among others", p, s, want)
			}
			near(t, "probability", s.Targets[0].Prob, want.Targets[0].Prob, 1e-6)
		}
	}
}

func TestLensRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	for _, c := range []struct {
		opts probes.LensOptions
		want error
	}{
		{probes.LensOptions{}, transformer.ErrEmptyPrompt},
		{probes.LensOptions{IDs: []int{512}}, transformer.ErrTokenRange},
		{probes.LensOptions{IDs: []int{1}, Targets: []int{-1}}, transformer.ErrTokenRange},
		{probes.LensOptions{IDs: []int{1}, Positions: []int{-2}}, probes.ErrPosition},
		{probes.LensOptions{IDs: make([]int, 513)}, transformer.ErrTooLong},
	} {
		if _, err := probes.Lens(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%v: got %v", c.want, err)
		}
	}
	empty := probes.PredictOptions{IDs: [][]int{{1}, {}}}
	if _, err := probes.Predict(t.Context(), m, empty); !errors.Is(err, transformer.ErrEmptyPrompt) {
		t.Errorf("got %v", err)
	}
}

// TestPredictRows: rows of different length give what they give alone, read at the end or elsewhere.
func TestPredictRows(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		rows := [][]int{{1, 403, 407}, {1, 378, 432, 383, 286}, {1}}
		for _, position := range []*int{nil, new(int)} {
			together, err := probes.Predict(t.Context(), m, probes.PredictOptions{IDs: rows, Top: 3, Position: position})
			if err != nil {
				t.Fatal(err)
			}
			for i, row := range rows {
				alone, err := probes.Predict(t.Context(), m, probes.PredictOptions{IDs: [][]int{row}, Top: 3, Position: position})
				if err != nil {
					t.Fatal(err)
				}
				a, b := together.Rows[i], alone.Rows[0]
				if a.Position != b.Position || position == nil && a.Position != len(row)-1 {
					t.Errorf("row %d is read at %d, alone at %d", i, a.Position, b.Position)
				}
				for k := range a.Next {
					near(t, fmt.Sprintf("row %d, place %d", i, k), a.Next[k].Logit, b.Next[k].Logit, 1e-5)
				}
			}
		}
	})
}
