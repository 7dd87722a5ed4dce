package editing_test

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
)

const somePlan = `
requests:
  - {prompt: "{} was very", subject: Tom, target: sad}
checks:
  - {name: said, prompt: Tom was very, says: sad}
  - {prompt: Tom was very, prefers: sad, over: happy}
  - {prompt: Tom was very, target: sad, at_least: 0.2, at_most: 1}
  - {prompt: "One day, a", unchanged_within: 0.1}
  - {text: text.txt, max_kl: 5}
  - {records: records.json, scores: {ES: 100, NS: 0}}
`

// planFolder has the files that somePlan names.
func planFolder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"plan.yaml": somePlan, "text.txt": "Tom was very happy.\nLily had a red ball.\n",
		"records.json": `[{"requested_rewrite":{"prompt":"{} was very","subject":"Tom","target_new":{"str":"sad"},"target_true":{"str":"happy"}},
			"neighborhood_prompts":["Lily was very"]}]`,
		"bad.json": "{}",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestPlanChecksTheEditedModel: what the checks tell is worked out from the edited model's probabilities, and a check that
// asks for a bit more than there is fails.
func TestPlanChecksTheEditedModel(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		plan, err := editing.LoadPlan(filepath.Join(planFolder(t), "plan.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		editor := someEditor(t, m)
		editor.Value.Steps = 12
		got, err := plan.Run(t.Context(), m, editor, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !got.OK || len(got.Edits.List) != 1 || len(m.Deltas()) != 0 {
			t.Errorf("%+v, %d changes left", got, len(m.Deltas()))
		}
		var before, after []float64
		ids := idsOf(t, m, "One day, a")
		before = nextProbs(t, m, ids)
		if err := m.SetDeltas(got.Edits.Deltas()); err != nil {
			t.Fatal(err)
		}
		after = nextProbs(t, m, ids)
		prob, target := 0.0, targetOf(t, m, "sad")
		prompt := idsOf(t, m, "Tom was very")
		for i, id := range target {
			prob += math.Log(nextProbs(t, m, append(prompt, target[:i]...))[id]) / float64(len(target))
		}
		if err := m.SetDeltas(nil); err != nil {
			t.Fatal(err)
		}
		kl := 0.0
		for i, p := range before {
			kl += p * math.Log(p/after[i])
		}
		near(t, "the target's probability", got.Checks[2].Got, math.Exp(prob), 1e-4)
		near(t, "the prediction elsewhere", got.Checks[3].Got, kl, 1e-5)
		if got.Checks[0].Name != "said" || got.Checks[1].Name != "Tom was very" || got.Checks[5].Want != "ES at least 100" {
			t.Errorf("%+v", got.Checks)
		}
		more := got.Checks[2].Got + 0.01
		plan.Checks = []editing.PlanCheck{plan.Checks[0], {Prompt: "Tom was very", Target: "sad", AtLeast: &more}}
		if got, err := plan.Run(t.Context(), m, editor, nil); err != nil || got.OK || !got.Checks[0].OK || got.Checks[1].OK {
			t.Errorf("a check that fails: %+v, %v", got, err)
		}
	})
}

func TestBadPlans(t *testing.T) {
	const request = `requests: [{prompt: "{} was", subject: Tom, target: sad}]` + "\n"
	for what, text := range map[string]string{
		"nothing":             "",
		"no YAML":             "requests: [",
		"no requests":         "checks: []",
		"an unknown name":     request + "chekcs: []",
		"an empty target":     `requests: [{prompt: "{} was", subject: Tom, target: " "}]`,
		"no subject":          `requests: [{prompt: "Lily was", subject: Tom, target: sad}]`,
		"two kinds":           request + `checks: [{prompt: x, says: a, target: b, at_least: 1}]`,
		"no kind":             request + `checks: [{prompt: x}]`,
		"a target alone":      request + `checks: [{prompt: x, target: b}]`,
		"half a preference":   request + `checks: [{prompt: x, prefers: b}]`,
		"no prompt":           request + `checks: [{says: b}]`,
		"a text with nothing": request + `checks: [{text: b}]`,
		"a score":             request + `checks: [{records: b, scores: {XS: 1}}]`,
		"no scores":           request + `checks: [{records: b}]`,
		"a format":            request + `export: {folder: x, format: zip}`,
		"no folder":           request + `export: {format: hf}`,
	} {
		if _, err := editing.ParsePlan([]byte(text)); !errors.Is(err, editing.ErrPlan) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := editing.LoadPlan(filepath.Join(t.TempDir(), "none")); !errors.Is(err, editing.ErrPlan) {
		t.Errorf("no file: %v", err)
	}
	m, dir := open(t, backendtest.Open(t, "go"), "stories"), planFolder(t)
	for what, change := range map[string]func(*editing.Plan){
		"a file of requests": func(p *editing.Plan) { p.RequestsFrom = "none" },
		"a text":             func(p *editing.Plan) { p.Checks[4].Text = "none" },
		"a file of records":  func(p *editing.Plan) { p.Checks[5].Records = "none" },
		"records":            func(p *editing.Plan) { p.Checks[5].Records = "bad.json" },
	} {
		plan, err := editing.LoadPlan(filepath.Join(dir, "plan.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		change(plan)
		if _, err := plan.Run(t.Context(), m, someEditor(t, m), nil); !errors.Is(err, editing.ErrPlan) && !errors.Is(err, editing.ErrRequest) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
