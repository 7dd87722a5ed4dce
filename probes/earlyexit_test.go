package probes_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// described is a position in plain words: its strongest memories by layer, and its events.
type described struct {
	strongest [][]string
	event     probes.SaturationPosition
}

// describe lists the positions of rows by other analyses than the one under test.
func describe(t *testing.T, m *transformer.Model, rows [][]int) []described {
	t.Helper()
	s := saturate(t, m, probes.SaturationOptions{Rows: rows, List: true})
	var out []described
	for _, e := range s.Events {
		u, err := probes.Updates(t.Context(), m, probes.UpdatesOptions{
			IDs: rows[e.Row], Positions: []int{e.Position}, Top: 10, Tokens: 1,
		})
		if err != nil {
			t.Fatal(err)
		}
		d := described{event: e}
		for _, l := range u.Positions[0].Layers {
			var names []string
			for _, v := range l.Updates {
				names = append(names, v.Neuron)
			}
			d.strongest = append(d.strongest, names)
		}
		out = append(out, d)
	}
	return out
}

// leavesAt is the rule by its formula.
func leavesAt(x described, train []described, layers int) int {
	for l := range layers - 1 {
		most, mean, size := make([]int, layers), make([]float64, layers), make([]float64, layers)
		for _, y := range train {
			same := 0
			for r, name := range y.strongest[l] {
				if name == x.strongest[l][r] {
					same++
				}
			}
			at := y.event.Saturation
			most[at] = max(most[at], same)
			mean[at] = (mean[at]*size[at] + float64(same)) / (size[at] + 1)
			size[at]++
		}
		leaves := size[l] > 0
		for later := l + 1; later < layers; later++ {
			if size[later] > 0 && !(most[l] > most[later] && mean[l] > mean[later]+1e-12) {
				leaves = false
			}
		}
		if leaves {
			return l
		}
	}
	return layers - 1
}

// exitRows are rows of a small text.
func exitRows(t *testing.T, m *transformer.Model) [][]int {
	t.Helper()
	var rows [][]int
	for _, text := range []string{
		"Once upon a time, there was a little girl named Lily.", "One day, Tom went to the park with his mom.",
		"Once upon a time, there was a big dog named Max.", "Lily was very happy. She said thank you to her mom.",
		"Tom and his dad went to the park.", "The cat was sad. It wanted to play with the ball.",
		"Once upon a time, there was a little boy named Tim.", "One day, Lily went to the park with her friend.",
		"The dog was happy. It ran to the boy.", "Her mom said that she was a good girl.",
		"Once upon a time, there was a little cat.",
	} {
		rows = append(rows, tokenIDs(t, m, text))
	}
	return rows
}

// TestEarlyExitIsItsFormula: shares of exits, accuracy and layers saved are those of the rule written out over the
// memories that Updates lists, and those of saturation and of a level of confidence.
func TestEarlyExitIsItsFormula(t *testing.T) {
	backendtest.Long(t)
	m := open(t, backendtest.Open(t, "xla:cpu"), "stories")
	rows, layers := exitRows(t, m), m.Config.Layers
	r, err := probes.EarlyExit(t.Context(), m, probes.EarlyExitOptions{Rows: rows, Seeds: []int64{5}, Execute: true})
	if err != nil {
		t.Fatal(err)
	}
	held := map[int]bool{}
	for _, row := range rand.New(rand.NewPCG(5, 0)).Perm(len(rows))[:2] {
		held[row] = true
	}
	var train, test []described
	for _, d := range describe(t, m, rows) {
		if held[d.event.Row] {
			test = append(test, d)
		} else {
			train = append(train, d)
		}
	}
	exits, right, saved, oracle := make([]float64, layers), 0.0, 0.0, 0.0
	for _, x := range test {
		l := leavesAt(x, train, layers)
		n := float64(len(test))
		exits[l] += 1 / n
		saved += float64(layers-1-l) / n
		oracle += float64(layers-1-x.event.Saturation) / n
		lens, err := probes.Lens(t.Context(), m, probes.LensOptions{IDs: rows[x.event.Row], Positions: []int{x.event.Position}, Top: 1})
		if err != nil {
			t.Fatal(err)
		}
		if lens.Positions[0].States[2*l+2].Top[0].ID == x.event.Final {
			right += 1 / n
		}
	}
	for l, layer := range r.Layers {
		near(t, "exits", layer.Exits, exits[l], 1e-9)
	}
	if exits[layers-1] == 1 {
		t.Error("the rule never leaves early here, nothing is tested")
	}
	near(t, "accuracy", r.Rules[0].Mean.Accuracy, right, 1e-9)
	near(t, "saved", r.Rules[0].Mean.Saved, saved, 1e-9)
	last := r.Rules[len(r.Rules)-1]
	if last.Rule != "oracle" || last.Mean.Accuracy < 1-1e-9 {
		t.Errorf("the oracle is wrong: %+v", last)
	}
	near(t, "oracle", last.Mean.Saved, oracle, 1e-9)
	if e := r.Executed; e == nil || e.Accuracy <= 0 || e.Accuracy > 1+1e-9 || e.Saved <= 0 {
		t.Errorf("executed: %+v", e)
	}
}

// TestEarlyExitThatNeverLeaves: where all memories are one cluster every overlap is the same, nothing leaves, and the
// run with nothing left out is the model.
func TestEarlyExitThatNeverLeaves(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	opts := probes.EarlyExitOptions{Rows: exitRows(t, m), Seeds: []int64{1, 2}, Execute: true}
	for l := range m.Config.Layers {
		opts.Clusters = append(opts.Clusters, make([]int, m.Config.Memories(l)))
	}
	r, err := probes.EarlyExit(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	near(t, "accuracy", r.Rules[0].Mean.Accuracy, 1, 1e-9)
	near(t, "saved", r.Rules[0].Mean.Saved, 0, 1e-9)
	near(t, "executed accuracy", r.Executed.Accuracy, 1, 1e-9)
	near(t, "executed saved", r.Executed.Saved, 0, 1e-9)
	opts.Clusters = opts.Clusters[1:]
	if _, err := probes.EarlyExit(t.Context(), m, opts); !errors.Is(err, probes.ErrNeuron) {
		t.Errorf("clusters for fewer layers: %v", err)
	}
	if _, err := probes.EarlyExit(t.Context(), m, probes.EarlyExitOptions{Rows: opts.Rows[:1]}); !errors.Is(err, probes.ErrPosition) {
		t.Errorf("nothing to learn from: %v", err)
	}
}
