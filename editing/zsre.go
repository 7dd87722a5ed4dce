package editing

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// ZsRERecord is what an evaluation needs of a record of zero-shot relation extraction (Levy et al. 2017, in the form of
// Mitchell et al. 2021): a question about a subject, its true answer, the question in other words, and a question about
// something else.
type ZsRERecord struct {
	Request    Request
	Paraphrase string
	Elsewhere  string // an unrelated question, and its answer
	Answer     string
}

// ParseZsRE reads a list of records with subject, src, answers, rephrase, loc and loc_ans. Facts are rewritten to the
// true answer, answers[0], as Meng et al. (2022) do. Errors wrap ErrRequest or ErrSubject.
func ParseZsRE(data []byte) ([]ZsRERecord, error) {
	var list []struct {
		Subject  string   `json:"subject"`
		Source   string   `json:"src"`
		Answers  []string `json:"answers"`
		Rephrase string   `json:"rephrase"`
		Loc      string   `json:"loc"`
		LocAns   string   `json:"loc_ans"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%w: not a list of zsRE's records: %w", ErrRequest, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: no records", ErrRequest)
	}
	var out []ZsRERecord
	for i, r := range list {
		if len(r.Answers) == 0 {
			return nil, fmt.Errorf("%w: record %d has no answers", ErrRequest, i)
		}
		t, err := TemplateOf(r.Source, r.Subject)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		one := ZsRERecord{Request: Request{Prompt: t.Fill("{}"), Subject: r.Subject, Target: r.Answers[0]}}
		one.Paraphrase, one.Answer = r.Rephrase, r.LocAns
		if r.Loc != "" {
			one.Elsewhere = strings.TrimSuffix(r.Loc, "?") + "?"
		}
		if err := one.Request.check(); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		out = append(out, one)
	}
	return out, nil
}

// ZsREScores are the scores of one record: which share of a target's tokens are the most probable ones in their places,
// each behind the target's own tokens before it. nil where the record has no such question.
type ZsREScores struct {
	Rewrite    *float64 `json:"rewrite"`
	Paraphrase *float64 `json:"paraphrase,omitempty"`
	Elsewhere  *float64 `json:"elsewhere,omitempty"`
}

// ZsRESummary are zsRE's metrics in percent: ES (efficacy) on the question that was edited, PS (paraphrase) on it in
// other words, NS (specificity) on the unrelated question against its true answer. Score is their harmonic mean.
type ZsRESummary struct {
	ES       float64            `json:"ES"`
	PS       float64            `json:"PS"`
	NS       float64            `json:"NS"`
	Score    float64            `json:"S"`
	Interval map[string]float64 `json:"interval"` // half of the 95 % interval, 1.96·std/√records
	Records  int                `json:"records"`
}

// ZsREResult is the outcome of an evaluation.
type ZsREResult struct {
	Outcome
	Before  ZsRESummary `json:"before"`
	After   ZsRESummary `json:"after"`
	Records []ZsRECase  `json:"records"`
}

// ZsRECase is one record's outcome.
type ZsRECase struct {
	Request Request    `json:"request"`
	Before  ZsREScores `json:"before"`
	After   ZsREScores `json:"after"`
	EditOutcome
}

// EvaluateZsRE edits and scores records. The model is left as it was. Errors are those of EvaluateCounterFact.
func EvaluateZsRE(
	ctx context.Context, m *transformer.Model, records []ZsRERecord, opts EvaluateOptions,
) (*ZsREResult, error) {
	if m.Tokenizer == nil {
		return nil, fmt.Errorf("%w: the model has no tokenizer", ErrRequest)
	}
	t := &trials[ZsREScores]{name: "zsre, accuracy of tokens", identity: records}
	for _, r := range records {
		t.facts = append(t.facts, r.Request)
	}
	t.score = func(ctx context.Context, i int) (ZsREScores, error) { return records[i].score(ctx, m) }
	list, about, err := evaluate(ctx, m, t, opts)
	if err != nil {
		return nil, err
	}
	r := &ZsREResult{Outcome: about}
	var before, after []ZsREScores
	for i, one := range list {
		before, after = append(before, one.before), append(after, one.after)
		r.Records = append(r.Records, ZsRECase{records[i].Request, one.before, one.after, one.EditOutcome})
	}
	r.Before, r.After = summariseZsRE(before), summariseZsRE(after)
	return r, nil
}

// score asks a record's questions.
func (r *ZsRERecord) score(ctx context.Context, m *transformer.Model) (out ZsREScores, err error) {
	t, err := r.Request.template()
	if err != nil {
		return out, err
	}
	asked := []question{{t.Fill(r.Request.Subject), r.Request.Target}}
	into := []**float64{&out.Rewrite}
	if r.Paraphrase != "" {
		asked, into = append(asked, question{r.Paraphrase, r.Request.Target}), append(into, &out.Paraphrase)
	}
	if r.Elsewhere != "" && strings.TrimSpace(r.Answer) != "" {
		asked, into = append(asked, question{r.Elsewhere, r.Answer}), append(into, &out.Elsewhere)
	}
	got, err := score(ctx, m, asked)
	if err != nil {
		return out, err
	}
	for i, a := range got {
		share := float64(a.right) / float64(a.tokens)
		*into[i] = &share
	}
	return out, nil
}

func summariseZsRE(list []ZsREScores) ZsRESummary {
	s := ZsRESummary{Interval: map[string]float64{}, Records: len(list)}
	for name, of := range map[string]struct {
		into  *float64
		value func(ZsREScores) *float64
	}{
		"ES": {&s.ES, func(z ZsREScores) *float64 { return z.Rewrite }},
		"PS": {&s.PS, func(z ZsREScores) *float64 { return z.Paraphrase }},
		"NS": {&s.NS, func(z ZsREScores) *float64 { return z.Elsewhere }},
	} {
		var all []float64
		for _, z := range list {
			if v := of.value(z); v != nil {
				all = append(all, 100**v)
			}
		}
		*of.into, s.Interval[name] = meanInterval(all)
	}
	s.Score = harmonic(s.ES, s.PS, s.NS)
	return s
}

// harmonic is the harmonic mean, 0 where one of the numbers is.
func harmonic(list ...float64) float64 {
	sum := 0.0
	for _, v := range list {
		if v <= 0 {
			return 0
		}
		sum += 1 / v
	}
	return float64(len(list)) / sum
}
