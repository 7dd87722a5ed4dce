package transformer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

func generate(t *testing.T, m *transformer.Model, ids [][]int, opts transformer.GenerateOptions) *transformer.Generation {
	t.Helper()
	g, err := m.Generate(t.Context(), ids, opts)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// rerun extends prompts greedily by whole runs, and gives the log probabilities of what it chose.
func rerun(t *testing.T, m *transformer.Model, ids [][]int, n int, ivs ...transformer.Intervention) (out [][]int, probs [][]float64) {
	t.Helper()
	rows := make([][]int, len(ids))
	for i := range rows {
		rows[i] = slices.Clone(ids[i])
	}
	out, probs = make([][]int, len(ids)), make([][]float64, len(ids))
	for range n {
		r := run(t, m, rows, transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}, ivs...)
		x, err := r.Tensor(transformer.Logits, -1)
		if err != nil {
			t.Fatal(err)
		}
		for i := range rows {
			logits := x.At(i, 0).Data
			best := slices.Index(logits, slices.Max(logits))
			sum := 0.0
			for _, v := range logits {
				sum += math.Exp(float64(v - logits[best]))
			}
			rows[i] = append(rows[i], best)
			out[i], probs[i] = append(out[i], best), append(probs[i], -math.Log(sum))
		}
	}
	return out, probs
}

// TestGreedyIsRerun: greedy generation through the cache takes what whole runs would take, row by row, with the same log
// probabilities, and with interventions in force throughout.
func TestGreedyIsRerun(t *testing.T) {
	backendtest.Long(t)
	families := slices.DeleteFunc(referenceFamilies(), func(f string) bool { return f == "bert" })
	onReference(t, families, []string{"llama"}, func(t *testing.T, b *bench) {
		const n = 12
		b.ids = b.sequences(5, 5, 5)
		steer := []transformer.Intervention{
			{Site: transformer.ResidPost, Layer: 0, Op: transformer.OpAdd, Value: b.values(b.Config.Width)},
			{Site: transformer.Coef, Layer: 1, Op: transformer.OpZero, Units: []int{0, 3, 5}},
			{Site: transformer.Value, Layer: 0, Op: transformer.OpScale, Value: []float32{2}, Rows: []int{1}, Positions: []int{2}},
			{Site: transformer.Pattern, Layer: 1, Op: transformer.OpScale, Value: []float32{0.5}, Sources: []int{1}},
			{Site: transformer.Final, Op: transformer.OpProject, Directions: b.directions(1, b.Config.Width)},
			{Site: transformer.Logits, Op: transformer.OpAdd, Value: []float32{0.5}, Units: []int{4}},
		}
		for _, ivs := range [][]transformer.Intervention{nil, steer} {
			got := generate(t, b.Model, b.ids, transformer.GenerateOptions{MaxTokens: n, Interventions: ivs})
			want, probs := rerun(t, b.Model, b.ids, n, ivs...)
			for row := range want {
				if !slices.Equal(got.IDs[row], want[row]) || got.Ended[row] != "length" {
					t.Errorf("row %d: %v, whole runs give %v (%s)", row, got.IDs[row], want[row], got.Ended[row])
					continue
				}
				for i, p := range probs[row] {
					if math.Abs(p-got.LogProbs[row][i]) > 5e-4 {
						t.Errorf("row %d, token %d: log probability %g, want %g", row, i, got.LogProbs[row][i], p)
					}
				}
			}
		}
	})
}

// TestGenerationCopies: values copied from another run hold for the positions that run has, and leave later ones alone.
func TestGenerationCopies(t *testing.T) {
	onReference(t, []string{"gpt2"}, nil, func(t *testing.T, b *bench) {
		b.ids = b.sequences(5)
		from := run(t, b.Model, b.sequences(5), transformer.Capture{Sites: []transformer.Site{transformer.AttnOut}})
		iv := transformer.Intervention{Site: transformer.AttnOut, Layer: 1, Op: transformer.OpCopy, From: from}
		got := generate(t, b.Model, b.ids, transformer.GenerateOptions{MaxTokens: 8, Interventions: []transformer.Intervention{iv}})
		if want, _ := rerun(t, b.Model, b.ids, 8, iv); !slices.Equal(got.IDs[0], want[0]) {
			t.Errorf("%v, whole runs give %v", got.IDs[0], want[0])
		}
	})
}

// TestLaterInterventions: those for new positions act on these alone, those for the prompt on that alone, as whole runs
// with the positions named say.
func TestLaterInterventions(t *testing.T) {
	onReference(t, []string{"gpt2"}, []string{"llama"}, func(t *testing.T, b *bench) {
		const n = 6
		b.ids = b.sequences(4, 4)
		prompt := transformer.Intervention{
			Site: transformer.ResidPost, Layer: 0, Op: transformer.OpAdd, Value: b.values(b.Config.Width), Positions: upTo(4),
		}
		later := transformer.Intervention{Site: transformer.HeadOut, Layer: 1, Op: transformer.OpScale, Value: []float32{-2}}
		third := transformer.Intervention{
			Site: transformer.ResidMid, Layer: 1, Op: transformer.OpAdd, Value: b.values(b.Config.Width), Positions: []int{6},
		}
		var whole []transformer.Intervention
		for p := 4; p < 4+n; p++ {
			iv := later
			iv.Positions = []int{p}
			whole = append(whole, iv)
		}
		got := generate(t, b.Model, b.ids, transformer.GenerateOptions{
			MaxTokens: n, Interventions: []transformer.Intervention{prompt}, Later: []transformer.Intervention{later, third},
		})
		rows := [][]int{slices.Clone(b.ids[0]), slices.Clone(b.ids[1])}
		for i := range n {
			ivs := []transformer.Intervention{prompt}
			for _, iv := range append(slices.Clone(whole), third) {
				if iv.Positions[0] < len(rows[0]) {
					ivs = append(ivs, iv)
				}
			}
			want, _ := rerun(t, b.Model, rows, 1, ivs...)
			for row := range rows {
				if got.IDs[row][i] != want[row][0] {
					t.Fatalf("row %d, token %d: %d, whole runs give %d", row, i, got.IDs[row][i], want[row][0])
				}
				rows[row] = append(rows[row], want[row][0])
			}
		}
		d, err := b.Decode(t.Context(), b.ids)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		bad := transformer.Intervention{Site: transformer.ResidMid, Layer: 99, Op: transformer.OpZero}
		if err := d.Intervene(bad); !errors.Is(err, transformer.ErrIntervention) {
			t.Errorf("layer 99: %v", err)
		}
	})
}

// TestGreedyStory: the demo model's greedy story is the one that transformers tells, across several sizes of the cache.
func TestGreedyStory(t *testing.T) {
	backendtest.Long(t)
	var want struct {
		Prompt    string
		PromptIDs []int `json:"prompt_ids"`
		IDs       []int
		Text      string
	}
	data, err := os.ReadFile("testdata/stories_generation.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &want); err != nil {
		t.Fatal(err)
	}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m, err := loader.Open(t.Context(), "stories", loader.Options{Backend: be})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		n := len(want.IDs) - len(want.PromptIDs)
		got := generate(t, m, [][]int{want.PromptIDs, want.PromptIDs[:5]}, transformer.GenerateOptions{MaxTokens: n})
		for row := range got.IDs {
			if !slices.Equal(got.IDs[row], want.IDs[len(want.PromptIDs):]) {
				t.Errorf("row %d: %v, want %v", row, got.IDs[row], want.IDs[len(want.PromptIDs):])
			}
		}
		text, err := m.Tokenizer.Decode(want.IDs)
		if err != nil || text != want.Text {
			t.Errorf("text %q, want %q (%v)", text, want.Text, err)
		}
	})
}

// TestSampling: a seed gives its text again; a row's text does not depend on the rows behind it; top-k of 1 and a tiny
// top-p are greedy; another seed gives another text.
func TestSampling(t *testing.T) {
	onReference(t, []string{"llama", "mixtral"}, []string{"llama"}, func(t *testing.T, b *bench) {
		b.ids = b.sequences(4, 4, 4)
		opts := transformer.GenerateOptions{MaxTokens: 10, Temperature: 1.5, Seed: 3}
		first, again := generate(t, b.Model, b.ids, opts), generate(t, b.Model, b.ids, opts)
		if fmt.Sprint(first.IDs) != fmt.Sprint(again.IDs) {
			t.Errorf("one seed, two texts: %v and %v", first.IDs, again.IDs)
		}
		fewer := generate(t, b.Model, b.ids[:2], opts)
		if fmt.Sprint(first.IDs[:2]) != fmt.Sprint(fewer.IDs) {
			t.Errorf("rows in a smaller batch: %v, in a larger %v", fewer.IDs, first.IDs[:2])
		}
		opts.Seed = 4
		if other := generate(t, b.Model, b.ids, opts); fmt.Sprint(first.IDs) == fmt.Sprint(other.IDs) {
			t.Error("two seeds, one text")
		}
		greedy := generate(t, b.Model, b.ids, transformer.GenerateOptions{MaxTokens: 10})
		for _, cut := range []transformer.GenerateOptions{{TopK: 1}, {TopP: 1e-9}} {
			cut.MaxTokens, cut.Temperature = 10, 1.5
			if got := generate(t, b.Model, b.ids, cut); fmt.Sprint(got.IDs) != fmt.Sprint(greedy.IDs) {
				t.Errorf("top-k %d, top-p %g: %v, greedy %v", cut.TopK, cut.TopP, got.IDs, greedy.IDs)
			}
		}
	})
}

// TestChoose: over many draws tokens come as often as the rule says, and never when it cuts them off.
func TestChoose(t *testing.T) {
	probs := []float64{0.1, 0.4, 0.05, 0.3, 0.15} // 1, 3, 4, 0, 2 from the most probable on
	logits := make([]float32, len(probs))
	for i, p := range probs {
		logits[i] = float32(math.Log(p)) + 5
	}
	for _, c := range []struct {
		opts transformer.GenerateOptions
		want []float64
	}{
		{transformer.GenerateOptions{Temperature: 1}, probs},
		{transformer.GenerateOptions{Temperature: 1, TopP: 1}, probs},
		{transformer.GenerateOptions{Temperature: 1, TopK: 99}, probs},
		{transformer.GenerateOptions{Temperature: 1, TopK: 2}, []float64{0, 0.4, 0, 0.3, 0}},
		{transformer.GenerateOptions{Temperature: 1, TopK: 1}, []float64{0, 1, 0, 0, 0}},
		{transformer.GenerateOptions{Temperature: 1, TopP: 0.39}, []float64{0, 1, 0, 0, 0}},
		{transformer.GenerateOptions{Temperature: 1, TopP: 0.6}, []float64{0, 0.4, 0, 0.3, 0}},
		{transformer.GenerateOptions{Temperature: 1, TopP: 0.8}, []float64{0, 0.4, 0, 0.3, 0.15}},
		{transformer.GenerateOptions{Temperature: 1, TopK: 3, TopP: 0.8}, []float64{0, 0.4, 0, 0.3, 0}}, // 0.7 of the kept 0.85
		{transformer.GenerateOptions{Temperature: 0.5}, []float64{0.01, 0.16, 0.0025, 0.09, 0.0225}},
		{transformer.GenerateOptions{}, []float64{0, 1, 0, 0, 0}},
	} {
		const draws = 20000
		rng := rand.New(rand.NewPCG(1, 2))
		count, total := make([]float64, len(probs)), 0.0
		for range draws {
			count[c.opts.Choose(logits, rng)]++
		}
		for _, w := range c.want {
			total += w
		}
		for i, w := range c.want {
			p := w / total
			if spread := 5 * math.Sqrt(draws*p*(1-p)); math.Abs(count[i]-draws*p) > spread {
				t.Errorf("%+v: token %d came %g times, expected %g ± %g", c.opts, i, count[i], draws*p, spread)
			}
		}
	}
	tie := []float32{1, 2, 2, 0}
	if got := (&transformer.GenerateOptions{}).Choose(tie, nil); got != 1 {
		t.Errorf("among equals the lowest id: %d", got)
	}
	if got := (&transformer.GenerateOptions{Temperature: 1, TopK: 1}).Choose(tie, rand.New(rand.NewPCG(1, 2))); got != 1 {
		t.Errorf("among equals the lowest id is kept: %d", got)
	}
}

// TestHowGenerationEnds: at a stop, which is left out; at the length; at the end of the context, the last position used
// too; when the callback says so. Other rows go on.
func TestHowGenerationEnds(t *testing.T) {
	onReference(t, []string{"gpt2"}, []string{"gpt2"}, func(t *testing.T, b *bench) {
		b.ids = b.sequences(3, 3)
		plain := generate(t, b.Model, b.ids, transformer.GenerateOptions{MaxTokens: 6})
		stop := plain.IDs[0][3]
		at := slices.Index(plain.IDs[0], stop)
		got := generate(t, b.Model, b.ids, transformer.GenerateOptions{MaxTokens: 6, Stops: []int{stop}})
		if got.Ended[0] != "stop" || !slices.Equal(got.IDs[0], plain.IDs[0][:at]) || len(got.LogProbs[0]) != at {
			t.Errorf("stop %d: %v of %v, %s", stop, got.IDs[0], plain.IDs[0], got.Ended[0])
		}
		if i := slices.Index(plain.IDs[1], stop); i < 0 && !slices.Equal(got.IDs[1], plain.IDs[1]) {
			t.Errorf("the other row: %v, want %v", got.IDs[1], plain.IDs[1])
		}
		var told [][2]int
		got = generate(t, b.Model, b.ids, transformer.GenerateOptions{MaxTokens: 6, OnToken: func(row, id int) bool {
			told = append(told, [2]int{row, id})
			return row != 1 || len(told) < 4
		}})
		if got.Ended[1] != "callback" || len(got.IDs[1]) != 2 || got.Ended[0] != "length" || len(told) != 8 {
			t.Errorf("callback: %+v, told %v", got, told)
		}
		for _, long := range []int{b.Config.Context - 2, b.Config.Context} {
			ids := b.sequences(long)
			got = generate(t, b.Model, ids, transformer.GenerateOptions{MaxTokens: 50})
			if n := b.Config.Context - long + 1; got.Ended[0] != "context" || len(got.IDs[0]) != n {
				t.Errorf("%d of %d tokens: %d more, %s; want %d", long, b.Config.Context, len(got.IDs[0]), got.Ended[0], n)
			}
		}
		if got = generate(t, b.Model, b.ids, transformer.GenerateOptions{}); len(got.IDs[0]) != b.Config.Context-3+1 {
			t.Errorf("by default: %d tokens, %s", len(got.IDs[0]), got.Ended[0])
		}
	})
}

// TestBadGenerations: what cannot be generated is refused, and the message says why.
func TestBadGenerations(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		b, encoder := lab(t, be, "gpt2"), lab(t, be, "bert")
		one := [][]int{{1, 2}}
		for _, c := range []struct {
			m    *bench
			ids  [][]int
			opts transformer.GenerateOptions
			kind error
			text string
		}{
			{encoder, one, transformer.GenerateOptions{}, transformer.ErrDecode, "bert is an encoder"},
			{b, [][]int{{1, 2}, {1}}, transformer.GenerateOptions{}, transformer.ErrDecode, "prompts of 2 and 1 tokens"},
			{b, nil, transformer.GenerateOptions{}, transformer.ErrEmptyPrompt, "empty prompt"},
			{b, [][]int{{}}, transformer.GenerateOptions{}, transformer.ErrEmptyPrompt, "empty prompt"},
			{b, [][]int{{67}}, transformer.GenerateOptions{}, transformer.ErrTokenRange, "67, the vocabulary has 67"},
			{b, one, transformer.GenerateOptions{MaxTokens: -1}, transformer.ErrDecode, "negative"},
			{b, one, transformer.GenerateOptions{Temperature: -1}, transformer.ErrDecode, "negative"},
			{b, one, transformer.GenerateOptions{Temperature: math.NaN()}, transformer.ErrDecode, "temperature"},
			{b, one, transformer.GenerateOptions{Temperature: math.Inf(1)}, transformer.ErrDecode, "temperature"},
			{b, one, transformer.GenerateOptions{TopK: -1}, transformer.ErrDecode, "negative"},
			{b, one, transformer.GenerateOptions{TopP: 1.5}, transformer.ErrDecode, "outside [0,1]"},
			{b, one, transformer.GenerateOptions{TopP: math.NaN()}, transformer.ErrDecode, "outside [0,1]"},
			{b, one, transformer.GenerateOptions{
				Interventions: []transformer.Intervention{{Site: "nowhere"}},
			}, transformer.ErrSite, "nowhere"},
		} {
			if _, err := c.m.Generate(t.Context(), c.ids, c.opts); !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("error %v, want %q", err, c.text)
			}
		}
	})
}

// TestDecoderSteps: a refused or cancelled step leaves the decoder as it was; closing frees the caches and ends it.
func TestDecoderSteps(t *testing.T) {
	onReference(t, []string{"llama"}, []string{"llama"}, func(t *testing.T, b *bench) {
		b.ids = b.sequences(4, 4)
		d, err := b.Decode(t.Context(), b.ids)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.Step(t.Context(), []int{1}); !errors.Is(err, transformer.ErrDecode) {
			t.Errorf("one token for two rows: %v", err)
		}
		if err := d.Step(t.Context(), []int{1, 1000}); !errors.Is(err, transformer.ErrTokenRange) {
			t.Errorf("a token outside the vocabulary: %v", err)
		}
		stopped, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.Step(stopped, []int{1, 2}); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled step: %v", err)
		}
		if err := d.Step(t.Context(), []int{5, 6}); err != nil {
			t.Fatal(err)
		}
		whole := [][]int{append(slices.Clone(b.ids[0]), 5), append(slices.Clone(b.ids[1]), 6)}
		if fmt.Sprint(d.IDs()) != fmt.Sprint(whole) {
			t.Errorf("ids %v, want %v", d.IDs(), whole)
		}
		r := run(t, b.Model, whole, transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}})
		want, err := r.Tensor(transformer.Logits, -1)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "logits", d.Logits(), &transformer.Tensor{Shape: []int{2, b.Config.Vocab}, Data: want.Data}, 2e-4)
		held := d.Held()
		d.Close()
		d.Close()
		if n := transformer.Alive(held); len(held) != 2*b.Config.Layers || n != 0 {
			t.Errorf("%d of %d cache tensors outlive the decoder", n, len(held))
		}
		if err := d.Step(t.Context(), []int{1, 2}); !errors.Is(err, transformer.ErrDecode) {
			t.Errorf("a step after Close: %v", err)
		}
	})
}
