package editing

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// CounterFactRecord is what an evaluation needs of a record of CounterFact (Meng et al. 2022, § 3.4).
type CounterFactRecord struct {
	CaseID       int
	Request      Request
	Paraphrases  []string // the fact in other words
	Neighborhood []string // other subjects, of which the old answer is true
	Generation   []string // prompts to write on from
	// Names of the relation and of the new and the old answer, by which reference texts are looked up.
	Relation, TargetID, OldID string
}

// counterFactRecord is a record in either form: CounterFact's own, or the flat one of EasyEdit's data.
type counterFactRecord struct {
	CaseID  int `json:"case_id"`
	Rewrite *struct {
		rewriteRecord
		Relation string `json:"relation_id"`
	} `json:"requested_rewrite"`
	Paraphrases  []string `json:"paraphrase_prompts"`
	Neighborhood []string `json:"neighborhood_prompts"`
	Generation   []string `json:"generation_prompts"`

	Prompt     string     `json:"prompt"`
	Subject    string     `json:"subject"`
	Target     targetText `json:"target_new"`
	Old        string     `json:"ground_truth"`
	Rephrased  string     `json:"rephrase_prompt"`
	Locality   string     `json:"locality_prompt"`
	LocalityIs string     `json:"locality_ground_truth"`
}

// ParseCounterFact reads CounterFact's list of records, or the flat form with one paraphrase and one neighbour. Errors
// wrap ErrRequest.
func ParseCounterFact(data []byte) ([]CounterFactRecord, error) {
	var list []counterFactRecord
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%w: not a list of CounterFact's records: %w", ErrRequest, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: no records", ErrRequest)
	}
	var out []CounterFactRecord
	for i := range list {
		r, err := list[i].record()
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// record settles which form a record has.
func (r *counterFactRecord) record() (out CounterFactRecord, err error) {
	out = CounterFactRecord{CaseID: r.CaseID}
	if w := r.Rewrite; w != nil {
		out.Request = Request{w.Prompt, w.Subject, w.TargetNew.Text, w.TargetOld.Text}
		out.Paraphrases, out.Neighborhood, out.Generation = r.Paraphrases, r.Neighborhood, r.Generation
		out.Relation, out.TargetID, out.OldID = w.Relation, w.TargetNew.ID, w.TargetOld.ID
	} else {
		out.Request = Request{r.Prompt, r.Subject, r.Target.Text, r.Old}
		if r.Prompt == "" {
			return out, fmt.Errorf("%w: no requested_rewrite, and no prompt", ErrRequest)
		}
		if r.Rephrased != "" {
			out.Paraphrases = []string{r.Rephrased}
		}
		if r.Locality != "" && r.LocalityIs == r.Old { // of others the two targets say nothing
			out.Neighborhood = []string{r.Locality}
		}
	}
	if out.Request.Old == "" {
		return out, fmt.Errorf("%w: no target_true", ErrRequest)
	}
	return out, out.Request.check()
}

// CounterFactOptions say how records are edited and scored.
type CounterFactOptions struct {
	EvaluateOptions
	// Generate writes texts on from the generation prompts and scores them; nil means not.
	Generate *GenerationOptions
}

// CounterFactResult is the outcome of an evaluation.
type CounterFactResult struct {
	Outcome
	Before  Scores            `json:"before"`
	After   Scores            `json:"after"`
	Records []CounterFactCase `json:"records"`
}

// CounterFactCase is one record's outcome.
type CounterFactCase struct {
	CaseID  int        `json:"case_id"`
	Request Request    `json:"request"`
	Before  CaseScores `json:"before"`
	After   CaseScores `json:"after"`
	EditOutcome
}

// CaseScores are the scores of the prompts of one record.
type CaseScores struct {
	Rewrite      []PromptScore `json:"rewrite"`
	Paraphrases  []PromptScore `json:"paraphrases"`
	Neighborhood []PromptScore `json:"neighborhood"`
	Generated    *Generated    `json:"generated,omitempty"`
}

// PromptScore is the mean −log P per token (nats) of the new and of the old target behind a prompt, and whether every
// token of each is the most probable one in its place.
type PromptScore struct {
	New      float64 `json:"nll_new"`
	Old      float64 `json:"nll_true"`
	ExactNew bool    `json:"exact_new"`
	ExactOld bool    `json:"exact_true"`
}

// EvaluateCounterFact edits and scores records. The model is left as it was. Errors wrap ErrRequest, ErrSubject,
// ErrStatistics or ErrLayer where records or the editor are at fault, and ErrPart where the journal is another job's.
func EvaluateCounterFact(
	ctx context.Context, m *transformer.Model, records []CounterFactRecord, opts CounterFactOptions,
) (*CounterFactResult, error) {
	if m.Tokenizer == nil {
		return nil, fmt.Errorf("%w: the model has no tokenizer", ErrRequest)
	}
	t := &trials[CaseScores]{name: "counterfact", identity: []any{records, opts.Generate}}
	for _, r := range records {
		t.facts = append(t.facts, r.Request)
	}
	t.score = func(ctx context.Context, i int) (CaseScores, error) {
		s, err := scoreRecord(ctx, m, &records[i])
		if err != nil || opts.Generate == nil {
			return s, err
		}
		s.Generated, err = opts.Generate.generate(ctx, m, &records[i])
		return s, err
	}
	list, about, err := evaluate(ctx, m, t, opts.EvaluateOptions)
	if err != nil {
		return nil, err
	}
	r := &CounterFactResult{Outcome: about}
	var before, after []CaseScores
	for i, one := range list {
		before, after = append(before, one.before), append(after, one.after)
		c := CounterFactCase{records[i].CaseID, records[i].Request, one.before, one.after, one.EditOutcome}
		r.Records = append(r.Records, c)
	}
	r.Before, r.After = Summarise(before), Summarise(after)
	return r, nil
}

// scoreRecord scores all prompts of a record in one run: both targets behind each, teacher-forced.
func scoreRecord(ctx context.Context, m *transformer.Model, r *CounterFactRecord) (out CaseScores, err error) {
	t, err := r.Request.template()
	if err != nil {
		return out, err
	}
	prompts := slices.Concat([]string{t.Fill(r.Request.Subject)}, r.Paraphrases, r.Neighborhood)
	var asked []question
	for _, p := range prompts {
		asked = append(asked, question{p, r.Request.Target}, question{p, r.Request.Old})
	}
	got, err := score(ctx, m, asked)
	if err != nil {
		return out, err
	}
	list := make([]PromptScore, len(prompts))
	for i := range list {
		new, old := got[2*i], got[2*i+1]
		list[i] = PromptScore{new.nll, old.nll, new.right == new.tokens, old.right == old.tokens}
	}
	n := 1 + len(r.Paraphrases)
	return CaseScores{Rewrite: list[:1], Paraphrases: list[1:n], Neighborhood: list[n:]}, nil
}

// question is a target behind a prompt.
type question struct{ prompt, target string }

// answer is how a model takes a question: the mean −log P per token of the target, nats, and how many of its tokens are
// the most probable ones in their places, each behind the target's own tokens before it.
type answer struct {
	nll           float64
	right, tokens int
}

// score asks questions in one run. Prompt and target are joined as token ids.
func score(ctx context.Context, m *transformer.Model, asked []question) ([]answer, error) {
	var rows, want [][]int
	longest := 0
	for _, q := range asked {
		tokens, err := m.Tokenizer.Encode(q.prompt, true)
		if err != nil {
			return nil, fmt.Errorf("prompt %q: %w", q.prompt, err)
		}
		y, err := TargetIDs(m.Tokenizer, q.target)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrRequest, err)
		}
		rows, want = append(rows, append(idsOf(tokens), y[:len(y)-1]...)), append(want, y)
		longest = max(longest, len(y))
	}
	positions := make([]int, longest)
	for i := range positions {
		positions[i] = i - longest
	}
	logits, err := logitsOf(ctx, m, rows, positions)
	if err != nil {
		return nil, err
	}
	out := make([]answer, len(asked))
	for row, y := range want {
		a := &out[row]
		a.tokens = len(y)
		for i, id := range y {
			logp := logSoftmax(logits.At(row, longest-len(y)+i).Data)
			a.nll -= logp[id] / float64(len(y))
			if argmax(logp) == id {
				a.right++
			}
		}
	}
	return out, nil
}
