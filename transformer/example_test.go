package transformer_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gomlx/compute/gobackend"

	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// stories opens the embedded model on the backend in Go and encodes a text.
func stories(ctx context.Context, text string) (*transformer.Model, []int) {
	be, err := gobackend.New("")
	if err != nil {
		log.Fatal(err)
	}
	m, err := loader.Open(ctx, "stories", loader.Options{Backend: be})
	if err != nil {
		log.Fatal(err)
	}
	tokens, err := m.Tokenizer.Encode(text, true)
	if err != nil {
		log.Fatal(err)
	}
	var ids []int
	for _, t := range tokens {
		ids = append(ids, t.ID)
	}
	return m, ids
}

// A run keeps what its capture names: here the coefficients of one layer at the last position.
func ExampleModel_Run() {
	ctx := context.Background()
	m, ids := stories(ctx, "Once upon a time")
	defer m.Close()
	run, err := m.Run(ctx, [][]int{ids}, transformer.Capture{
		Sites: []transformer.Site{transformer.Coef}, Layers: []int{4}, Positions: []int{-1},
	})
	if err != nil {
		log.Fatal(err)
	}
	defer run.Close()
	coef, err := run.Tensor(transformer.Coef, 4)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("rows, positions, memories:", coef.Shape)
	// Output: rows, positions, memories: [1 1 172]
}

// Without the last layer's FFN another token comes next; resuming recomputes only what lies behind the change.
func ExampleModel_Resume() {
	ctx := context.Background()
	m, ids := stories(ctx, "Once upon a time, there was a little girl named")
	defer m.Close()
	last := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}
	base := last
	base.Base = true
	clean, err := m.Run(ctx, [][]int{ids}, base)
	if err != nil {
		log.Fatal(err)
	}
	defer clean.Close()
	edited, err := m.Resume(ctx, clean, transformer.From{Layer: 4, Position: len(ids) - 1}, last,
		transformer.Intervention{Site: transformer.FFNOut, Layer: 4, Op: transformer.OpZero})
	if err != nil {
		log.Fatal(err)
	}
	defer edited.Close()
	for _, run := range []*transformer.Run{clean, edited} {
		logits, err := run.Tensor(transformer.Logits, -1)
		if err != nil {
			log.Fatal(err)
		}
		best := transformer.Extremes(logits.Data, 1, false)[0]
		fmt.Printf("%q\n", m.Tokenizer.Bytes(best))
	}
	// Output:
	// " Lily"
	// " named"
}

// Generation is greedy unless a temperature is given.
func ExampleModel_Generate() {
	ctx := context.Background()
	m, ids := stories(ctx, "Once upon a time")
	defer m.Close()
	g, err := m.Generate(ctx, [][]int{ids}, transformer.GenerateOptions{MaxTokens: 8})
	if err != nil {
		log.Fatal(err)
	}
	text, err := m.Tokenizer.Decode(append(ids, g.IDs[0]...))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(text)
	// Output: Once upon a time, there was a little girl
}
