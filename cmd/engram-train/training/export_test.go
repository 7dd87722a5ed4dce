package training

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/loader/embedded"
	"github.com/engram-go/engram/transformer"
)

// byteTokenizer is a tokenizer of 256 bytes and the end of a text.
func byteTokenizer(t *testing.T) []byte {
	t.Helper()
	text, err := os.ReadFile("testdata/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// trained are weights as training could leave them.
func trained(t *testing.T) Weights {
	t.Helper()
	opts := small()
	opts.Shape.Vocab = 257
	c, params := mustConfig(t, &opts)
	values := initial(c, params, 9)
	for i := range values {
		for j := range values[i] {
			values[i][j] += float32(math.Sin(float64(i*31+j))) / 5
		}
	}
	return Weights{Config: c, Params: params, Values: values}
}

// An exported folder is the model that was trained: the same architecture, and the logits of the training graph.
func TestExportIsTheTrainedModel(t *testing.T) {
	be := backendtest.Open(t, "go")
	w := trained(t)
	ids := []int32{5, 80, 3, 80, 200, 17}
	args := []any{tensors.FromFlatDataAndDimensions(ids, 1, len(ids))}
	for i, p := range w.Params {
		args = append(args, tensors.FromFlatDataAndDimensions(w.Values[i], p.Shape...))
	}
	graphExec, err := graph.NewExec(be, func(in []*graph.Node) *graph.Node {
		return w.Config.NextTokenLogits(in[1:], in[0], nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer graphExec.Finalize()
	out, err := graphExec.Call(args...)
	if err != nil {
		t.Fatal(err)
	}
	for dtype, tolerance := range map[string]float64{"float32": 1e-5, "float16": 5e-3} {
		dir := filepath.Join(t.TempDir(), dtype)
		if err := w.Export(t.Context(), dir, dtype, byteTokenizer(t)); err != nil {
			t.Fatal(err)
		}
		m, err := loader.Open(t.Context(), dir, loader.Options{Backend: be, Check: true})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		if !reflect.DeepEqual(m.Config, w.Config) {
			t.Errorf("%s: configuration %+v, want %+v", dtype, m.Config, w.Config)
		}
		got := logitsOf(t, m, []int{5, 80, 3, 80, 200, 17})
		err = tensors.ConstFlatData(out[0], func(want []float32) {
			for i := range want {
				if d := math.Abs(float64(got[i] - want[i])); d > tolerance {
					t.Fatalf("%s: logit %d is %g, want %g", dtype, i, got[i], want[i])
				}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func logitsOf(t *testing.T, m *transformer.Model, ids []int) []float32 {
	t.Helper()
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{Sites: []transformer.Site{transformer.Logits}})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	logits, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Fatal(err)
	}
	return logits.Data
}

// transformers loads what was exported, an untrained model and the one in the program, and computes the same logits from
// the same tokens.
func TestExportLoadsInTransformers(t *testing.T) {
	if err := exec.Command("python3", "-c", "import torch, transformers, tokenizers").Run(); err != nil {
		t.Skip("no Python with torch and transformers")
	}
	dir := t.TempDir()
	untrained, demo := filepath.Join(dir, "untrained"), filepath.Join(dir, "demo")
	w := trained(t)
	if err := w.Export(t.Context(), untrained, "float32", byteTokenizer(t)); err != nil {
		t.Fatal(err)
	}
	c, err := loader.OpenCheckpoint(t.Context(), embedded.Default, loader.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := loader.Save(t.Context(), c, demo, loader.SaveOptions{}); err != nil {
		t.Fatal(err)
	}
	var cases []map[string]any
	for _, c := range [][2]string{{untrained, "Ørsted likes tea"}, {demo, "Eiffel Tower stands in the city of"}} {
		m, err := loader.Open(t.Context(), c[0], loader.Options{Backend: backendtest.Open(t, "go")})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		tokens, err := m.Tokenizer.Encode(c[1], true)
		if err != nil {
			t.Fatal(err)
		}
		var ids []int
		for _, token := range tokens[:min(len(tokens), m.Config.Context)] {
			ids = append(ids, token.ID)
		}
		cases = append(cases, map[string]any{"folder": c[0], "text": c[1], "ids": ids, "logits": logitsOf(t, m, ids)})
	}
	input, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	const script = `
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for case in json.load(sys.stdin):
    tokenizer = AutoTokenizer.from_pretrained(case["folder"])
    model = AutoModelForCausalLM.from_pretrained(case["folder"], torch_dtype=torch.float32).eval()
    ids = tokenizer(case["text"]).input_ids[:model.config.n_positions]
    assert ids == case["ids"], (ids, case["ids"])
    with torch.no_grad():
        got = model(torch.tensor([ids])).logits.flatten()
    want = torch.tensor(case["logits"])
    assert got.shape == want.shape, (got.shape, want.shape)
    assert (got - want).abs().max() < 1e-4, (case["folder"], (got - want).abs().max(), want.abs().max())
`
	cmd := exec.Command("python3", "-c", script)
	cmd.Stdin = bytes.NewReader(input)
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// A folder that exists is refused; an unknown dtype and an ended context leave nothing.
func TestExportRefusals(t *testing.T) {
	w := trained(t)
	taken := t.TempDir()
	if err := w.Export(t.Context(), taken, "float32", byteTokenizer(t)); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a folder that exists: got %v", err)
	}
	dir := filepath.Join(t.TempDir(), "new")
	if err := w.Export(t.Context(), dir, "int8", byteTokenizer(t)); !errors.Is(err, ErrOptions) {
		t.Errorf("dtype int8: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Export(ctx, dir, "float32", byteTokenizer(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("ended context: got %v", err)
	}
	if _, err := os.Stat(filepath.Dir(dir)); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Dir(dir)); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// Score gives for every prompt what a run of it alone gives, whatever the length of the prompts beside it.
func TestScore(t *testing.T) {
	be := backendtest.Open(t, "go")
	w := trained(t)
	dir := filepath.Join(t.TempDir(), "model")
	if err := w.Export(t.Context(), dir, "float32", byteTokenizer(t)); err != nil {
		t.Fatal(err)
	}
	m, err := loader.Open(t.Context(), dir, loader.Options{Backend: be})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	var prompts, answers []string
	var want []Answer
	for n := 1; len(want) < 6; n++ { // prompts of different lengths whose best or second best token is text
		prompt := strings.Repeat("who is that ", 2)[:n]
		tokens, err := m.Tokenizer.Encode(prompt, false)
		if err != nil {
			t.Fatal(err)
		}
		var ids []int
		for _, token := range tokens {
			ids = append(ids, token.ID)
		}
		row := logitsOf(t, m, ids)
		row = row[len(row)-257:]
		best := transformer.Extremes(row, 257, false)
		rank := slices.IndexFunc(best, func(id int) bool { return id > 0 && m.Tokenizer.Bytes(id)[0] < 128 })
		if len(want)%2 == 0 && rank > 0 {
			continue
		}
		id, sum := best[rank], 0.0
		for _, v := range row {
			sum += math.Exp(float64(v))
		}
		prompts, answers = append(prompts, prompt), append(answers, string(m.Tokenizer.Bytes(id)))
		want = append(want, Answer{Right: rank == 0, Token: best[0], Prob: math.Exp(float64(row[id])) / sum})
	}
	got, err := Score(t.Context(), m, prompts, answers)
	if err != nil {
		t.Fatal(err)
	}
	for i := range want {
		if got[i].Right != want[i].Right || got[i].Token != want[i].Token || math.Abs(got[i].Prob-want[i].Prob) > 1e-6 {
			t.Errorf("%q: %+v, want %+v", prompts[i], got[i], want[i])
		}
	}
	if share := Share([]Answer{{Right: true}, {}, {Right: true}}); math.Abs(share-2.0/3) > 1e-12 {
		t.Errorf("share %g", share)
	}
	if _, err := Score(t.Context(), m, []string{"x"}, []string{""}); err == nil {
		t.Error("no error for an empty answer")
	}
}
