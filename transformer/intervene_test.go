package transformer_test

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// bench is a golden checkpoint opened on a backend, beside the reference and with sequences of unequal lengths.
type bench struct {
	*transformer.Model
	ref   *reference
	ids   [][]int
	other *transformer.Run // of other tokens, with every site
	rng   *rand.Rand
	t     *testing.T
}

// lab opens a family of the reference. Its three rows have 9, 6 and 4 tokens, so that there is padding in every
// direction.
func lab(t *testing.T, be compute.Backend, family string) *bench {
	t.Helper()
	g := readGolden(t, "../testdata/goldens/"+family)
	b := &bench{Model: g.open(t, be, loader.Options{}), ref: readReference(t, g), rng: rand.New(rand.NewPCG(7, 11)), t: t}
	b.ids = b.sequences(9, 6, 4)
	b.other = run(t, b.Model, b.sequences(9, 6, 4), everySite(b.Model))
	return b
}

// sequences are random token ids.
func (b *bench) sequences(lengths ...int) [][]int {
	ids := make([][]int, len(lengths))
	for i, n := range lengths {
		for range n {
			ids[i] = append(ids[i], b.rng.IntN(b.Config.Vocab))
		}
	}
	return ids
}

// values are normal random numbers.
func (b *bench) values(n int) []float32 {
	out := make([]float32, n)
	for i := range out {
		out[i] = float32(b.rng.NormFloat64())
	}
	return out
}

// directions are k random orthonormal vectors.
func (b *bench) directions(k, width int) [][]float32 {
	var out [][]float32
	for range k {
		u := b.values(width)
		for _, w := range out {
			along := dot(u, w)
			for i := range u {
				u[i] -= float32(along) * w[i]
			}
		}
		norm := float32(math.Sqrt(dot(u, u)))
		for i := range u {
			u[i] /= norm
		}
		out = append(out, u)
	}
	return out
}

func dot(a, b []float32) float64 {
	sum := 0.0
	for i := range a {
		sum += float64(a[i]) * float64(b[i])
	}
	return sum
}

// width is the number of features of one position at a site as interventions count them, and of each unit.
func (b *bench) width(s transformer.Site, layer int) (units, each int) {
	c := b.Config
	switch s {
	case transformer.Embed:
		return c.EmbedWidth, 1
	case transformer.Logits:
		return c.Vocab, 1
	case transformer.Query, transformer.HeadOut:
		return c.Attention.Heads, c.Attention.HeadSize
	case transformer.Key, transformer.Value:
		return c.Attention.KVHeads, c.Attention.HeadSize
	case transformer.Pattern:
		return c.Attention.Heads, len(b.ids[0])
	case transformer.Pre, transformer.GatePre, transformer.Up, transformer.Coef:
		return c.Memories(layer), 1
	case transformer.RouterLogits:
		return c.FFN.Experts, 1
	case transformer.RouterWeights:
		return c.FFN.TopK, 1
	case transformer.SharedCoef:
		return c.FFN.SharedHidden, 1
	case transformer.SharedGate:
		return 1, 1
	}
	return c.Width, 1
}

// places are the sites where a model can be changed, each with one of its layers.
func (b *bench) places() []spot {
	var all []spot
	for _, s := range everySite(b.Model).Sites {
		at := spot{site: s, layer: -1}
		for l := range b.Config.Layers {
			if s.InBlock() && b.Config.HasSite(s, l) && (at.layer < 0 || b.rng.IntN(2) == 0) {
				at.layer = l
			}
		}
		if s != transformer.RouterIndices {
			all = append(all, at)
		}
	}
	return all
}

// canProject reports whether projections are meant for a place.
func (b *bench) canProject(at spot) bool {
	inExperts := at.layer >= 0 && b.Config.HasExperts(at.layer) && isMemory(at.site)
	return at.site != transformer.Pattern && at.site != transformer.Logits && !inExperts
}

// operations are one intervention of every kind at a place, for whole batches and for chosen rows, positions and units.
func (b *bench) operations(at spot) []transformer.Intervention {
	units, each := b.width(at.site, at.layer)
	some := []int{units - 1, 0}[:min(2, units)]
	two := []int{5, 1}
	base := transformer.Intervention{Site: at.site, Layer: at.layer}
	with := func(change func(iv *transformer.Intervention)) transformer.Intervention {
		iv := base
		change(&iv)
		return iv
	}
	all := []transformer.Intervention{
		with(func(iv *transformer.Intervention) { iv.Op, iv.Value = transformer.OpSet, []float32{0.3} }),
		with(func(iv *transformer.Intervention) {
			iv.Op, iv.Value, iv.Units = transformer.OpAdd, []float32{-0.7}, some
		}),
		with(func(iv *transformer.Intervention) { iv.Op, iv.Value = transformer.OpScale, []float32{1.5} }),
		with(func(iv *transformer.Intervention) { iv.Op = transformer.OpZero }),
		with(func(iv *transformer.Intervention) { iv.Op, iv.Rows, iv.Units = transformer.OpZero, []int{1}, some }),
		with(func(iv *transformer.Intervention) {
			iv.Op, iv.Value, iv.Positions = transformer.OpSet, b.values(units*each), two
		}),
		with(func(iv *transformer.Intervention) {
			iv.Op, iv.Rows, iv.Positions, iv.Units = transformer.OpAdd, []int{2, 0}, two, some
			iv.Value = b.values(2 * 2 * len(some) * each)
		}),
		with(func(iv *transformer.Intervention) { iv.Op, iv.From = transformer.OpCopy, b.other }),
		with(func(iv *transformer.Intervention) {
			iv.Op, iv.From, iv.Rows, iv.Positions, iv.Units = transformer.OpCopy, b.other, []int{0, 1}, two, some
		}),
	}
	if transformer.Clamps(at.site) {
		all = append(all,
			with(func(iv *transformer.Intervention) {
				iv.Op, iv.Value = transformer.OpAtLeast, []float32{-0.05}
			}),
			with(func(iv *transformer.Intervention) {
				iv.Op, iv.Value, iv.Rows, iv.Positions, iv.Units = transformer.OpAtMost, b.values(2*2*len(some)*each), []int{2, 0}, two, some
			}))
	}
	if at.site != transformer.Pattern {
		all = append(all, with(func(iv *transformer.Intervention) {
			iv.Op, iv.From, iv.Units, iv.Positions = transformer.OpMean, b.other, some, two
		}))
	}
	if b.canProject(at) {
		all = append(all,
			with(func(iv *transformer.Intervention) {
				iv.Op, iv.Directions = transformer.OpProject, b.directions(1, units*each)
			}),
			with(func(iv *transformer.Intervention) {
				n := min(2, units*each)
				iv.Op, iv.Directions, iv.Value = transformer.OpProject, b.directions(n, units*each), b.values(n)
				iv.Rows, iv.Positions = []int{0, 2}, two
			}))
	}
	return all
}

// sameAs runs the model under interventions and compares every site of every layer with the reference.
func (b *bench) sameAs(t *testing.T, what string, ivs ...transformer.Intervention) {
	t.Helper()
	r, err := b.Run(t.Context(), b.ids, everySite(b.Model), ivs...)
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	defer r.Close()
	b.compare(t, what, r, ivs)
}

// compare holds a run to the reference under the same interventions.
func (b *bench) compare(t *testing.T, what string, r *transformer.Run, ivs []transformer.Intervention) {
	t.Helper()
	want := b.ref.trace(b.ids, ivs)
	for _, s := range everySite(b.Model).Sites {
		for l := range b.Config.Layers {
			if !s.InBlock() {
				l = -1
			} else if !b.Config.HasSite(s, l) {
				continue
			}
			w := want.tensor(b.Config, b.ids, s, l)
			got, err := r.Tensor(s, l)
			if err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprintf("%s: %s of layer %d", what, s, l), got, w, 2.5*tolerance(string(s), w))
			if t.Failed() {
				return // what follows differs too
			}
			if l < 0 {
				break
			}
		}
	}
}

func describe(iv *transformer.Intervention) string {
	return fmt.Sprintf("%s at %s of layer %d, rows %v, positions %v, units %v, %d values", iv.Op, iv.Site, iv.Layer,
		iv.Rows, iv.Positions, iv.Units, len(iv.Value))
}

// onReference runs a test for families of the reference on every backend; XLA compiles each variant of a program, so it
// gets the second list.
func onReference(t *testing.T, onGo, onXLA []string, test func(t *testing.T, b *bench)) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		list := onGo
		if strings.HasPrefix(strings.ToLower(be.Name()), "xla") {
			list = onXLA
		}
		for _, family := range list {
			t.Run(family, func(t *testing.T) { test(t, lab(t, be, family)) })
		}
	})
}

// TestEveryOperationAtEverySite: each operation at each site, on its own, changes a run as plain loops say.
func TestEveryOperationAtEverySite(t *testing.T) {
	backendtest.Long(t)
	onReference(t, referenceFamilies(), nil, func(t *testing.T, b *bench) {
		for _, at := range b.places() {
			ops := b.operations(at)
			if !slices.Contains([]string{"gpt2", "gemma2", "qwen2_moe"}, b.Config.Family) {
				b.rng.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
				ops = ops[:4] // the rest of the engine does not depend on the operation
			}
			for _, iv := range ops {
				if b.sameAs(t, describe(&iv), iv); t.Failed() {
					return
				}
			}
		}
	})
}

// TestManyInterventionsAtOnce: several operations at a site act in their order, projections last, and sites act
// together.
func TestManyInterventionsAtOnce(t *testing.T) {
	onReference(t, referenceFamilies(), []string{"mixtral"}, func(t *testing.T, b *bench) {
		for range 3 {
			var ivs []transformer.Intervention
			for _, at := range b.places() {
				if at.site == transformer.RouterLogits {
					continue // keeps the routing away from ties
				}
				at.layer = min(at.layer, 1)
				ops := b.operations(at)
				for range 3 {
					ivs = append(ivs, ops[b.rng.IntN(len(ops))])
				}
				if b.canProject(at) {
					ivs = append(ivs, ops[len(ops)-1]) // so that all rounds have one variant of the program
				}
			}
			if b.sameAs(t, "all sites", ivs...); t.Failed() {
				return
			}
		}
	})
}

// TestPatternSources: single entries of attention patterns, and rows of patterns for chosen sources.
func TestPatternSources(t *testing.T) {
	onReference(t, referenceFamilies(), nil, func(t *testing.T, b *bench) {
		at := transformer.Intervention{Site: transformer.Pattern, Layer: 1}
		knockout := at
		knockout.Op, knockout.Positions, knockout.Sources = transformer.OpZero, []int{5, 3}, []int{0, 2}
		b.sameAs(t, "knockout", knockout)
		set := at
		set.Op, set.Rows, set.Positions, set.Sources, set.Units = transformer.OpSet, []int{2, 0}, []int{2}, []int{2, 0}, []int{1}
		set.Value = []float32{0.25, 0.75, 0.5, 0.1}
		b.sameAs(t, "entries", set)
		whole := at
		whole.Op, whole.Value = transformer.OpSet, b.values(b.Config.Attention.Heads*9)
		b.sameAs(t, "whole patterns", whole)
		one := at
		one.Op, one.Rows, one.From, one.Sources = transformer.OpCopy, []int{0}, b.other, []int{1}
		b.sameAs(t, "copied sources", one)
	})
}

// TestOrderAtOneSite: scale then add is not add then scale; setting forgets what came before; projections come last and
// one after the other, also along directions that are not orthogonal to each other.
func TestOrderAtOneSite(t *testing.T) {
	onReference(t, []string{"gpt2", "mixtral"}, []string{"gpt2"}, func(t *testing.T, b *bench) {
		at := transformer.Intervention{Site: transformer.ResidMid, Layer: 1}
		scale, add, set, project, again := at, at, at, at, at
		scale.Op, scale.Value = transformer.OpScale, []float32{2}
		add.Op, add.Value = transformer.OpAdd, b.values(b.Config.Width)
		set.Op, set.Value, set.Positions = transformer.OpSet, []float32{0.5}, []int{1, 2}
		project.Op, project.Directions, project.Value = transformer.OpProject, b.directions(2, b.Config.Width), []float32{1}
		again.Op, again.Directions = transformer.OpProject, b.directions(1, b.Config.Width)
		for _, ivs := range [][]transformer.Intervention{
			{scale, add, project, again},
			{add, scale, again, project},
			{add, set, scale, project, again},
			{project, set, add, again},
			{set, project, again, project},
		} {
			names := ""
			for _, iv := range ivs {
				names += iv.Op.String() + " "
			}
			b.sameAs(t, names, ivs...)
		}
	})
}

// TestOrderOfBounds: bounds hold for what came before them, and move and turn over with what comes after.
func TestOrderOfBounds(t *testing.T) {
	onReference(t, []string{"gpt2", "mixtral"}, []string{"llama"}, func(t *testing.T, b *bench) {
		at := transformer.Intervention{Site: transformer.Coef, Layer: 1}
		op := func(o transformer.Op, v float32) transformer.Intervention {
			iv := at
			iv.Op, iv.Value = o, []float32{v}
			return iv
		}
		low, high := op(transformer.OpAtLeast, -0.02), op(transformer.OpAtMost, 0.05)
		turn, add := op(transformer.OpScale, -3), op(transformer.OpAdd, 0.1)
		set := op(transformer.OpSet, 0.5)
		set.Positions, set.Units = []int{1, 3}, []int{2, 0}
		for _, ivs := range [][]transformer.Intervention{
			{low, high},
			{high, turn, low},
			{low, turn, add, high},
			{set, high},
			{high, set},
			{low, op(transformer.OpScale, 0), add},
			{low, high, op(transformer.OpAtLeast, 0.08)},
		} {
			names := ""
			for _, iv := range ivs {
				names += fmt.Sprint(iv.Op, iv.Value, " ")
			}
			b.sameAs(t, names, ivs...)
		}
	})
}

// identical fails unless two runs agree at every site.
func identical(t *testing.T, what string, a, b *transformer.Run, m *transformer.Model, tol float64) {
	t.Helper()
	for _, s := range everySite(m).Sites {
		for l := range m.Config.Layers {
			if !m.Config.HasSite(s, l) {
				continue
			}
			x, err := a.Tensor(s, l)
			if err != nil {
				t.Fatal(err)
			}
			y, err := b.Tensor(s, l)
			if err != nil {
				t.Fatal(err)
			}
			near(t, fmt.Sprintf("%s: %s of layer %d", what, s, l), x, y, tol)
		}
	}
}

// TestIdentities: copying a run's own values, scaling by 1 and adding 0 change nothing; zero and add is set; projecting
// twice is projecting once; naming all rows and positions is naming none.
func TestIdentities(t *testing.T) {
	onReference(t, []string{"gemma2", "gptj", "qwen2_moe"}, []string{"gemma2"}, func(t *testing.T, b *bench) {
		plain := run(t, b.Model, b.ids, everySite(b.Model))
		rows, positions := upTo(len(b.ids)), upTo(len(b.ids[0]))
		at := transformer.Intervention{Site: transformer.Coef, Layer: 0, Rows: rows, Positions: positions}
		own, scale, add, zero, set, named := at, at, at, at, at, at
		own.Op, own.From = transformer.OpCopy, plain
		scale.Op, scale.Value = transformer.OpScale, []float32{1}
		add.Op, add.Value = transformer.OpAdd, []float32{0}
		for _, iv := range []transformer.Intervention{own, scale, add} {
			identical(t, describe(&iv), run(t, b.Model, b.ids, everySite(b.Model), iv), plain, b.Model, 1e-5)
		}
		value := b.values(b.Config.Memories(0))
		zero.Op = transformer.OpZero
		add.Value = value
		set.Op, set.Value = transformer.OpSet, value
		identical(t, "zero and add is set", run(t, b.Model, b.ids, everySite(b.Model), zero, add),
			run(t, b.Model, b.ids, everySite(b.Model), set), b.Model, 0)
		narrow := transformer.Intervention{Site: transformer.Coef, Op: transformer.OpScale, Value: []float32{3}}
		named.Op, named.Value = transformer.OpScale, []float32{3}
		identical(t, "all rows and positions by name", run(t, b.Model, b.ids, everySite(b.Model), narrow),
			run(t, b.Model, b.ids, everySite(b.Model), named), b.Model, 1e-5)
		once := transformer.Intervention{Site: transformer.ResidPre, Layer: 1, Op: transformer.OpProject, Rows: rows}
		once.Directions = b.directions(2, b.Config.Width)
		first := run(t, b.Model, b.ids, everySite(b.Model), once)
		identical(t, "projected twice", run(t, b.Model, b.ids, everySite(b.Model), once, once), first, b.Model, 2e-5)
		x, err := first.Tensor(transformer.ResidPre, 1)
		if err != nil {
			t.Fatal(err)
		}
		for p := range b.ids[0] {
			if along := dot(x.At(0, p).Data, once.Directions[1]); math.Abs(along) > 1e-5 {
				t.Errorf("position %d keeps %g along a direction that was projected out", p, along)
			}
		}
	})
}

// TestCopyOfEverythingUpstream: a run into which another run's residual stream is copied at the lowest layer goes on
// like that run.
func TestCopyOfEverythingUpstream(t *testing.T) {
	onReference(t, []string{"llama", "bert"}, []string{"llama"}, func(t *testing.T, b *bench) {
		iv := transformer.Intervention{Site: transformer.ResidPre, Layer: 0, Op: transformer.OpCopy, From: b.other}
		got := run(t, b.Model, b.ids, everySite(b.Model), iv)
		for _, s := range []transformer.Site{transformer.ResidPost, transformer.Pattern, transformer.Coef} {
			x, err := got.Tensor(s, b.Config.Layers-1)
			if err != nil {
				t.Fatal(err)
			}
			want, err := b.other.Tensor(s, b.Config.Layers-1)
			if err != nil {
				t.Fatal(err)
			}
			near(t, string(s), x, want, 1e-5)
		}
	})
}

// TestOnlyTheQuadrantChanges: what lies in earlier layers, at earlier positions or in other rows stays the same to the
// last bit.
func TestOnlyTheQuadrantChanges(t *testing.T) {
	onReference(t, []string{"gpt2", "gpt_neox", "gemma2", "mixtral"}, []string{"gpt2"}, func(t *testing.T, b *bench) {
		change := func(by float32) *transformer.Run {
			return run(t, b.Model, b.ids, everySite(b.Model), transformer.Intervention{
				Site: transformer.AttnOut, Layer: 1, Op: transformer.OpAdd, Rows: []int{0}, Positions: []int{4}, Value: []float32{by},
			})
		}
		before, after := change(0), change(3)
		for l := range b.Config.Layers {
			x, err := before.Tensor(transformer.ResidPost, l)
			if err != nil {
				t.Fatal(err)
			}
			y, err := after.Tensor(transformer.ResidPost, l)
			if err != nil {
				t.Fatal(err)
			}
			for row := range b.ids {
				for p := range b.ids[row] {
					same := slices.Equal(x.At(row, p).Data, y.At(row, p).Data)
					inQuadrant := row == 0 && l >= 1 && p >= 4 // a window may hide the change from some of it
					if !same && !inQuadrant || same && inQuadrant && p == 4 {
						t.Errorf("layer %d, row %d, position %d: same is %t", l, row, p, same)
					}
				}
			}
		}
	})
}

// TestBadInterventions: each thing that cannot be done is refused before the run, and the message says what.
func TestBadInterventions(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		b, experts := lab(t, be, "gpt2"), lab(t, be, "qwen2_moe")
		logits := run(t, b.Model, b.ids, transformer.Capture{Sites: []transformer.Site{transformer.Logits}})
		for _, c := range badInterventions(b, logits) {
			refused(t, b, c)
		}
		for _, c := range badExpertInterventions(experts) {
			refused(t, experts, c)
		}
	})
}

type badIntervention struct {
	iv   transformer.Intervention
	kind error
	text string
}

func refused(t *testing.T, b *bench, c badIntervention) {
	t.Helper()
	r, err := b.Run(t.Context(), b.ids, transformer.Capture{Sites: []transformer.Site{transformer.Logits}}, c.iv)
	if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.text) {
		t.Errorf("%s: error %v, want %q", describe(&c.iv), err, c.text)
	}
	if r != nil {
		r.Close()
	}
}

func badInterventions(b *bench, logits *transformer.Run) []badIntervention {
	d, bad, site := b.Config.Width, transformer.ErrIntervention, transformer.ErrSite
	one := []float32{1}
	unit := b.directions(1, d)
	long := [][]float32{append([]float32{2}, make([]float32, d-1)...)}
	askew := append(b.directions(1, d), b.directions(1, d)...)
	iv := func(s transformer.Site, op transformer.Op, change func(*transformer.Intervention)) transformer.Intervention {
		out := transformer.Intervention{Site: s, Op: op}
		if change != nil {
			change(&out)
		}
		return out
	}
	mid := transformer.ResidMid
	type I = transformer.Intervention
	return []badIntervention{
		{iv("resid_middle", transformer.OpZero, nil), site, "resid_middle"},
		{iv(transformer.GatePre, transformer.OpZero, nil), site, "gpt2 has no gate_pre"},
		{iv(mid, transformer.OpZero, func(i *I) { i.Layer = 3 }), bad, "the model has 3 layers"},
		{iv(mid, transformer.OpZero, func(i *I) { i.Layer = -1 }), bad, "the model has 3 layers"},
		{iv(mid, transformer.OpZero, func(i *I) { i.Rows = []int{3} }), bad, "row 3, there are 3"},
		{iv(mid, transformer.OpZero, func(i *I) { i.Rows = []int{-1} }), bad, "row -1, there are 3"},
		{iv(mid, transformer.OpZero, func(i *I) { i.Positions = []int{9} }), bad, "position 9, there are 9"},
		{iv(mid, transformer.OpZero, func(i *I) { i.Units = []int{d} }), bad, "unit 24, there are 24"},
		{iv(transformer.Query, transformer.OpZero, func(i *I) { i.Units = []int{3} }), bad, "unit 3, there are 3"},
		{iv(transformer.Pattern, transformer.OpZero, func(i *I) { i.Sources = []int{9} }), bad, "source 9, there are 9"},
		{iv(mid, transformer.OpZero, func(i *I) { i.Sources = []int{1} }), bad, "sources are for pattern only"},
		{iv(mid, transformer.OpSet, nil), bad, "set without a value"},
		{iv(mid, transformer.OpAdd, nil), bad, "add without a value"},
		{iv(mid, transformer.OpScale, nil), bad, "scale without a value"},
		{iv(mid, transformer.OpAtMost, func(i *I) { i.Value = one }), bad, "no bounds at this site"},
		{iv(transformer.Coef, transformer.OpAtLeast, nil), bad, "at least without a value"},
		{iv(mid, transformer.OpSet, func(i *I) { i.Value = make([]float32, d+1) }), bad, "25 values for 3 rows, 9 positions and 24 components"},
		{iv(mid, transformer.OpSet, func(i *I) { i.Value = make([]float32, 3*9*d) }), bad, "a value per position needs the positions named"},
		{iv(transformer.Embed, transformer.OpSet, func(i *I) { i.Value = make([]float32, 2) }), bad, "2 values"},
		{iv(transformer.Final, transformer.OpSet, func(i *I) { i.Value = make([]float32, 2) }), bad, "2 values"},
		{iv(transformer.Logits, transformer.OpSet, func(i *I) { i.Value = make([]float32, 2) }), bad, "2 values"},
		{iv(mid, transformer.OpCopy, nil), bad, "copy from a run that did not capture the site"},
		{iv(mid, transformer.OpMean, func(i *I) { i.From = logits }), bad, "mean from a run that did not capture the site"},
		{iv(transformer.Pattern, transformer.OpMean, func(i *I) { i.From = b.other }), bad, "the mean of a pattern is not a pattern"},
		{iv(mid, transformer.OpProject, nil), bad, "project needs directions"},
		{iv(mid, transformer.OpProject, func(i *I) { i.Directions = [][]float32{one} }), bad, "direction of 1 components, the site has [24]"},
		{iv(mid, transformer.OpProject, func(i *I) { i.Directions, i.Units = unit, []int{0} }), bad, "over all components"},
		{iv(mid, transformer.OpProject, func(i *I) { i.Directions = long }), bad, "orthonormal"},
		{iv(mid, transformer.OpProject, func(i *I) { i.Directions = askew }), bad, "orthonormal"},
		{iv(mid, transformer.OpProject, func(i *I) { i.Directions, i.Value = unit, []float32{1, 2} }), bad, "2 values for 1 directions"},
		{iv(transformer.Pattern, transformer.OpProject, func(i *I) { i.Directions = unit }), bad, "no projection at this site"},
		{iv(transformer.Logits, transformer.OpProject, func(i *I) { i.Directions = unit }), bad, "no projection at this site"},
		{iv(mid, transformer.Op(77), nil), bad, "unknown operation 77"},
		{iv(mid, transformer.Op(-1), nil), bad, "unknown operation -1"},
	}
}

func badExpertInterventions(b *bench) []badIntervention {
	bad := transformer.ErrIntervention
	unrouted := func(s transformer.Site) *transformer.Run {
		r, err := b.Run(b.t.Context(), b.ids, transformer.Capture{Sites: []transformer.Site{s}})
		if err != nil {
			b.t.Fatal(err)
		}
		return r
	}(transformer.Coef)
	return []badIntervention{
		{transformer.Intervention{Site: transformer.RouterIndices, Op: transformer.OpZero}, bad, "change router_logits"},
		{transformer.Intervention{Site: transformer.RouterLogits, Layer: 1, Op: transformer.OpZero}, transformer.ErrSite, "no router_logits at layer 1"},
		{transformer.Intervention{Site: transformer.Coef, Op: transformer.OpZero, Units: []int{36}}, bad, "unit 36, there are 36"},
		{transformer.Intervention{Site: transformer.Coef, Op: transformer.OpCopy, From: unrouted}, bad, "router_indices"},
		{transformer.Intervention{Site: transformer.Coef, Op: transformer.OpMean, From: unrouted}, bad, "router_indices"},
		{transformer.Intervention{Site: transformer.Coef, Op: transformer.OpProject, Directions: b.directions(1, 36)}, bad, "no projection at this site"},
	}
}
