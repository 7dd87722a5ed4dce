package loader_test

import (
	"strings"
	"testing"

	"github.com/engram-go/engram/loader"
)

// TestFacts: what is particular about an architecture is said in words.
func TestFacts(t *testing.T) {
	for name, want := range map[string][]string{
		"gpt2":    {"decoder, sequential, LayerNorm, plain FFN with GELU (tanh), learned positions", "tied to the embedding"},
		"mixtral": {"experts with SiLU, rotary positions", "at a time", "for keys and values"},
		"bert":    {"encoder, post-norm"},
		"bloom":   {"ALiBi"},
	} {
		info, err := loader.Inspect(t.Context(), "../testdata/goldens/"+name, loader.Options{})
		if err != nil {
			t.Fatal(err)
		}
		var text strings.Builder
		for _, f := range info.Facts() {
			text.WriteString(f.Name + ": " + f.Value + "\n")
		}
		for _, w := range append(want, "fingerprint: "+info.Fingerprint) {
			if !strings.Contains(text.String(), w) {
				t.Errorf("%s: no %q in\n%s", name, w, text.String())
			}
		}
	}
}
