package editing

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/engram-go/engram/transformer"
)

// ErrPlan is wrapped by errors about plans that cannot be understood.
var ErrPlan = errors.New("bad plan")

// Plan is a script of edits: facts to rewrite, checks that the edited model has to pass, and where it goes then.
type Plan struct {
	// Editor are the flags of engram edit by name, such as method, layer, stats, clamp; for the command alone.
	Editor   map[string]any `json:"editor,omitempty"`
	Requests []Request      `json:"requests,omitempty"`
	// RequestsFrom is a file of more requests, in the forms that ParseRequests reads.
	RequestsFrom string      `json:"requests_from,omitempty"`
	Checks       []PlanCheck `json:"checks,omitempty"`
	Save         string      `json:"save,omitempty"` // edit file to write when all checks pass
	Export       *PlanExport `json:"export,omitempty"`

	Dir string `json:"-"` // that relative names of files are in
}

// PlanExport is a folder to write when all checks pass.
type PlanExport struct {
	Folder string `json:"folder"`
	Format string `json:"format,omitempty"` // hf, the default, or peft
}

// PlanCheck is something that has to be true of the edited model. It is one of several kinds, by what is set.
type PlanCheck struct {
	Name   string `json:"name,omitempty"`
	Prompt string `json:"prompt,omitempty"`

	// Says is an answer of which every token has to be the most probable one behind the prompt.
	Says string `json:"says,omitempty"`
	// Prefers has to have more mean log P per token behind the prompt than Over.
	Prefers string `json:"prefers,omitempty"`
	Over    string `json:"over,omitempty"`
	// Target has to have a probability per token, e^(mean log P), of AtLeast or AtMost behind the prompt.
	Target  string   `json:"target,omitempty"`
	AtLeast *float64 `json:"at_least,omitempty"`
	AtMost  *float64 `json:"at_most,omitempty"`
	// Within bounds KL(before ‖ after) of the next token behind the prompt, nats.
	Within *float64 `json:"unchanged_within,omitempty"`

	// Text is a file of documents on which predictions may drift by no more than MaxKL in the mean, nats.
	Text  string   `json:"text,omitempty"`
	MaxKL *float64 `json:"max_kl,omitempty"`

	// Records is a file of CounterFact's records which, with all edits in force, must reach these scores (ES, PS, NS, …).
	Records string             `json:"records,omitempty"`
	Scores  map[string]float64 `json:"scores,omitempty"`
}

// ParsePlan reads a plan in YAML or JSON. Errors wrap ErrPlan, also for names that no plan has.
func ParsePlan(data []byte) (*Plan, error) {
	var tree any
	if err := yaml.Unmarshal(data, &tree); err != nil { // JSON is YAML
		return nil, fmt.Errorf("%w: %w", ErrPlan, err)
	}
	text, err := json.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlan, err)
	}
	p := &Plan{}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(p); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlan, err)
	}
	return p, p.check()
}

// LoadPlan reads a plan's file. Relative names of files in it are relative to its folder.
func LoadPlan(path string) (*Plan, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlan, err)
	}
	p, err := ParsePlan(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	p.Dir = filepath.Dir(path)
	return p, nil
}

// Path is a name of a file in the plan.
func (p *Plan) Path(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(p.Dir, name)
}

// check refuses plans that say too little or contradict themselves.
func (p *Plan) check() error {
	if len(p.Requests) == 0 && p.RequestsFrom == "" {
		return fmt.Errorf("%w: no requests", ErrPlan)
	}
	for i := range p.Requests {
		if err := p.Requests[i].check(); err != nil {
			return fmt.Errorf("%w: request %d: %w", ErrPlan, i, err)
		}
	}
	for i := range p.Checks {
		if _, err := p.Checks[i].kind(); err != nil {
			return fmt.Errorf("%w: check %d: %w", ErrPlan, i, err)
		}
	}
	if e := p.Export; e != nil {
		if e.Folder == "" || !slices.Contains([]string{"", "hf", "peft"}, e.Format) {
			return fmt.Errorf("%w: export to %q in the format %q; there are hf and peft", ErrPlan, e.Folder, e.Format)
		}
	}
	return nil
}

// AllRequests are the plan's requests with those of its file.
func (p *Plan) AllRequests() ([]Request, error) {
	if p.RequestsFrom == "" {
		return p.Requests, nil
	}
	data, err := os.ReadFile(p.Path(p.RequestsFrom))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPlan, err)
	}
	more, err := ParseRequests(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.RequestsFrom, err)
	}
	return slices.Concat(p.Requests, more), nil
}

// PlanResult is what became of a plan.
type PlanResult struct {
	OK     bool          `json:"ok"` // all checks passed
	Edits  *Edits        `json:"edits"`
	Drift  []Drift       `json:"drift,omitempty"` // what edits did to those before them
	Checks []CheckResult `json:"checks"`
}

// CheckResult is what became of a check.
type CheckResult struct {
	Name string  `json:"name"`
	Kind string  `json:"kind"`
	OK   bool    `json:"ok"`
	Got  float64 `json:"got"`
	Want string  `json:"want"`
}

// Run makes the plan's edits on top of those that are in force, earlier, and then its checks on the edited model, in
// their order. Nothing is written: Save and the export are the caller's, when the result is OK. The model is left as it
// was. Errors are those of the editor, and ErrPlan for files that cannot be read; a check that fails is no error.
func (p *Plan) Run(
	ctx context.Context, m *transformer.Model, editor Editor, earlier []*Edit,
) (r *PlanResult, err error) {
	if err := p.check(); err != nil {
		return nil, err
	}
	requests, err := p.AllRequests()
	if err != nil {
		return nil, err
	}
	in := m.Deltas()
	made, err := editor.Edit(ctx, m, requests, earlier)
	if err != nil {
		return nil, err
	}
	r = &PlanResult{OK: true, Checks: []CheckResult{}, Edits: &Edits{
		Model: m.Name, Fingerprint: m.Fingerprint, List: slices.Concat(earlier, made),
	}}
	if len(r.Edits.List) > 1 {
		if r.Drift, err = r.Edits.Drift(ctx, m); err != nil {
			return nil, err
		}
	}
	defer m.KeepDeltas()(&err)
	c := &planChecker{ctx: ctx, m: m, plan: p, before: in, after: withEdits(in, made)}
	for i := range p.Checks {
		got, err := c.run(&p.Checks[i])
		if err != nil {
			return nil, fmt.Errorf("check %d: %w", i, err)
		}
		r.Checks, r.OK = append(r.Checks, got), r.OK && got.OK
	}
	return r, nil
}
