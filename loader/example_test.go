package loader_test

import (
	"context"
	"fmt"
	"log"

	"github.com/engram-go/engram/loader"
)

// Inspect reads headers only and needs no backend.
func ExampleInspect() {
	info, err := loader.Inspect(context.Background(), "stories", loader.Options{})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Family, info.Parameters, info.DType, len(info.Tensors))
	// Output: llama 260032 F32 47
}

// A checkpoint's tokenizer gives each token with the bytes it stands for.
func ExampleCheckpoint_Tokenizer() {
	c, err := loader.OpenCheckpoint(context.Background(), "stories", loader.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	tokenizer, err := c.Tokenizer()
	if err != nil {
		log.Fatal(err)
	}
	text := "a little girl"
	tokens, err := tokenizer.Encode(text, false)
	if err != nil {
		log.Fatal(err)
	}
	for _, t := range tokens {
		fmt.Printf("%d %q\n", t.ID, text[t.Start:t.End])
	}
	// Output:
	// 261 "a"
	// 376 " little"
	// 298 " g"
	// 315 "ir"
	// 421 "l"
}

// Errors say what is wrong and often what to do about it.
func ExampleHint() {
	_, err := loader.OpenCheckpoint(context.Background(), "no/such/folder", loader.Options{})
	fmt.Println(err)
	fmt.Println(loader.Hint(err))
	// Output:
	// load no/such/folder: no such folder, and not a name on the hub
	// a model is a folder with config.json, owner/name[@revision] on the hub, or one of the embedded: demo, stories
}
