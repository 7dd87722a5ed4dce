package editing_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// referenceEdits is what rome.json holds.
type referenceEdits struct {
	Contexts []string        `json:"contexts"`
	Edits    []referenceEdit `json:"edits"`
}

// referenceEdit is one edit of them.
type referenceEdit struct {
	Clamp     float64 `json:"clamp_norm_factor"`
	Prompt    string  `json:"prompt"`
	Subject   string  `json:"subject"`
	Target    string  `json:"target_new"`
	TargetIDs []int   `json:"target_ids"`
	Steps     []struct {
		Loss, NLL, KL, WD float64
	} `json:"steps"`
	Evaluations int     `json:"evaluations"`
	Divisor     float64 `json:"divisor"`
	DivisorStar float64 `json:"divisor_star"`
	WeightNorm  float64 `json:"weight_norm"`
	Post        map[string]struct {
		Rewrite []struct {
			New float64 `json:"nll_new"`
		} `json:"rewrite"`
	} `json:"post"`
}

// factsStatistics are the key statistics of facts-a at block 0 that come with its reference numbers.
func factsStatistics(t testing.TB, m *transformer.Model) *editing.Statistics {
	t.Helper()
	mean := readTensors(t, shared(t, "checkpoints", "facts-a", "reference", "moment_l0.safetensors"))["mean"]
	s := &editing.Statistics{Moment: editing.Float32s(mean)}
	s.Size, s.Fingerprint = int(math.Sqrt(float64(len(mean)))), m.Fingerprint
	return s
}

// relative is the distance of got from want over want's length.
func relative(got, want []float64) float64 {
	if len(got) != len(want) {
		return math.Inf(1)
	}
	d := make([]float64, len(got))
	for i := range d {
		d[i] = got[i] - want[i]
	}
	return editing.Norm(d) / editing.Norm(want)
}

// TestROMEEqualsTheReference: nine edits of the authors' code on facts-a, evaluation by evaluation.
func TestROMEEqualsTheReference(t *testing.T) {
	var ref referenceEdits
	readJSON(t, shared(t, "checkpoints", "facts-a", "reference", "rome.json"), &ref)
	tensors := readTensors(t, shared(t, "checkpoints", "facts-a", "reference", "rome.safetensors"))
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, shared(t, "checkpoints", "facts-a"))
		c := factsStatistics(t, m)
		identity, err := editing.Identity(m, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, want := range ref.Edits {
			get := func(name string) []float64 { return tensors[fmt.Sprintf("edit%d.%s", i, name)] }
			req := editing.Request{Prompt: want.Prompt, Subject: want.Subject, Target: want.Target}
			for _, method := range []struct {
				name         string
				method       editing.Method
				statistics   *editing.Statistics
				left, direct string
			}{
				{"ROME", editing.MethodROME, c, "right_rome", "u_ref"},
				{"r-ROME", editing.MethodRROME, c, "right_rrome", "u64"},
				{"ROME C=I", editing.MethodROME, identity, "right_identity", "k_star"},
			} {
				if i > 0 && (method.method == editing.MethodROME || strings.HasSuffix(t.Name(), "/go")) {
					continue // one edit shows all methods, and the Go backend takes a second for each evaluation
				}
				got, err := editing.ROME(t.Context(), m, req, editing.ROMEOptions{
					Method: method.method, Statistics: method.statistics, Contexts: ref.Contexts,
					Value: editing.ValueOptions{Clamp: want.Clamp},
				})
				if err != nil {
					t.Fatal(err)
				}
				compareEdit(t, fmt.Sprintf("edit %d %s", i, method.name), got, want, method.name, get(method.left),
					get(method.direct), get)
			}
		}
	})
}

func TestParseRequests(t *testing.T) {
	one := `{"prompt":"{} is in","subject":"Rome","target_new":{"str":"Peru","id":"Q1"},"target_true":{"str":"Italy"}}`
	want := editing.Request{"{} is in", "Rome", "Peru", "Italy"}
	for _, text := range []string{
		one, "[" + one + "]", `{"case_id":1,"requested_rewrite":` + one + `}`,
		`{"prompt":"{} is in","subject":"Rome","target_new":"Peru","target_true":"Italy"}`,
	} {
		got, err := editing.ParseRequests([]byte(text))
		if err != nil || len(got) != 1 || got[0] != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "[]", "{", `"x"`, `{"prompt":"{} is","subject":"","target_new":"x"}`,
		`{"prompt":"{} is","subject":"Rome","target_new":" "}`, `{"prompt":"It is","subject":"Rome","target_new":"x"}`,
		`{"prompt":"{} {}","subject":"Rome","target_new":"x"}`,
	} {
		if got, err := editing.ParseRequests([]byte(text)); err == nil {
			t.Errorf("%s: %+v", text, got)
		}
	}
}

// compareEdit compares an edit with the reference's, whose tensors get gives by name.
func compareEdit(
	t *testing.T, what string, got *editing.Edit, want referenceEdit, method string, left, direct []float64,
	get func(string) []float64,
) {
	t.Helper()
	if len(got.Losses) != want.Evaluations || fmt.Sprint(got.TargetIDs) != fmt.Sprint(want.TargetIDs) {
		t.Fatalf("%s: %d evaluations for %v, want %d for %v",
			what, len(got.Losses), got.TargetIDs, want.Evaluations, want.TargetIDs)
	}
	for j, s := range want.Steps {
		l := got.Losses[j]
		near(t, fmt.Sprintf("%s nll %d", what, j), l.NLL, s.NLL, 1e-3)
		near(t, fmt.Sprintf("%s kl %d", what, j), l.KL, s.KL, 1e-4)
		near(t, fmt.Sprintf("%s decay %d", what, j), l.Decay, s.WD, 1e-5)
	}
	d := len(got.Value)
	for j, delta := range got.Deltas() {
		if d := relative(delta, get("deltas")[j*d:(j+1)*d]); j > 0 && !(d < 1e-3) {
			t.Errorf("%s: δ %d differs by %.2g", what, j, d)
		}
	}
	u := append([]float64(nil), direct...)
	editing.Scale(u, 1/editing.Norm(u))
	for _, pair := range []struct {
		name      string
		got       []float32
		want      []float64
		tolerance float64
	}{
		{"k*", got.Key, get("k_star"), 1e-4},
		{"û", got.Right[0], u, 1e-4},
		{"Λ", got.Left[0], left, 1e-3},
		{"v*", got.Value, get("v_star"), 1e-3},
	} {
		if d := relative(editing.Float64s(pair.got), pair.want); !(d < pair.tolerance) {
			t.Errorf("%s: %s differs by %.2g", what, pair.name, d)
		}
	}
	if nll := want.Post[method].Rewrite; len(nll) > 0 {
		if d := got.TargetProbAfter - math.Exp(-nll[0].New); !(math.Abs(d) < 0.01) {
			t.Errorf("%s: P %.4f, want %.4f", what, got.TargetProbAfter, math.Exp(-nll[0].New))
		}
	}
	if got.Statistics.Corpus != "identity" {
		near(t, what+" divisor ratio", got.DivisorRatio, want.Divisor/want.DivisorStar, 1e-4)
	}
	near(t, what+" ‖W‖", got.Norm/got.NormRatio, want.WeightNorm, 1e-5)
}
