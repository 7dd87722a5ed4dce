package probes_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// build makes an index in a new folder and opens it.
func build(t *testing.T, m *transformer.Model, opts probes.TriggersOptions) *probes.TriggerIndex {
	t.Helper()
	if opts.Out == "" {
		opts.Out = filepath.Join(t.TempDir(), "index.safetensors")
	}
	if _, err := probes.Triggers(t.Context(), m, opts); err != nil {
		t.Fatal(err)
	}
	return openTriggers(t, opts.Out)
}

func openTriggers(t *testing.T, path string) *probes.TriggerIndex {
	t.Helper()
	x, err := probes.OpenTriggers(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// TestTriggersGolden: the tensors of the index are the reference's, in all tails and both policies, and so are the
// moments.
func TestTriggersGolden(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama"} {
			t.Run(family, func(t *testing.T) {
				dir := shared(t, "goldens-routes", family)
				ref := openFile(t, filepath.Join(dir, "golden_ffn.safetensors"))
				m := open(t, be, dir)
				opts := probes.TriggersOptions{
					Texts: probes.Texts{IDs: intRows(ref.rows("corpus.ids"))}, Top: 5, Tails: probes.Tails(), Batch: 100,
					Out: filepath.Join(t.TempDir(), "one"),
				}
				build(t, m, opts)
				got := openFile(t, opts.Out)
				for golden, prefix := range map[string]string{"pos": "", "neg": "negative.", "abs": "magnitude."} {
					compareTriggers(t, got, prefix, ref, "trigger.one."+golden+".")
				}
				for name, golden := range map[string]string{
					"mean": "mean", "variance": "var", "skewness": "skew", "kurtosis": "kurtosis", "max": "max", "min": "min",
					"fraction_active": "fraction_active",
				} {
					_, x := got.floats(name)
					_, want := ref.floats("moments." + golden)
					tolerance := 1e-5
					if name == "skewness" || name == "kurtosis" {
						tolerance = 1e-4
					}
					for i := range want {
						near(t, fmt.Sprint(name, " ", i), x[i], want[i], tolerance)
					}
				}
				opts.Tails, opts.EveryPosition, opts.Out = nil, true, filepath.Join(t.TempDir(), "all")
				build(t, m, opts)
				compareTriggers(t, openFile(t, opts.Out), "", ref, "trigger.all.pos.")
			})
		}
	})
}

// compareTriggers compares values everywhere, and places where no other value of the reference is near.
func compareTriggers(t *testing.T, got file, prefix string, ref file, golden string) {
	t.Helper()
	firm := ref.bytes(golden + "firm")
	shape, _ := got.floats(prefix + "value")
	for name, short := range map[string]string{"value": "value", "sequence": "seq", "position": "pos", "next_id": "next"} {
		s, x := got.floats(prefix + name)
		_, want := ref.floats(golden + short)
		if !slices.Equal(s, shape) || len(x) != len(want) {
			t.Fatalf("%s has shape %v of %d elements, want %d", prefix+name, s, len(x), len(want))
		}
		for i := range want {
			if name == "value" {
				near(t, fmt.Sprint(prefix, name, " ", i), x[i], want[i], 1e-5)
			} else if firm[i] != 0 && x[i] != want[i] {
				t.Errorf("%s%s %d is %v, want %v", prefix, name, i, x[i], want[i])
			}
		}
	}
}

// someRows are ragged sequences of few tokens, many of which begin alike or return whole.
func someRows(vocab int) [][]int {
	r := rand.New(rand.NewPCG(3, 4))
	var rows [][]int
	for i := range 30 {
		row := make([]int, 1+r.IntN(11))
		for j := range row {
			row[j] = 3 + r.IntN(min(6, vocab-3))
		}
		if i > 3 && i%3 == 0 {
			earlier := rows[r.IntN(i)]
			row = append(slices.Clone(earlier[:1+r.IntN(len(earlier))]), row[:len(row)/2]...)
		}
		rows = append(rows, row)
	}
	return rows
}

// rules are options as the plain search of the test takes them.
type rules struct {
	tail    probes.Tail
	every   bool
	window  int
	first   int
	special map[int]bool
}

// plainTriggers finds the examples of one memory by sorting all positions.
func plainTriggers(rows [][]int, at coefOf, r rules) []probes.Trigger {
	order := func(v float64) float64 {
		switch r.tail {
		case probes.Negative:
			return -v
		case probes.Magnitude:
			return math.Abs(v)
		}
		return v
	}
	before := func(a, b probes.Trigger) int {
		switch {
		case order(a.Value) != order(b.Value):
			return cmp.Compare(order(b.Value), order(a.Value))
		case a.Sequence != b.Sequence:
			return a.Sequence - b.Sequence
		}
		return a.Position - b.Position
	}
	var all []probes.Trigger
	for s, row := range rows {
		var mine []probes.Trigger
		for p := r.first; p < len(row); p++ {
			v, chosen := at(s, p)
			if r.special[row[p]] || !chosen {
				continue
			}
			next := -1
			if p+1 < len(row) {
				next = row[p+1]
			}
			mine = append(mine, probes.Trigger{Value: v, Sequence: s, Position: p, NextID: next})
		}
		slices.SortFunc(mine, before)
		if !r.every && len(mine) > 1 {
			mine = mine[:1]
		}
		all = append(all, mine...)
	}
	slices.SortFunc(all, before)
	seen := map[string]bool{}
	var out []probes.Trigger
	for _, e := range all {
		key := append(slices.Clone(rows[e.Sequence][:e.Position+1]), e.NextID)
		key = key[max(0, len(key)-max(0, r.window)):]
		if r.window > 0 && seen[fmt.Sprint(key)] {
			continue
		}
		seen[fmt.Sprint(key)] = true
		out = append(out, e)
	}
	return out
}

// coefOf is a memory's coefficient, and whether its expert was chosen.
type coefOf func(sequence, position int) (float64, bool)

// coefs runs the rows one at a time and gives the coefficients of every memory of a layer. After equal prefixes they are
// equal; rows of other lengths may differ in the last bits, so that of the first such row stands for all.
func coefs(t *testing.T, m *transformer.Model, rows [][]int, layer int) func(memory int) coefOf {
	t.Helper()
	var coef, experts, weights []*transformer.Tensor
	for _, row := range rows {
		r, err := m.Run(t.Context(), [][]int{row}, transformer.Capture{Sites: probes.UpdatesSites(m.Config)})
		if err != nil {
			t.Fatal(err)
		}
		tensor := func(s transformer.Site) *transformer.Tensor {
			x, err := r.Tensor(s, layer)
			if err != nil {
				t.Fatal(err)
			}
			return x
		}
		coef = append(coef, tensor(transformer.Coef))
		if m.Config.HasExperts(layer) {
			experts, weights = append(experts, tensor(transformer.RouterIndices)), append(weights, tensor(transformer.RouterWeights))
		}
		r.Close()
	}
	first := func(s, p int) int {
		return slices.IndexFunc(rows, func(row []int) bool { return len(row) > p && slices.Equal(row[:p+1], rows[s][:p+1]) })
	}
	return func(memory int) coefOf {
		return func(s, p int) (float64, bool) {
			s = first(s, p)
			if experts == nil {
				return float64(coef[s].At(0, p).Data[memory]), true
			}
			hidden := m.Config.FFN.ExpertHidden
			for k, e := range experts[s].At(0, p).Data {
				if int(e) == memory/hidden {
					return float64(coef[s].At(0, p, k).Data[memory%hidden]) * float64(weights[s].At(0, p).Data[k]), true
				}
			}
			return 0, false
		}
	}
}

// TestTriggersPlain: an index holds what sorting all positions gives, by every rule, for memories of experts too. Rows
// of one batch that begin alike have equal coefficients, so their ties are decided too.
func TestTriggersPlain(t *testing.T) {
	backendtest.Long(t)
	for about, opts := range map[string]probes.TriggersOptions{
		"defaults":       {},
		"every position": {EveryPosition: true, Tails: probes.Tails()},
		"no window":      {EveryPosition: true, Window: -1, KeepFirst: true, Top: 40},
		"short window":   {Window: 2, Tails: []probes.Tail{probes.Magnitude}, Top: 3},
		"no special":     {SkipSpecial: true, EveryPosition: true, Window: 3},
	} {
		t.Run(about, func(t *testing.T) {
			backendtest.Each(t, func(t *testing.T, be compute.Backend) {
				for _, family := range []string{"stories", golden("gpt2"), golden("mixtral")} {
					t.Run(filepath.Base(family), func(t *testing.T) {
						m := open(t, be, family)
						opts := opts
						opts.Texts.IDs, opts.Batch = someRows(m.Config.Vocab), 64
						if opts.Top == 0 {
							opts.Top = 5
						}
						comparePlain(t, m, opts)
					})
				}
			})
		})
	}
}

func comparePlain(t *testing.T, m *transformer.Model, opts probes.TriggersOptions) {
	t.Helper()
	r := rules{every: opts.EveryPosition, window: opts.Window, first: 1, special: map[int]bool{}}
	if r.window == 0 {
		r.window = 8
	}
	if opts.KeepFirst {
		r.first = 0
	}
	if opts.SkipSpecial && m.Tokenizer != nil {
		for _, s := range m.Tokenizer.Special() {
			r.special[s.ID] = true
		}
	}
	x := build(t, m, opts)
	for _, layer := range []int{0, m.Config.Layers - 1} {
		of := coefs(t, m, opts.Texts.IDs, layer)
		for memory := range m.Config.Memories(layer) {
			for _, r.tail = range x.Tails {
				n := transformer.Neuron{Layer: layer, Index: memory}
				got, err := x.Triggers(n, r.tail)
				if err != nil {
					t.Fatal(err)
				}
				sameTriggers(t, fmt.Sprint(n, " ", r.tail), got, plainTriggers(opts.Texts.IDs, of(memory), r), opts.Top)
			}
		}
	}
}

// sameTriggers compares examples. Runs of other shapes differ in the last bits, so examples with almost equal values may
// stand in another order; want has those behind the last one too.
func sameTriggers(t *testing.T, what string, got, want []probes.Trigger, top int) {
	t.Helper()
	if len(got) != min(top, len(want)) {
		t.Errorf("%s has %d examples, want %d", what, len(got), min(top, len(want)))
		return
	}
	const tolerance = 2e-6
	for i, g := range got {
		near(t, fmt.Sprint(what, " value ", i), g.Value, want[i].Value, tolerance)
		tied := func(w probes.Trigger) bool {
			return math.Abs(w.Value-g.Value) <= 2*tolerance*math.Max(1, math.Abs(g.Value))
		}
		w := want[i]
		if g.Sequence == w.Sequence && g.Position == w.Position && g.NextID == w.NextID {
			continue
		}
		others := 0
		for _, o := range want {
			if tied(o) {
				others++
			}
		}
		if others < 2 {
			t.Errorf("%s example %d is %v, want %v", what, i, g, w)
		}
	}
}

// TestTies: sequences that begin alike have equal coefficients there, also where lengths differ, and stand in the order of
// the corpus, whatever the batches.
func TestTies(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		rows := [][]int{{1, 400, 300, 10, 20}, {1, 400, 300, 11, 21}, {1, 400, 300, 12, 22}, {1, 400, 300, 10, 23}}
		long := []int{1, 400, 300, 9}
		for len(long) < 60 {
			long = append(long, 500-len(long))
		}
		rows = append(rows, long, append([]int{1, 400, 300, 8}, long[4:20]...))
		for _, batch := range []int{1, 10, 1000} {
			opts := probes.TriggersOptions{Texts: probes.Texts{IDs: rows}, Batch: batch, EveryPosition: true, Window: 3, Top: 120}
			x := build(t, m, opts)
			for memory := range m.Config.Memories(0) {
				got, err := x.Triggers(transformer.Neuron{Layer: 2, Index: memory}, probes.Positive)
				if err != nil {
					t.Fatal(err)
				}
				var at []int // sequences in which position 2 is an example
				var value float64
				for _, e := range got {
					if e.Position == 1 && e.Sequence != 0 {
						t.Errorf("batch %d: position 1 of sequence %d stands for those before it", batch, e.Sequence)
					}
					if e.Position == 2 {
						at = append(at, e.Sequence)
						if len(at) > 1 && e.Value != value {
							t.Errorf("batch %d, memory %d: %v and %v after equal prefixes", batch, memory, value, e.Value)
						}
						value = e.Value
					}
				}
				// 400 300 10 is in sequences 0 and 3, of which the first stays; the others' next tokens differ.
				if !slices.Equal(at, []int{0, 1, 2, 4, 5}) {
					t.Errorf("batch %d, memory %d: position 2 in sequences %v", batch, memory, at)
				}
			}
		}
	})
}

// TestTriggersResume: a job that is stopped again and again goes on where it was and writes the file that one run
// writes, byte for byte.
func TestTriggersResume(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		opts := probes.TriggersOptions{
			Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Batch: 40, Top: 4, Tails: probes.Tails(), SaveEvery: -1,
			Out: filepath.Join(t.TempDir(), "whole"),
		}
		build(t, m, opts)
		want := contents(t, opts.Out)
		opts.Out = filepath.Join(t.TempDir(), "stopped")
		stops := 0
		for ; ; stops++ {
			ctx, cancel := context.WithCancel(t.Context())
			calls := 0
			opts.Progress = func(_, total int) {
				if total > 0 {
					calls++
				}
				if calls == 3 { // the second batch is done
					cancel()
				}
			}
			r, err := probes.Triggers(ctx, m, opts)
			cancel()
			if err == nil {
				if stops > 0 && r.Resumed == 0 {
					t.Error("the last run does not say that it went on")
				}
				break
			}
			if !errors.Is(err, context.Canceled) || stops > 40 {
				t.Fatal(err)
			}
			if _, err := os.Stat(opts.Out); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("a stopped job left its file: %v", err)
			}
		}
		if stops < 3 {
			t.Errorf("stopped only %d times", stops)
		}
		if !slices.Equal(contents(t, opts.Out), want) {
			t.Error("the files differ")
		}
		if list, err := os.ReadDir(filepath.Dir(opts.Out)); err != nil || len(list) != 1 {
			t.Errorf("left behind: %v, %v", list, err)
		}
	})
}

func contents(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
