package probes_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gomlx/compute/gobackend"

	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// stories opens the embedded model on the backend in Go.
func stories(ctx context.Context) *transformer.Model {
	be, err := gobackend.New("")
	if err != nil {
		log.Fatal(err)
	}
	m, err := loader.Open(ctx, "stories", loader.Options{Backend: be})
	if err != nil {
		log.Fatal(err)
	}
	return m
}

func encode(m *transformer.Model, text string) []int {
	tokens, err := m.Tokenizer.Encode(text, true)
	if err != nil {
		log.Fatal(err)
	}
	var ids []int
	for _, t := range tokens {
		ids = append(ids, t.ID)
	}
	return ids
}

// The lens shows at which layer a prediction forms.
func ExampleLens() {
	ctx := context.Background()
	m := stories(ctx)
	defer m.Close()
	ids := encode(m, "Once upon a time, there was a little girl named")
	r, err := probes.Lens(ctx, m, probes.LensOptions{IDs: ids, Positions: []int{-1}})
	if err != nil {
		log.Fatal(err)
	}
	for _, s := range r.Positions[0].States[9:] {
		fmt.Printf("layer %d %s: %q has probability %.2f, rank %d\n",
			s.Layer, s.Site, s.Targets[0].Token, s.Targets[0].Prob, s.Targets[0].Rank)
	}
	// Output:
	// layer 4 resid_mid: " Lily" has probability 0.12, rank 1
	// layer 4 resid_post: " Lily" has probability 0.93, rank 0
}

// Sub-updates come by descending score, with the tokens they promote.
func ExampleUpdates() {
	ctx := context.Background()
	m := stories(ctx)
	defer m.Close()
	ids := encode(m, "Once upon a time, there was a little girl named")
	r, err := probes.Updates(ctx, m, probes.UpdatesOptions{IDs: ids, Layers: []int{4}, Top: 2, Tokens: 2})
	if err != nil {
		log.Fatal(err)
	}
	for _, u := range r.Positions[0].Layers[0].Updates {
		fmt.Printf("%s coefficient %.2f promotes %q %q\n", u.Neuron, u.Coef, u.Promotes[0].Token, u.Promotes[1].Token)
	}
	// Output:
	// L4N134 coefficient 4.38 promotes "ch" "ke"
	// L4N138 coefficient -4.49 promotes "”" " Lily"
}

// A value is projected by every convention that a model has, or by those that are named.
func ExampleValues() {
	ctx := context.Background()
	m := stories(ctx)
	defer m.Close()
	r, err := probes.Values(ctx, m, probes.ValuesOptions{
		Neurons: []transformer.Neuron{{Layer: 4, Index: 138}}, Norms: []probes.Norm{probes.Gain}, Top: 2,
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, t := range r.Values[0].Projections[0].Bottom {
		fmt.Printf("%q %.2f\n", t.Token, t.Score)
	}
	// Output:
	// "”" -1.06
	// " Lily" -0.88
}
