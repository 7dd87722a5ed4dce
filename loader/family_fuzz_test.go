package loader

import (
	"errors"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/engram-go/engram/transformer"
)

// FuzzTranslate: no configuration makes the translation panic or ask for much memory; what it accepts is valid, names
// no output feature outside its tensor, and comes out the same twice.
func FuzzTranslate(f *testing.F) {
	paths, err := filepath.Glob("../testdata/goldens/*/config*.json")
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range paths {
		f.Add(read(f, path))
	}
	for _, r := range refusals {
		f.Add([]byte(r.raw))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<16 {
			return
		}
		c, b, err := translate(raw, nil)
		if err != nil {
			if !errors.Is(err, transformer.ErrConfig) {
				t.Fatalf("%v does not wrap ErrConfig", err)
			}
			return
		}
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		if len(b) > 5_000 || c.Layers*c.FFN.Experts > 5_000 {
			return // slow under the fuzzer's instrumentation
		}
		checkRanges(t, b)
		again, bindings, err := translate(raw, nil)
		if err != nil || !cmp.Equal(c, again) || !cmp.Equal(b, bindings) {
			t.Fatalf("the second translation differs: %v", err)
		}
	})
}

func checkRanges(t *testing.T, b transformer.Bindings) {
	t.Helper()
	for place, parts := range b {
		for _, p := range parts {
			if p.Tensor == "" || len(p.Shape) == 0 {
				t.Fatalf("%v: tensor %q of shape %v", place, p.Tensor, p.Shape)
			}
			features := p.Shape[0]
			if p.InOut {
				features = p.Shape[1]
			}
			for _, size := range p.Shape {
				if size <= 0 {
					t.Fatalf("%v: shape %v", place, p.Shape)
				}
			}
			for _, r := range p.Out {
				if r.From < 0 || r.From >= r.To || r.To > features {
					t.Fatalf("%v: features %v of %d", place, r, features)
				}
			}
		}
	}
}

// extremes are short configurations that ask for as much as is allowed.
var extremes = []string{
	`{"model_type":"gpt_neox","num_hidden_layers":4096,"num_attention_heads":65536,"hidden_size":1048576}`,
	`{"model_type":"falcon","num_hidden_layers":4096,"num_attention_heads":65536,"hidden_size":1048576,"alibi":true}`,
	`{"model_type":"mixtral","num_hidden_layers":100,"num_local_experts":1000}`,
	`{"model_type":"qwen2_moe","num_hidden_layers":4096,"num_experts":24,"num_experts_per_tok":24}`,
	`{"model_type":"llama","num_hidden_layers":1,"num_attention_heads":1,"head_dim":1048576,"num_key_value_heads":1}`,
	`{"model_type":"gemma3_text","num_hidden_layers":4096,"vocab_size":1073741824,"head_dim":65536}`,
	`{"model_type":"bloom","n_layer":1,"n_head":65535,"hidden_size":65535}`,
}

// TestExtremes: a few hundred bytes never make the translation hold more than a few hundred megabytes.
func TestExtremes(t *testing.T) {
	const limit = 400 << 20
	for _, raw := range extremes {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, b, err := translate([]byte(raw), nil)
		runtime.ReadMemStats(&after)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
		}
		if got := after.TotalAlloc - before.TotalAlloc; got > limit {
			t.Errorf("%s: %d MiB for %d places", raw, got>>20, len(b))
		} else {
			t.Logf("%s: %d MiB for %d places", raw, got>>20, len(b))
		}
	}
}
