package transformer_test

import (
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// TestFFNPartsSumToTheModel: at every scope of every family, the vectors of all sources and of the biases sum to what
// the model computed there, and all others are what is left.
func TestFFNPartsSumToTheModel(t *testing.T) {
	all := goldens(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, g := range all {
			t.Run(g.name, func(t *testing.T) {
				m := g.open(t, be, loader.Options{})
				if err := m.Config.CheckFFNParts(); err != nil {
					if !errors.Is(err, transformer.ErrScope) {
						t.Fatal(err)
					}
					return
				}
				sites := append(m.Config.FFNPartSites(), transformer.FFNIn, transformer.FFNOut, transformer.ResidPost)
				run, err := m.Run(t.Context(), g.ids, transformer.Capture{Sites: sites})
				if err != nil {
					t.Fatal(err)
				}
				defer run.Close()
				row := len(g.ids) - 1
				for l := range m.Config.Layers {
					checkSums(t, m, run, row, l)
				}
			})
		}
	})
}

// TestFFNPartsUnderInterventions: the sums are the model's also where heads and memories are ablated or scaled, at all
// positions or some, and where what the block reads was changed.
func TestFFNPartsUnderInterventions(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range []string{"gpt2", "llama", "gemma2", "olmo2", "opt_post"} {
			t.Run(name, func(t *testing.T) {
				g := readGolden(t, filepath.Join("..", "testdata", "goldens", name))
				m := g.open(t, be, loader.Options{})
				n := len(g.ids[len(g.ids)-1])
				half := []float32{-0.5}
				ivs := []transformer.Intervention{
					{Site: transformer.HeadOut, Layer: 1, Op: transformer.OpZero, Units: []int{0}},
					{Site: transformer.HeadOut, Layer: 0, Op: transformer.OpScale, Units: []int{1}, Value: half, Positions: []int{n / 2, n - 1}, Rows: []int{len(g.ids) - 1}},
					{Site: transformer.Coef, Layer: 1, Op: transformer.OpZero, Units: []int{0, 3, 4}, Positions: []int{n / 2, n - 1}},
					{Site: transformer.Coef, Layer: 0, Op: transformer.OpScale, Value: half},
					{Site: transformer.ResidPre, Layer: 1, Op: transformer.OpAdd, Value: half},
					{Site: transformer.Value, Layer: 0, Op: transformer.OpAdd, Value: half},
					{Site: transformer.Pattern, Layer: 1, Op: transformer.OpScale, Value: half, Sources: []int{1}},
				}
				sites := append(m.Config.FFNPartSites(), transformer.FFNIn, transformer.FFNOut, transformer.ResidPost)
				run, err := m.Run(t.Context(), g.ids, transformer.Capture{Sites: sites, Layers: []int{0, 1}}, ivs...)
				if err != nil {
					t.Fatal(err)
				}
				defer run.Close()
				for l := range 2 {
					checkSums(t, m, run, len(g.ids)-1, l)
				}
			})
		}
	})
}

// scopeSites are the sites at which the scopes are seen.
func scopeSites(c *transformer.Config) map[transformer.Scope]transformer.Site {
	last := transformer.ResidPost
	sites := map[transformer.Scope]transformer.Site{
		"Atb": transformer.ResidMid, "AtbLn": transformer.FFNIn, "AtbLnFf": transformer.FFNOut, "AtbLnFfRes": last,
		"AtbFf": transformer.FFNOut, "AtbFfResLn": last,
	}
	if c.Layout == transformer.OutputNorm {
		sites["AtbFfRes"] = last
	}
	return sites
}

func checkSums(t *testing.T, m *transformer.Model, run *transformer.Run, row, layer int) {
	t.Helper()
	i, n := len(run.IDs[row])-1, len(run.IDs[row])
	if m.Config.Encoder {
		i = n / 2
	}
	var parts []transformer.FFNPart
	for j := range n {
		parts = append(parts, transformer.FFNPart{Destination: i, Source: j})
	}
	parts = append(parts, transformer.FFNPart{Destination: i, Source: transformer.FromBiases},
		transformer.FFNPart{Destination: i, Source: transformer.FromOthers})
	got, err := m.FFNParts(t.Context(), run, row, layer, parts, true)
	if err != nil {
		t.Fatal(err)
	}
	sites := scopeSites(m.Config)
	for _, s := range m.Config.Scopes() {
		site, ok := sites[s]
		if !ok {
			continue // the sum ahead of a norm behind the block is no site
		}
		want, err := run.Tensor(site, layer)
		if err != nil {
			t.Fatal(err)
		}
		x := want.At(row, i).Data
		largest := 1.0
		for _, v := range x {
			largest = math.Max(largest, math.Abs(float64(v)))
		}
		for k := range x {
			sum, others := 0.0, 0.0
			for p := range n + 1 {
				sum += float64(got.Vectors[s].At(p, k).Data[0])
				if p < n && p != i {
					others += float64(got.Vectors[s].At(p, k).Data[0])
				}
			}
			if !(math.Abs(sum-float64(x[k])) <= 1e-4*largest) {
				t.Fatalf("layer %d, %s: component %d sums to %g, the model has %g", layer, s, k, sum, x[k])
			}
			if v := got.Vectors[s].At(n+1, k).Data[0]; !(math.Abs(others-float64(v)) <= 1e-4*largest) {
				t.Fatalf("layer %d, %s: component %d of the others is %g, want %g", layer, s, k, v, others)
			}
		}
		for p := range parts {
			checkLength(t, fmt.Sprintf("layer %d, %s, part %d", layer, s, p), got.Vectors[s].At(p).Data, got.Norms[s][p])
		}
	}
}

func checkLength(t *testing.T, what string, vector []float32, norm float32) {
	t.Helper()
	sum := 0.0
	for _, v := range vector {
		sum += float64(v) * float64(v)
	}
	if want := math.Sqrt(sum); !(math.Abs(want-float64(norm)) <= 1e-5*math.Max(1, want)) {
		t.Errorf("%s: norm %g, want %g", what, norm, want)
	}
}

// TestIntegratedGradientsOfActivations: the closed forms against published values, and the mean along the way against a
// fine sum, also far out and at 0.
func TestIntegratedGradientsOfActivations(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		rho, _ := ratios(t, be, transformer.GELU, -0.5)
		for part, want := range map[float64]float64{.7: 0.2159763, -1.9: -0.5862213, .4: 0.1234150, .3: 0.0925613} {
			if got := part * rho; math.Abs(got-want) > 1e-6 {
				t.Errorf("GELU: part %g gives %.7f, want %.7f", part, got, want)
			}
		}
		u, w := 2.7, 0.2
		rho, mean := ratios(t, be, transformer.SiLU, u)
		for k, want := range []float64{0.4644787, -1.1865798, 1.2280955} {
			got := []float64{1.2, -.5, 2}[k]*w*(rho-mean) + []float64{.3, -1, .9}[k]*u*mean
			if math.Abs(got-want) > 2e-6 {
				t.Errorf("SiLU, gated: part %d gives %.7f, want %.7f", k, got, want)
			}
		}
		for _, a := range []transformer.Activation{
			transformer.GELU, transformer.GELUTanh, transformer.ReLU, transformer.SiLU,
		} {
			for _, x := range []float64{-20, -3, -0.1, 0, 0.1, 3, 20} {
				_, mean := ratios(t, be, a, x)
				const steps = 2000
				sum := 0.0
				for k := range steps {
					s := (float64(k) + 0.5) / steps
					sum += s * plainRatio(a, s*x) / steps
				}
				if math.Abs(sum-mean) > 1e-5 {
					t.Errorf("activation %d: mean ratio on the way to %g is %.7f, want %.7f", a, x, mean, sum)
				}
			}
		}
	})
}

// plainRatio is g(x)/x in plain Go.
func plainRatio(a transformer.Activation, x float64) float64 {
	switch a {
	case transformer.GELU:
		return 0.5 * (1 + math.Erf(x/math.Sqrt2))
	case transformer.GELUTanh:
		return 0.5 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x)))
	case transformer.ReLU:
		if x > 0 {
			return 1
		}
		return 0
	}
	return 1 / (1 + math.Exp(-x))
}

func ratios(t *testing.T, be compute.Backend, a transformer.Activation, x float64) (ratio, mean float64) {
	t.Helper()
	ratio, mean, err := a.Ratios(be, x)
	if err != nil {
		t.Fatal(err)
	}
	return ratio, mean
}

// TestFFNPartsAreRefused: runs and positions that the parts cannot come from.
func TestFFNPartsAreRefused(t *testing.T) {
	be := backendtest.Open(t, "go")
	m, err := loader.Open(t.Context(), "stories", loader.Options{Backend: be})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	run := func(sites []transformer.Site, ivs ...transformer.Intervention) *transformer.Run {
		r, err := m.Run(t.Context(), [][]int{{1, 2, 3}}, transformer.Capture{Sites: sites, Layers: []int{0}}, ivs...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		return r
	}
	all := m.Config.FFNPartSites()
	good := run(all)
	changed := run(all, transformer.Intervention{Site: transformer.FFNOut, Op: transformer.OpZero})
	here := []transformer.FFNPart{{Destination: 1, Source: 0}}
	for name, c := range map[string]struct {
		run   *transformer.Run
		row   int
		layer int
		parts []transformer.FFNPart
		want  error
	}{
		"no run":          {nil, 0, 0, here, transformer.ErrScope},
		"interventions":   {changed, 0, 0, here, transformer.ErrScope},
		"no such row":     {good, 1, 0, here, transformer.ErrScope},
		"not captured":    {run(all[:2]), 0, 0, here, transformer.ErrSite},
		"another layer":   {good, 0, 1, here, transformer.ErrSite},
		"no such source":  {good, 0, 0, []transformer.FFNPart{{Destination: 1, Source: 3}}, transformer.ErrScope},
		"no such target":  {good, 0, 0, []transformer.FFNPart{{Destination: 3}}, transformer.ErrScope},
		"no such special": {good, 0, 0, []transformer.FFNPart{{Source: -3}}, transformer.ErrScope},
	} {
		if _, err := m.FFNParts(t.Context(), c.run, c.row, c.layer, c.parts, false); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}
