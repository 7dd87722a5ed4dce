package editing

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// CounterFactRecord is what an evaluation needs of a record of CounterFact (Meng et al. 2022, § 3.4).
type CounterFactRecord struct {
	CaseID       int
	Request      Request
	Paraphrases  []string // the fact in other words
	Neighborhood []string // other subjects, of which the old answer is true
}

// ParseCounterFact reads CounterFact's list of records.
func ParseCounterFact(data []byte) ([]CounterFactRecord, error) {
	var list []struct {
		CaseID       int            `json:"case_id"`
		Rewrite      *rewriteRecord `json:"requested_rewrite"`
		Paraphrases  []string       `json:"paraphrase_prompts"`
		Neighborhood []string       `json:"neighborhood_prompts"`
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%w: not a list of CounterFact's records: %w", ErrRequest, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: no records", ErrRequest)
	}
	var out []CounterFactRecord
	for i, r := range list {
		if r.Rewrite == nil {
			return nil, fmt.Errorf("%w: record %d has no requested_rewrite", ErrRequest, i)
		}
		w := r.Rewrite
		q := Request{w.Prompt, w.Subject, string(w.TargetNew), string(w.TargetOld)}
		if err := q.check(); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		if q.Old == "" {
			return nil, fmt.Errorf("%w: record %d has no target_true", ErrRequest, i)
		}
		out = append(out, CounterFactRecord{r.CaseID, q, r.Paraphrases, r.Neighborhood})
	}
	return out, nil
}

// CounterFactOptions say how records are edited.
type CounterFactOptions struct {
	Editor Editor
	// Sequential keeps every edit in force for the records behind it, and scores all records after the last edit.
	// Otherwise each record is edited and scored alone.
	Sequential bool
	// Progress is told how many records are done; it may be nil.
	Progress func(done, total int)
}

// CounterFactResult is the outcome of an evaluation.
type CounterFactResult struct {
	Protocol string            `json:"protocol"`
	Before   Scores            `json:"before"`
	After    Scores            `json:"after"`
	Records  []CounterFactCase `json:"records"`
}

// CounterFactCase is one record's outcome.
type CounterFactCase struct {
	CaseID    int        `json:"case_id"`
	Request   Request    `json:"request"`
	Before    CaseScores `json:"before"`
	After     CaseScores `json:"after"`
	NormRatio float64    `json:"norm_ratio"`
	Steps     int        `json:"steps"`
	Warnings  []string   `json:"warnings,omitempty"`
}

// CaseScores are the scores of the prompts of one record.
type CaseScores struct {
	Rewrite      []PromptScore `json:"rewrite"`
	Paraphrases  []PromptScore `json:"paraphrases"`
	Neighborhood []PromptScore `json:"neighborhood"`
}

// PromptScore is the mean −log P per token (nats) of the new and of the old target behind a prompt, and whether every
// token of each is the most probable one in its place.
type PromptScore struct {
	New      float64 `json:"nll_new"`
	Old      float64 `json:"nll_true"`
	ExactNew bool    `json:"exact_new"`
	ExactOld bool    `json:"exact_true"`
}

// EvaluateCounterFact edits and scores records. The model is left as it was.
func EvaluateCounterFact(
	ctx context.Context, m *transformer.Model, records []CounterFactRecord, opts CounterFactOptions,
) (_ *CounterFactResult, err error) {
	in := m.Deltas()
	defer func() {
		if restored := m.SetDeltas(in); err == nil {
			err = restored
		}
	}()
	r := &CounterFactResult{Protocol: "counterfact, one edit at a time", Records: make([]CounterFactCase, len(records))}
	if opts.Sequential {
		r.Protocol = "counterfact, edits in sequence, scored after the last"
	}
	for i := range records {
		if r.Records[i].Before, err = scoreRecord(ctx, m, &records[i]); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
	}
	now, earlier := in, []*Edit(nil)
	for i := range records {
		edits, err := opts.Editor.Edit(ctx, m, []Request{records[i].Request}, earlier)
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		c := &r.Records[i]
		c.CaseID, c.Request = records[i].CaseID, records[i].Request
		for _, e := range edits {
			now = append(slices.Clone(now), e.Delta())
			c.NormRatio, c.Steps = max(c.NormRatio, e.NormRatio), len(e.Losses)
			c.Warnings = append(c.Warnings, e.Warnings...)
		}
		if err := m.SetDeltas(now); err != nil {
			return nil, err
		}
		if !opts.Sequential {
			if c.After, err = scoreRecord(ctx, m, &records[i]); err != nil {
				return nil, fmt.Errorf("record %d: %w", i, err)
			}
			now, edits = in, nil
			if err := m.SetDeltas(now); err != nil {
				return nil, err
			}
		}
		earlier = append(earlier, edits...)
		if opts.Progress != nil {
			opts.Progress(i+1, len(records))
		}
	}
	for i := range records {
		if opts.Sequential {
			if r.Records[i].After, err = scoreRecord(ctx, m, &records[i]); err != nil {
				return nil, fmt.Errorf("record %d: %w", i, err)
			}
		}
	}
	r.summarise()
	return r, nil
}

// summarise makes the table.
func (r *CounterFactResult) summarise() {
	var before, after []CaseScores
	for _, c := range r.Records {
		before, after = append(before, c.Before), append(after, c.After)
	}
	r.Before, r.After = Summarise(before), Summarise(after)
}

// scoreRecord scores all prompts of a record in one run: both targets behind each, teacher-forced.
func scoreRecord(ctx context.Context, m *transformer.Model, r *CounterFactRecord) (out CaseScores, err error) {
	t, err := r.Request.template()
	if err != nil {
		return out, err
	}
	prompts := slices.Concat([]string{t.Fill(r.Request.Subject)}, r.Paraphrases, r.Neighborhood)
	list, err := scorePrompts(ctx, m, prompts, r.Request.Target, r.Request.Old)
	if err != nil {
		return out, err
	}
	n := 1 + len(r.Paraphrases)
	return CaseScores{list[:1], list[1:n], list[n:]}, nil
}

// scorePrompts gives the two targets' scores behind each prompt. Prompt and target are joined as token ids.
func scorePrompts(
	ctx context.Context, m *transformer.Model, prompts []string, targets ...string,
) ([]PromptScore, error) {
	var rows, want [][]int
	longest := 0
	for _, p := range prompts {
		tokens, err := m.Tokenizer.Encode(p, true)
		if err != nil {
			return nil, fmt.Errorf("prompt %q: %w", p, err)
		}
		for _, target := range targets {
			y, err := TargetIDs(m.Tokenizer, target)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrRequest, err)
			}
			rows, want = append(rows, append(idsOf(tokens), y[:len(y)-1]...)), append(want, y)
			longest = max(longest, len(y))
		}
	}
	positions := make([]int, longest)
	for i := range positions {
		positions[i] = i - longest
	}
	run, err := m.Run(ctx, rows, transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: positions})
	if err != nil {
		return nil, err
	}
	defer run.Close()
	logits, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		return nil, err
	}
	out := make([]PromptScore, len(prompts))
	for row, y := range want {
		nll, exact := 0.0, true
		for i, id := range y {
			logp := logSoftmax(logits.At(row, longest-len(y)+i).Data)
			nll -= logp[id] / float64(len(y))
			exact = exact && argmax(logp) == id
		}
		if s := &out[row/2]; row%2 == 0 {
			s.New, s.ExactNew = nll, exact
		} else {
			s.Old, s.ExactOld = nll, exact
		}
	}
	return out, nil
}

// Scores are CounterFact's metrics in percent. E is of the rewritten prompt, P of the paraphrases, N of the
// neighbourhood; S counts where the wanted target (N: the old one) is the more probable of the two, ties as failures, M
// is by how much, and Exact counts where every token of it is the most probable of all. Score is the harmonic mean of
// ES, PS and NS. Prompts are averaged within a record, then records.
type Scores struct {
	ES      float64 `json:"ES"`
	EM      float64 `json:"EM"`
	PS      float64 `json:"PS"`
	PM      float64 `json:"PM"`
	NS      float64 `json:"NS"`
	NM      float64 `json:"NM"`
	Score   float64 `json:"S"`
	ExactES float64 `json:"exact_ES"`
	ExactPS float64 `json:"exact_PS"`
	ExactNS float64 `json:"exact_NS"`
	// Interval has half the width of the 95 % interval of each, 1.96·std/√records.
	Interval map[string]float64 `json:"interval"`
	Records  int                `json:"records"`
}

// Summarise averages the scores of records. Records without paraphrases or neighbours do not count there.
func Summarise(list []CaseScores) Scores {
	s := Scores{Interval: map[string]float64{}, Records: len(list)}
	measure := func(name string, prompts func(CaseScores) []PromptScore, value func(PromptScore) float64) float64 {
		var all []float64
		for _, c := range list {
			if p := prompts(c); len(p) > 0 {
				sum := 0.0
				for _, one := range p {
					sum += 100 * value(one) / float64(len(p))
				}
				all = append(all, sum)
			}
		}
		mean, half := meanInterval(all)
		s.Interval[name] = half
		return mean
	}
	rewrite := func(c CaseScores) []PromptScore { return c.Rewrite }
	paraphrases := func(c CaseScores) []PromptScore { return c.Paraphrases }
	neighbors := func(c CaseScores) []PromptScore { return c.Neighborhood }
	wins := func(p PromptScore) float64 { return truth(p.Old > p.New) }
	margin := func(p PromptScore) float64 { return math.Exp(-p.New) - math.Exp(-p.Old) }
	exact := func(p PromptScore) float64 { return truth(p.ExactNew) }
	s.ES, s.EM = measure("ES", rewrite, wins), measure("EM", rewrite, margin)
	s.PS, s.PM = measure("PS", paraphrases, wins), measure("PM", paraphrases, margin)
	s.NS = measure("NS", neighbors, func(p PromptScore) float64 { return truth(p.Old < p.New) })
	s.NM = measure("NM", neighbors, func(p PromptScore) float64 { return -margin(p) })
	s.ExactES, s.ExactPS = measure("exact_ES", rewrite, exact), measure("exact_PS", paraphrases, exact)
	s.ExactNS = measure("exact_NS", neighbors, func(p PromptScore) float64 { return truth(p.ExactOld) })
	if s.ES > 0 && s.PS > 0 && s.NS > 0 {
		s.Score = 3 / (1/s.ES + 1/s.PS + 1/s.NS)
	}
	return s
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// meanInterval is the mean of a list and half the width of its 95 % interval.
func meanInterval(x []float64) (mean, half float64) {
	n := float64(len(x))
	if n == 0 {
		return 0, 0
	}
	for _, v := range x {
		mean += v / n
	}
	for _, v := range x {
		half += (v - mean) * (v - mean) / n
	}
	return mean, 1.96 * math.Sqrt(half/n)
}
