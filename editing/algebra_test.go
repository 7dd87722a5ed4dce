package editing_test

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"gonum.org/v1/gonum/mat"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// matrix makes columns of vectors a matrix.
func matrix(columns [][]float64) *mat.Dense {
	out := mat.NewDense(len(columns[0]), len(columns), nil)
	for i, c := range columns {
		out.SetCol(i, c)
	}
	return out
}

// moment is C as a matrix.
func moment(s *editing.Statistics) *mat.SymDense {
	return mat.NewSymDense(s.Size, editing.Float64s(s.Moment))
}

// randomKeys are n keys [m].
func randomKeys(n, m int) [][]float64 {
	rng := rand.New(rand.NewPCG(3, 4))
	out := make([][]float64, n)
	for i := range out {
		out[i] = make([]float64, m)
		for j := range out[i] {
			out[i][j] = rng.NormFloat64()
		}
	}
	return out
}

// sameColumns compares directions with the columns of a matrix.
func sameColumns(t *testing.T, what string, got [][]float64, want *mat.Dense) {
	t.Helper()
	for i, g := range got {
		if d := relative(g, mat.Col(nil, i, want)); !(d < 1e-9) {
			t.Errorf("%s: column %d differs by %.2g", what, i, d)
		}
	}
}

// TestDirectionsEqualTheirFormulas: what is computed with matrices of as many rows as there are facts equals the papers'
// formulas, with matrices of as many as there are memories: (λC + KKᵀ)⁻¹K of MEMIT, and C⁻¹K(KᵀC⁻¹K)⁻¹ of EMMET.
func TestDirectionsEqualTheirFormulas(t *testing.T) {
	const m, n, lambda = 24, 5, 0.7
	c, keys := randomStatistics(m, 100), randomKeys(n, m)
	k := matrix(keys)
	got, err := editing.Ridged(lambda)(c, keys)
	if err != nil {
		t.Fatal(err)
	}
	var sum, want mat.Dense
	sum.Mul(k, k.T())
	scaled := mat.NewDense(m, m, nil)
	scaled.Scale(lambda, moment(c))
	sum.Add(&sum, scaled)
	if err := want.Solve(&sum, k); err != nil {
		t.Fatal(err)
	}
	sameColumns(t, "MEMIT", got, &want)

	if got, err = editing.Ridged(0)(c, keys); err != nil {
		t.Fatal(err)
	}
	var recalled mat.Dense
	recalled.Mul(matrix(got).T(), k)
	for i := range n {
		for j := range n {
			if d := recalled.At(i, j) - map[bool]float64{true: 1}[i == j]; !(math.Abs(d) < 1e-9) {
				t.Errorf("EMMET: key %d recalls %g of fact %d", j, recalled.At(i, j), i)
			}
		}
	}
}

// TestDirectionsBesideOldKeys: the same for [P(KKᵀ + K_pK_pᵀ) + ρI]⁻¹PK of AlphaEdit, whose P leaves out the directions
// of large eigenvalues, or nothing.
func TestDirectionsBesideOldKeys(t *testing.T) {
	const m, n, old, lambda = 24, 5, 3, 0.7
	c, keys := randomStatistics(m, 100), randomKeys(n+old, m)
	k := matrix(keys[:n])
	var eigen mat.EigenSym
	if !eigen.Factorize(moment(c), true) {
		t.Fatal("no eigenvalues")
	}
	var vectors, one mat.Dense
	eigen.VectorsTo(&vectors)
	threshold := eigen.Values(nil)[m-6] - 1e-6
	p := mat.NewDense(m, m, nil)
	for i := range m - 6 {
		v := vectors.ColView(i)
		one.Outer(1, v, v)
		p.Add(p, &one)
	}
	earlier := []*editing.Edit{{Layer: c.Layer}, {Layer: c.Layer + 1}}
	for _, key := range keys[n:] {
		earlier[0].Batch = append(earlier[0].Batch, editing.Fact{Key: editing.Float32s(key)})
	}
	earlier[1].Key = editing.Float32s(keys[0])
	unit, past := mat.NewDense(m, m, nil), make([][]float64, old)
	for i := range m {
		unit.Set(i, i, 1)
	}
	for i := range past {
		past[i] = editing.Float64s(earlier[0].Batch[i].Key)
	}
	identity := &editing.Statistics{StatisticsInfo: c.StatisticsInfo}
	for name, x := range map[string]struct {
		p       *mat.Dense
		c       *editing.Statistics
		earlier []*editing.Edit
	}{
		"AlphaEdit": {p, c, earlier}, "AlphaEdit, first batch": {p, c, nil}, "AlphaEdit, P = I": {unit, identity, nil},
	} {
		h := editing.Hyperparameters{Lambda: lambda, Threshold: threshold}
		got, err := editing.Beside(x.earlier, h)(x.c, keys[:n])
		if err != nil {
			t.Fatal(err)
		}
		var both, right, want, scaled mat.Dense
		both.Mul(k, k.T())
		if x.earlier != nil {
			var more mat.Dense
			more.Mul(matrix(past), matrix(past).T())
			both.Add(&both, &more)
		}
		both.Mul(x.p, &both)
		scaled.Scale(lambda, unit)
		both.Add(&both, &scaled)
		right.Mul(x.p, k)
		if err := want.Solve(&both, &right); err != nil {
			t.Fatal(err)
		}
		sameColumns(t, name, got, &want)
	}
}

// TestUnusedDirectionsByShare: of eigenvalues 1, 2, 3 and 94 the first three have six hundredths of the trace, and a
// share that leaves no direction is refused.
func TestUnusedDirectionsByShare(t *testing.T) {
	c := &editing.Statistics{Moment: make([]float32, 16)}
	c.Size = 4
	for i, v := range []float32{1, 94, 3, 2} {
		c.Moment[5*i] = v
	}
	key := [][]float64{{1, 1, 1, 1}}
	for share, want := range map[float64][]float64{
		0.06: {0.5, 0, 0.5, 0.5}, 0.03: {0.5, 0, 0, 0.5}, 0.01: {0.5, 0, 0, 0}, 1: {0.5, 0.5, 0.5, 0.5}, 0.009: nil,
	} {
		got, err := editing.Beside(nil, editing.Hyperparameters{Lambda: 1e9, Share: share + 1e-6})(c, key)
		if want == nil {
			if err == nil || !strings.Contains(err.Error(), "use every direction") {
				t.Errorf("share %g: %v", share, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range want {
			if !(math.Abs(got[0][i]*1e9-2*v) < 1e-6) {
				t.Errorf("share %g: %v, want zeros as in %v", share, got[0], want)
			}
		}
	}
}

// TestEMMETOfOneFactIsRROME: with the same target for the same key both make the same change. r-ROME's Left is what the
// layer lacks over the key's product with û, EMMET's with G.
func TestEMMETOfOneFactIsRROME(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	c := identity(t, m, 2)
	value := editing.ValueOptions{Steps: 6, Clamp: 8, Decay: -1}
	r := rome(t, m, sadTom(), editing.ROMEOptions{Statistics: c, Value: value})
	e, err := editing.EMMET(t.Context(), m, []editing.Request{sadTom()}, editing.EMMETOptions{
		Statistics: []*editing.Statistics{c}, Value: editing.ValueOptions{Steps: 6, Clamp: 1e6, Decay: -1},
	})
	if err != nil {
		t.Fatal(err)
	}
	one := e[0]
	if d := relative(editing.Float64s(one.Key), editing.Float64s(r.Key)); !(d < 1e-6) {
		t.Fatalf("the keys differ by %.2g", d)
	}
	product := func(left, right []float32) []float64 {
		var out []float64
		for _, l := range left {
			for _, v := range right {
				out = append(out, float64(l)*float64(v))
			}
		}
		return out
	}
	if d := relative(product(one.Left[0], one.Right[0]), product(r.Left[0], r.Right[0])); !(d < 1e-3) {
		t.Errorf("the changes differ by %.2g", d)
	}
}

// TestSearchThatOverflows: a loss that is not a number ends the search with the last δ whose loss was one, in every
// method that searches.
func TestSearchThatOverflows(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	c := []*editing.Statistics{identity(t, m, 2)}
	for _, name := range []editing.Method{editing.MethodROME, editing.MethodMEMIT, editing.MethodFTM} {
		s := editing.Settings{Statistics: c, Layers: []int{2}}
		s.Rate, s.Clamp = 1e39, 1e39
		editor, err := editing.NewEditor(name, s)
		if err != nil {
			t.Fatal(err)
		}
		edits, err := editor.Edit(t.Context(), m, []editing.Request{sadTom()}, nil)
		if err != nil {
			t.Fatal(err)
		}
		e := edits[0]
		if text := strings.Join(e.Warnings, "\n"); !strings.Contains(text, "not a number at evaluation 2") {
			t.Errorf("%s: %q", name, text)
		}
		if len(e.Losses) != 1 || e.Norm > 1e-3 || math.Abs(e.TargetProbAfter-e.TargetProbBefore) > 1e-3 {
			t.Errorf("%s: %d evaluations, ‖ΔW‖ %g, P %g to %g",
				name, len(e.Losses), e.Norm, e.TargetProbBefore, e.TargetProbAfter)
		}
	}
}

// TestFineTuningIsTheChangeOfTheMatrix: the loss at the last evaluation, where ΔW·k was added to the layer's output, is
// what the model with the changed matrix says, also of a target of several tokens.
func TestFineTuningIsTheChangeOfTheMatrix(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	req := sadTom()
	req.Target = "sad and hungry"
	for method, bound := range map[editing.Method]float64{editing.MethodFTM: 0, editing.MethodFTL: 0.003} {
		e, err := editing.FineTune(t.Context(), m, []editing.Request{req, {Prompt: "{} saw a", Subject: "Ben", Target: "cat"}},
			editing.FineTuneOptions{
				Method: method, Layers: []int{2}, Value: editing.ValueOptions{Steps: 5, Rate: 0.005}, Bound: bound,
			})
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range e.Facts() {
			last := f.Losses[len(f.Losses)-1].NLL
			if len(f.Losses) != 6 || !(last < f.Losses[0].NLL) {
				t.Errorf("%s: losses %v", method, f.Losses)
			}
			if method == editing.MethodFTM || len(f.TargetIDs) == 1 {
				near(t, "loss", last, -math.Log(f.TargetProbAfter), 1e-4)
			}
		}
		if err := m.SetDeltas([]transformer.Delta{e.Delta()}); err != nil {
			t.Fatal(err)
		}
		if d := relative(editing.Float64s(e.Value), recalled(t, m, "", transformer.DownOut, 2)); !(d < 1e-4) {
			t.Errorf("%s: the layer recalls something %.2g from its value", method, d)
		}
		if err := m.SetDeltas(nil); err != nil {
			t.Fatal(err)
		}
		for _, row := range e.Right {
			for _, v := range row {
				if bound > 0 && math.Abs(float64(v)) > bound*(1+1e-6) {
					t.Fatalf("an entry changes by %g", v)
				}
			}
		}
	}
}

// TestLaterEditsAreCompared: an edit much larger than those before it says so, and drift tells what later edits undid.
func TestLaterEditsAreCompared(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	editor := editing.ROMEOptions{Statistics: identity(t, m, 2), Value: editing.ValueOptions{Steps: 8, Clamp: 8}}
	small := []*editing.Edit{{Layer: 2, Norm: 1e-6}, {Layer: 2, Norm: 2e-6}, {Layer: 1, Norm: 1e6}}
	edits, err := editor.Edit(t.Context(), m, []editing.Request{sadTom()}, small)
	if err != nil {
		t.Fatal(err)
	}
	e := edits[0]
	if text := strings.Join(e.Warnings, "\n"); !strings.Contains(text, "median of the 2 earlier ones at layer 2") {
		t.Errorf("%q", text)
	}
	back := &editing.Edit{Layer: 2, Left: [][]float32{nil}, Right: e.Right}
	back.Request = editing.Request{Prompt: "{} saw a", Subject: "Ben", Target: "cat"}
	for _, v := range e.Left[0] {
		back.Left[0] = append(back.Left[0], -v)
	}
	all := &editing.Edits{List: []*editing.Edit{e, back}}
	drift, err := all.Drift(t.Context(), m)
	if err != nil || len(drift) != 2 || drift[0].Edit != 0 || drift[1].Edit != 1 {
		t.Fatalf("%+v, %v", drift, err)
	}
	near(t, "P of the fact that was taken back", drift[0].Now, e.TargetProbBefore, 1e-4)
	if !drift[0].Lost() || drift[0].Made != e.TargetProbAfter || len(m.Deltas()) != 0 {
		t.Errorf("%+v, %d changes left", drift[0], len(m.Deltas()))
	}
}

// TestSweepPrefersTheLayerThatServes: of a layer whose states nothing reads any more and one that is read, the sweep
// takes the latter; layers that cannot be edited are refused.
func TestSweepPrefersTheLayerThatServes(t *testing.T) {
	backendtest.Long(t)
	m := open(t, backendtest.Open(t, "go"), "stories")
	tom := sadTom()
	tom.Old = "angry"
	last := m.Config.Layers - 1
	opts := editing.TuneOptions{
		Records: []editing.CounterFactRecord{
			{Request: tom, Paraphrases: []string{"One day, Tom was so"}, Neighborhood: []string{"Lily was very"}},
		},
		Layers: []int{last, 2}, Clamps: []float64{8}, Settings: editing.Settings{},
	}
	opts.Settings.Steps = 8
	var seen []int
	opts.Progress = func(done, total int) { seen = append(seen, done, total) }
	r, err := editing.Tune(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	if r.Best != 1 || len(r.Trials) != 2 || r.Trials[1].Layer != 2 || r.Trials[1].Scores.ES != 100 ||
		r.Trials[0].Scores.ES != r.Before.ES || len(seen) != 4 {
		t.Errorf("%+v, progress %v", r, seen)
	}
	for _, bad := range []editing.TuneOptions{{}, {Records: opts.Records, Layers: []int{9}}, {Records: opts.Records, Method: "x"}} {
		if _, err := editing.Tune(t.Context(), m, bad); err == nil {
			t.Errorf("%+v is tried", bad)
		}
	}
}

// TestPublishedSettingsAreFound: by family and sizes, for the methods they are for.
func TestPublishedSettingsAreFound(t *testing.T) {
	c := &transformer.Config{Family: "gpt2", Layers: 48, Width: 1600}
	p, ok := editing.PublishedFor(c, editing.MethodMEMIT)
	if !ok || p.Model != "gpt2-xl" || p.Lambda != 20000 || len(p.Layers) != 5 || p.Layers[0] != 13 {
		t.Errorf("%+v, %t", p, ok)
	}
	h := editing.Hyperparameters{ValueOptions: editing.ValueOptions{Clamp: 2}}.Or(p.Hyperparameters)
	if h.Clamp != 2 || h.Steps != 20 || h.Lambda != 20000 {
		t.Errorf("%+v", h)
	}
	c.Layers = 12
	if _, ok := editing.PublishedFor(c, editing.MethodMEMIT); ok {
		t.Error("settings for a model that has none")
	}
}
