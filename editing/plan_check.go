package editing

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/transformer"
)

// kind is what a check is about.
func (c *PlanCheck) kind() (string, error) {
	var kinds []string
	for name, set := range map[string]bool{
		"says": c.Says != "", "prefers": c.Prefers != "" || c.Over != "", "target": c.Target != "",
		"unchanged_within": c.Within != nil, "text": c.Text != "", "records": c.Records != "",
	} {
		if set {
			kinds = append(kinds, name)
		}
	}
	if slices.Sort(kinds); len(kinds) != 1 {
		return "", fmt.Errorf("it has %d of says, prefers, target, unchanged_within, text and records, and needs one: %s",
			len(kinds), strings.Join(kinds, ", "))
	}
	kind := kinds[0]
	ofPrompt := kind != "text" && kind != "records"
	switch {
	case ofPrompt != (c.Prompt != ""):
		return "", fmt.Errorf("%s with the prompt %q", kind, c.Prompt)
	case kind == "prefers" && (c.Prefers == "" || c.Over == ""):
		return "", errors.New("prefers needs over, and the other way around")
	case kind == "target" && c.AtLeast == nil && c.AtMost == nil:
		return "", errors.New("target needs at_least or at_most")
	case kind == "text" && c.MaxKL == nil:
		return "", errors.New("text needs max_kl")
	case kind == "records" && len(c.Scores) == 0:
		return "", errors.New("records needs scores")
	}
	if kind == "records" {
		zero := Scores{}
		for name := range c.Scores {
			if _, ok := zero.byName(name); !ok {
				return "", fmt.Errorf("no score %q", name)
			}
		}
	}
	return kind, nil
}

// byName gives a score.
func (s *Scores) byName(name string) (float64, bool) {
	v, ok := map[string]float64{
		"ES": s.ES, "EM": s.EM, "PS": s.PS, "PM": s.PM, "NS": s.NS, "NM": s.NM, "S": s.Score, "exact_ES": s.ExactES,
		"exact_PS": s.ExactPS, "exact_NS": s.ExactNS,
	}[name]
	return v, ok
}

// planChecker makes the checks of a plan.
type planChecker struct {
	ctx           context.Context
	m             *transformer.Model
	plan          *Plan
	before, after []transformer.Delta
}

// run makes one check with the edits in force.
func (c *planChecker) run(check *PlanCheck) (r CheckResult, err error) {
	kind, err := check.kind()
	if err != nil {
		return r, err
	}
	if err := c.m.SetDeltas(c.after); err != nil {
		return r, err
	}
	r = CheckResult{Name: check.Name, Kind: kind}
	if r.Name == "" {
		r.Name = check.Prompt + check.Text + check.Records
	}
	switch kind {
	case "says", "prefers", "target":
		return r, c.answers(check, &r)
	case "unchanged_within":
		return r, c.unchanged(check, &r)
	case "text":
		return r, c.text(check, &r)
	}
	return r, c.records(check, &r)
}

// answers checks what is said behind a prompt.
func (c *planChecker) answers(check *PlanCheck, r *CheckResult) error {
	asked := []question{{check.Prompt, check.Says + check.Prefers + check.Target}} // only one of them is set
	if check.Over != "" {
		asked = append(asked, question{check.Prompt, check.Over})
	}
	got, err := score(c.ctx, c.m, asked)
	if err != nil {
		return err
	}
	r.Got = math.Exp(-got[0].nll)
	switch {
	case check.Says != "":
		r.OK, r.Want = got[0].right == got[0].tokens, fmt.Sprintf("%q is most probable", check.Says)
	case check.Over != "":
		other := math.Exp(-got[1].nll)
		r.OK, r.Want = r.Got > other, fmt.Sprintf("%q over %q, which has %.3g", check.Prefers, check.Over, other)
	default:
		r.OK, r.Want = true, fmt.Sprintf("%q", check.Target)
		if v := check.AtLeast; v != nil {
			r.OK, r.Want = r.OK && r.Got >= *v, fmt.Sprintf("%s at least %g", r.Want, *v)
		}
		if v := check.AtMost; v != nil {
			r.OK, r.Want = r.OK && r.Got <= *v, fmt.Sprintf("%s at most %g", r.Want, *v)
		}
	}
	return nil
}

// unchanged checks that the prediction behind a prompt is what it was.
func (c *planChecker) unchanged(check *PlanCheck, r *CheckResult) error {
	tokens, err := c.m.Tokenizer.Encode(check.Prompt, true)
	if err != nil {
		return err
	}
	var logp [2][]float64
	for i, d := range [][]transformer.Delta{c.before, c.after} {
		if err := c.m.SetDeltas(d); err != nil {
			return err
		}
		x, err := logitsOf(c.ctx, c.m, [][]int{idsOf(tokens)}, []int{-1})
		if err != nil {
			return err
		}
		logp[i] = logSoftmax(x.At(0, 0).Data)
	}
	r.Got = divergence(logp[0], logp[1])
	r.OK, r.Want = r.Got <= *check.Within, fmt.Sprintf("KL at most %g", *check.Within)
	return nil
}

// text checks the drift on a text.
func (c *planChecker) text(check *PlanCheck, r *CheckResult) error {
	length := c.m.Config.Context
	if length == 0 || length > 512 {
		length = 512
	}
	text, err := corpus.Load(c.ctx, []string{c.plan.Path(check.Text)}, corpus.Options{
		Vocab: c.m.Config.Vocab, Length: length, Encode: func(text string, special bool) ([]int, error) {
			tokens, err := c.m.Tokenizer.Encode(text, special)
			return idsOf(tokens), err
		},
	}, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPlan, err)
	}
	rows := make([][]int, text.Len())
	for i := range rows {
		rows[i] = text.Row(i)
	}
	drift, err := measureDrift(c.ctx, c.m, rows, c.before, c.after)
	if err != nil {
		return err
	}
	r.Got = drift.drift().KL
	r.OK, r.Want = r.Got <= *check.MaxKL, fmt.Sprintf("mean KL at most %g", *check.MaxKL)
	return nil
}

// records checks the scores of records. What is told is the score that is furthest below what it should be.
func (c *planChecker) records(check *PlanCheck, r *CheckResult) error {
	data, err := os.ReadFile(c.plan.Path(check.Records))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPlan, err)
	}
	records, err := ParseCounterFact(data)
	if err != nil {
		return fmt.Errorf("%s: %w", check.Records, err)
	}
	var list []CaseScores
	for i := range records {
		s, err := scoreRecord(c.ctx, c.m, &records[i])
		if err != nil {
			return fmt.Errorf("%s: record %d: %w", check.Records, i, err)
		}
		list = append(list, s)
	}
	all, worst := Summarise(list), math.Inf(1)
	r.OK = true
	for _, name := range slices.Sorted(maps.Keys(check.Scores)) {
		want := check.Scores[name]
		got, _ := all.byName(name)
		if r.OK = r.OK && got >= want; got-want < worst {
			worst, r.Got, r.Want = got-want, got, fmt.Sprintf("%s at least %g", name, want)
		}
	}
	return nil
}
