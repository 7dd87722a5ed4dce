package routes_test

import (
	"errors"
	"math"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

// TestNeuronsAreTheReference: shares and logit effects of every neuron of the last position equal the reference.
func TestNeuronsAreTheReference(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, name := range references() {
			r := openReference(t, name)
			m := open(t, be, r.dir)
			compared := 0
			for _, prompt := range r.prompts() {
				ids := r.ids(prompt + ".ids")
				p := openParts(t, m, routes.PartsOptions{IDs: ids})
				for l := range m.Config.Layers {
					prefix, suffix := prompt+".neuron.", "."+string(rune('0'+l))
					if !r.has(prefix + "c" + suffix) {
						continue
					}
					got, err := routes.FFN(t.Context(), routes.FFNOptions{
						Parts: p, Node: routes.Node{Kind: routes.FFNNode, Layer: l, Position: len(ids) - 1}, Top: -1,
					})
					if err != nil {
						t.Fatal(err)
					}
					shares, logits := make([]float64, m.Config.Memories(l)), make([]float64, m.Config.Memories(l))
					for _, n := range got.Neurons {
						at, err := transformer.ParseNeuron(n.Neuron)
						if err != nil {
							t.Fatal(err)
						}
						shares[at.Index], logits[at.Index] = n.Share, n.Logit
					}
					compared++
					nearShares(t, prefix+"c"+suffix, shares, r.floats(prefix+"c"+suffix))
					nearShares(t, prefix+"c_resid"+suffix, []float64{got.Resid}, r.floats(prefix+"c_resid"+suffix))
					if r.has(prefix + "c_bias" + suffix) {
						nearShares(t, prefix+"c_bias"+suffix, []float64{got.Bias}, r.floats(prefix+"c_bias"+suffix))
					}
					near(t, prefix+"dla"+suffix, logits, r.floats(prefix+"dla"+suffix), 1e-5)
				}
			}
			if compared == 0 {
				t.Errorf("%s has no neurons", name)
			}
		}
	})
}

// TestNeuronsOfEveryFamily: in every kind of block, experts included, what neurons, stream and bias add to the logit is
// found again in the model's own numbers: the shares sum to 1 and the FFN's neurons sum to what it adds.
func TestNeuronsOfEveryFamily(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range families() {
		m := open(t, be, family(name))
		ids := []int{5, 9, 3, 11, 2, 8, 5}
		p := openParts(t, m, routes.PartsOptions{IDs: ids})
		last := m.Config.Layers - 1
		node := routes.Node{Kind: routes.FFNNode, Layer: last, Position: 3}
		got, err := routes.FFN(t.Context(), routes.FFNOptions{Parts: p, Node: node, Top: -1, Tokens: 2})
		if err != nil {
			t.Fatal(err)
		}
		sum := got.Resid + got.Bias
		for _, n := range got.Neurons {
			sum += n.Share
		}
		if math.Abs(sum-1) > 1e-6 || len(got.Neurons[0].Promotes) != 2 {
			t.Errorf("%s: the shares sum to %g", name, sum)
		}
		if name == "llama" || name == "mixtral" { // no biases: the neurons are the FFN
			if got.Bias > 1e-4 {
				t.Errorf("%s: %g of the FFN is no neuron", name, got.Bias)
			}
		}
	}
}

func TestNeuronsRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), family("llama"))
	p := openParts(t, m, routes.PartsOptions{IDs: []int{5, 9}})
	for _, n := range []routes.Node{{Kind: routes.BlockNode}, {Kind: routes.FFNNode, Layer: 9}, {Kind: routes.FFNNode, Position: 2}} {
		if _, err := routes.FFN(t.Context(), routes.FFNOptions{Parts: p, Node: n}); !errors.Is(err, routes.ErrNode) {
			t.Errorf("%s: %v", n, err)
		}
	}
	far := 1 << 20
	opts := routes.FFNOptions{Parts: p, Node: routes.Node{Kind: routes.FFNNode}, Target: &far}
	if _, err := routes.FFN(t.Context(), opts); !errors.Is(err, transformer.ErrTokenRange) {
		t.Errorf("target: %v", err)
	}
}

// TestContrast: an edge's weight is its share less its share in the other prompt, edges are those that differ by more
// than tau, and a prompt does not differ from itself.
func TestContrast(t *testing.T) {
	be := backendtest.Open(t, "go")
	for _, name := range []string{"llama", "gptj", "bert"} {
		m := open(t, be, family(name))
		a := openParts(t, m, routes.PartsOptions{IDs: []int{5, 9, 3, 11, 2, 8, 5}})
		b := openParts(t, m, routes.PartsOptions{IDs: []int{5, 9, 3, 12, 2, 8, 4}})
		contrast := func(tau float64, with *routes.Parts) *routes.RoutesResult {
			r, err := routes.Routes(t.Context(), m, routes.RoutesOptions{Parts: a, Threshold: threshold(routes.Filter, tau), Contrast: with})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if r := contrast(0, a); len(r.Edges) != 0 {
			t.Errorf("%s: %d edges differ from themselves", name, len(r.Edges))
		}
		type key struct {
			from, to string
			kind     routes.EdgeKind
			head     int
		}
		shares := func(p *routes.Parts) map[key]float64 {
			out := map[key]float64{}
			for _, e := range graphOf(t, p, threshold(routes.Filter, 0)).Edges {
				out[key{e.From, e.To, e.Kind, e.Head}] = e.Weight
			}
			return out
		}
		sa, sb := shares(a), shares(b)
		negative := 0
		const tau = 0.01
		got := contrast(tau, b)
		for _, e := range got.Edges {
			k := key{e.From, e.To, e.Kind, e.Head}
			if want := sa[k] - sb[k]; math.Abs(e.Weight-want) > 1e-6 || math.Abs(e.Weight) <= tau {
				t.Errorf("%s: %+v is %g, want %g", name, k, e.Weight, want)
			}
			if e.Weight < 0 {
				negative++
			}
		}
		if negative == 0 || negative == len(got.Edges) || len(got.Contrast) != 7 {
			t.Errorf("%s: %d of %d edges are lost", name, negative, len(got.Edges))
		}
	}
}

func TestContrastRefuses(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	a, short := openParts(t, m, routes.PartsOptions{IDs: []int{1, 403, 407}}), openParts(t, m, routes.PartsOptions{IDs: []int{1, 403}})
	apart := openParts(t, m, routes.PartsOptions{IDs: []int{1, 403, 9}, ValueBias: routes.Apart})
	for what, c := range map[string]struct {
		with *routes.Parts
		cut  routes.Threshold
		want error
	}{
		"unequal length": {short, threshold(routes.Filter, 0.1), routes.ErrAligned},
		"other parts":    {apart, threshold(routes.Filter, 0.1), routes.ErrParts},
		"mode":           {a, threshold(routes.Renormalise, 0.1), routes.ErrThreshold},
	} {
		if _, err := routes.Routes(t.Context(), m, routes.RoutesOptions{Parts: a, Contrast: c.with, Threshold: c.cut}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
