package loader

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// goldens lists the folders of golden checkpoints: the project's own, and the shared ones where present.
func goldens(t *testing.T) []string {
	t.Helper()
	own, err := filepath.Glob("../testdata/goldens/*/config.json")
	if err != nil || len(own) == 0 {
		t.Fatalf("no golden checkpoints in ../testdata/goldens: %v", err)
	}
	shared, _ := filepath.Glob("../../shared/goldens/*/config.json")
	if len(shared) == 0 {
		t.Log("../shared/goldens is absent: only the project's own checkpoints are tested")
	}
	for i, path := range append(own, shared...) {
		if i < len(own) {
			own[i] = filepath.Dir(path)
			continue
		}
		own = append(own, filepath.Dir(path))
	}
	return own
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// shapes are the tensors of a checkpoint.
func shapes(t *testing.T, path string) map[string][]int {
	t.Helper()
	f, err := safetensors.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	shapes := map[string][]int{}
	for _, e := range f.Entries {
		shapes[e.Name] = slices.Clone(e.Shape)
	}
	return shapes
}

// TestGoldenConfigs: the spellings of transformers 4 and 5 give the same architecture and the same bindings.
func TestGoldenConfigs(t *testing.T) {
	for _, dir := range goldens(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			c, b, err := translate(read(t, filepath.Join(dir, "config.json")), nil)
			if err != nil {
				t.Fatal(err)
			}
			old, oldBindings, err := translate(read(t, filepath.Join(dir, "config.legacy.json")), nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c, old); diff != "" {
				t.Errorf("config.json and config.legacy.json differ:\n%s", diff)
			}
			if diff := cmp.Diff(b, oldBindings); diff != "" {
				t.Errorf("bindings of config.json and config.legacy.json differ:\n%s", diff)
			}
		})
	}
}

// TestGoldenBindings: the bindings name every tensor of the file with its shape, no other, and take every output
// feature of it exactly once.
func TestGoldenBindings(t *testing.T) {
	for _, dir := range goldens(t) {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			want := shapes(t, filepath.Join(dir, "model.safetensors"))
			has := func(name string) bool { return want[name] != nil }
			_, b, err := translate(read(t, filepath.Join(dir, "config.json")), has)
			if err != nil {
				t.Fatal(err)
			}
			checkCover(t, b, want)
		})
	}
}

func checkCover(t *testing.T, b transformer.Bindings, want map[string][]int) {
	t.Helper()
	taken := map[string][]int{} // times each output feature is taken
	for place, parts := range b {
		for _, p := range parts {
			shape, ok := want[p.Tensor]
			if !ok || !slices.Equal(shape, p.Shape) {
				t.Fatalf("%v takes %s with shape %v, the file has %v", place, p.Tensor, p.Shape, shape)
			}
			features := shape[0]
			if p.InOut {
				features = shape[1]
			}
			if taken[p.Tensor] == nil {
				taken[p.Tensor] = make([]int, features)
			}
			out := p.Out
			if out == nil {
				out = []transformer.Range{{From: 0, To: features}}
			}
			for _, r := range out {
				for i := r.From; i < r.To; i++ {
					taken[p.Tensor][i]++
				}
			}
		}
	}
	for name := range want {
		if times := taken[name]; times == nil {
			t.Errorf("nothing takes %s", name)
		} else if i := slices.IndexFunc(times, func(n int) bool { return n != 1 }); i >= 0 {
			t.Errorf("output feature %d of %s is taken %d times", i, name, times[i])
		}
	}
}

// describe puts what tells a family apart into a line.
func describe(c *transformer.Config) string {
	var w []string
	add := func(on bool, format string, args ...any) {
		if on {
			w = append(w, fmt.Sprintf(format, args...))
		}
	}
	a, f := c.Attention, c.FFN
	add(c.Encoder, "encoder")
	add(true, "%s", [...]string{"seq", "parallel", "shared", "sandwich", "output", "post"}[c.Layout])
	add(true, "%s", [...]string{"LN", "RMS"}[c.Norm.Kind])
	add(c.Norm.GainOffset != 0, "1+g")
	add(true, "heads %d/%dx%d", a.Heads, a.KVHeads, a.HeadSize)
	add(a.Scale*a.Scale*float64(a.HeadSize) < 0.999 || a.Scale*a.Scale*float64(a.HeadSize) > 1.001, "scale %.3f", a.Scale)
	add(a.ScaleByLayer, "by layer")
	add(a.Softcap != 0, "cap %g", a.Softcap)
	add(a.QKNorm != 0, "qk %s", [...]string{"", "head", "joint"}[a.QKNorm])
	add(a.ClipQKV != 0, "clip %g", a.ClipQKV)
	add(a.Windows != nil, "windows %v", a.Windows)
	add(c.Position == transformer.Learned, "learned+%d", c.PositionOffset)
	add(c.Position == transformer.ALiBi, "alibi")
	add(c.ALiBiBFloat16, "bf16")
	for _, r := range c.Rotaries {
		add(true, "rope %d", r.Dims)
		add(r.Interleaved, "pairs")
		add(r.Scale != 0, "x%.4f", r.Scale)
	}
	add(c.LayerRotary != nil, "by layer %v", c.LayerRotary)
	add(true, "%s", [...]string{"plain", "gated", "experts"}[f.Kind])
	add(f.Hidden > 0, "%d", f.Hidden)
	add(true, "%s", [...]string{"gelu", "tanh", "relu", "silu"}[f.Activation])
	add(f.Experts > 0, "%d of %dx%d", f.TopK, f.Experts, f.ExpertHidden)
	add(f.SharedHidden > 0, "shared %d", f.SharedHidden)
	add(f.NormTopK, "normed")
	add(f.DenseLayers != nil, "dense %v", f.DenseLayers)
	add(c.EmbedWidth != c.Width, "embed %d", c.EmbedWidth)
	add(c.EmbedScale != 0, "x%.3f", c.EmbedScale)
	add(c.EmbedNorm, "embed norm")
	add(c.TokenTypes, "types")
	add(!c.FinalNorm, "no final norm")
	add(c.HeadDense, "head dense")
	add(c.Tied, "tied")
	add(c.LogitSoftcap != 0, "logit cap %g", c.LogitSoftcap)
	return strings.Join(w, " ")
}

// TestGoldenArchitectures: the architecture is the one that the family's paper and the shapes in the README of
// testdata/goldens say.
func TestGoldenArchitectures(t *testing.T) {
	for name, want := range map[string]string{
		"bert": "encoder post LN heads 5/5x8 learned+0 plain 52 gelu embed norm types" +
			" no final norm head dense tied",
		"bloom":      "seq LN heads 3/3x6 alibi plain 72 tanh embed norm tied",
		"falcon":     "shared LN heads 2/1x8 rope 8 plain 28 gelu tied",
		"falcon_new": "parallel LN heads 6/3x4 rope 4 plain 36 gelu",
		"falcon_rw":  "seq LN heads 20/20x2 alibi bf16 plain 52 gelu tied",
		"gemma":      "seq RMS 1+g heads 4/1x6 rope 6 gated 28 tanh x6.325 tied",
		"gemma2": "sandwich RMS 1+g heads 6/3x8 scale 0.378 cap 3" +
			" windows [3 0 3 0] rope 8 gated 40 tanh x4.899 tied logit cap 6",
		"gemma3": "sandwich RMS 1+g heads 4/2x6 scale 0.378 qk head" +
			" windows [5 5 0 5] rope 6 rope 6 by layer [1 1 0 1] gated 20 tanh x4.000 tied",
		"gpt2":            "seq LN heads 3/3x8 learned+0 plain 36 tanh tied",
		"gpt2_untied":     "seq LN heads 5/5x8 by layer learned+0 plain 52 relu",
		"gpt_neo":         "seq LN heads 5/5x8 scale 1.000 windows [0 2 0 2] learned+0 plain 52 tanh tied",
		"gpt_neox":        "parallel LN heads 3/3x8 rope 4 plain 36 gelu",
		"gpt_neox_serial": "seq LN heads 5/5x8 rope 6 plain 52 gelu",
		"gptj":            "shared LN heads 5/5x8 rope 6 pairs plain 52 tanh",
		"llama":           "seq RMS heads 3/1x8 rope 8 gated 40 silu",
		"llama3":          "seq RMS heads 3/1x8 rope 8 gated 40 silu tied",
		"llama_bias":      "seq RMS heads 4/1x6 rope 6 gated 28 gelu",
		"llama_linear":    "seq RMS heads 2/1x8 rope 8 gated 20 silu",
		"llama_yarn":      "seq RMS heads 2/1x8 rope 8 x1.1386 gated 20 silu",
		"mistral":         "seq RMS heads 5/5x8 windows [2 2] rope 8 gated 28 silu",
		"mixtral":         "seq RMS heads 3/1x8 rope 8 experts silu 3 of 5x20 normed",
		"olmo2":           "output RMS heads 3/1x8 qk joint rope 8 gated 40 silu",
		"olmoe":           "seq RMS heads 2/2x8 qk joint clip 1.5 rope 8 experts silu 4 of 6x8",
		"opt":             "seq LN heads 2/2x8 learned+2 plain 28 relu tied",
		"opt_post":        "post LN heads 3/3x8 learned+2 plain 36 relu embed 16 no final norm tied",
		"phi":             "shared LN heads 5/5x8 rope 4 plain 52 tanh",
		"phi3":            "seq RMS heads 3/1x8 windows [3 3 3] rope 6 gated 40 silu",
		"qwen2":           "seq RMS heads 2/1x8 rope 8 gated 20 silu tied",
		"qwen2_moe":       "seq RMS heads 5/5x8 rope 8 experts 28 silu 1 of 3x12 shared 16 dense [false true]",
		"qwen3":           "seq RMS heads 4/1x6 qk head rope 6 gated 28 silu",
		"qwen3_moe":       "seq RMS heads 4/2x6 qk head rope 6 experts silu 4 of 6x8 normed",
		"roberta": "encoder post LN heads 3/3x8 learned+2 plain 36 gelu embed norm types" +
			" no final norm head dense tied",
		"stablelm":   "seq LN heads 3/1x8 rope 4 gated 40 silu",
		"starcoder2": "seq LN heads 5/5x8 windows [2 2] rope 8 plain 52 tanh tied",
	} {
		c, _, err := translate(read(t, filepath.Join("../testdata/goldens", name, "config.json")), nil)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got := describe(c); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
		if c.Norm.Epsilon != 0.004 && c.Family != "opt" || !slices.Contains([]int{32, 64, 128, 2048}, c.Context) {
			t.Errorf("%s: epsilon %g, context %d", name, c.Norm.Epsilon, c.Context)
		}
	}
}

// TestDefaults: a configuration that sets nothing means what transformers' class means by it.
func TestDefaults(t *testing.T) {
	var all []json.RawMessage
	if err := json.Unmarshal(read(t, "testdata/defaults.json"), &all); err != nil {
		t.Fatal(err)
	}
	seen := []string{"gemma3"} // a text_config of gemma3_text
	for _, raw := range all {
		var head struct {
			ModelType string `json:"model_type"`
		}
		if err := json.Unmarshal(raw, &head); err != nil {
			t.Fatal(err)
		}
		seen = append(seen, head.ModelType)
		full, fullBindings, err := translate(raw, nil)
		if err != nil {
			t.Errorf("%s: %v", head.ModelType, err)
			continue
		}
		bare, bareBindings, err := translate(fmt.Appendf(nil, `{"model_type":%q}`, head.ModelType), nil)
		if err != nil {
			t.Errorf("%s: %v", head.ModelType, err)
			continue
		}
		if diff := cmp.Diff(full, bare); diff != "" {
			t.Errorf("%s: with every key (−) and with none (+):\n%s", head.ModelType, diff)
		}
		if diff := cmp.Diff(fullBindings, bareBindings); diff != "" {
			t.Errorf("%s: bindings differ:\n%s", head.ModelType, diff)
		}
	}
	slices.Sort(seen)
	if diff := cmp.Diff(Families(), seen); diff != "" {
		t.Errorf("families tested (+) are not all families (−):\n%s", diff)
	}
}

// TestFamiliesSorted: the list that messages show is in order, and every entry has weights named by a golden.
func TestFamiliesSorted(t *testing.T) {
	if !slices.IsSorted(Families()) {
		t.Errorf("not sorted: %v", Families())
	}
	_, _, err := translate([]byte(`{"model_type":"mamba"}`), nil)
	if !errors.Is(err, transformer.ErrConfig) {
		t.Fatalf("got %v", err)
	}
	for _, name := range append(Families(), `"mamba"`, "model_type") {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%q does not say %s", err, name)
		}
	}
}
