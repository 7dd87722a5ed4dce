package editing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/engram-go/engram/transformer"
)

// KnownFact is a fact to trace, as the ROME authors' list known_1000 has them.
type KnownFact struct {
	ID        int    `json:"known_id"`
	Subject   string `json:"subject"`
	Attribute string `json:"attribute"` // what the model should answer; "" takes whatever it answers
	Prompt    string `json:"prompt"`
}

// ParseKnownFacts reads a list in the form of known_1000.json. Errors wrap ErrTrace.
func ParseKnownFacts(data []byte) ([]KnownFact, error) {
	var list []KnownFact
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("%w: not a list of facts with prompt, subject and attribute: %w", ErrTrace, err)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%w: no facts", ErrTrace)
	}
	for i, f := range list {
		if f.Prompt == "" || f.Subject == "" {
			return nil, fmt.Errorf("%w: fact %d has no prompt or no subject", ErrTrace, i)
		}
	}
	return list, nil
}

// Role is what a token is in the prompt of a fact.
type Role string

// The roles. A subject of one token is its first and its last one; middle and further tokens are samples of their own.
const (
	FirstSubject Role = "first subject"
	MidSubject   Role = "middle subject"
	LastSubject  Role = "last subject"
	FirstAfter   Role = "first after"
	FurtherAfter Role = "further after"
	LastToken    Role = "last"
)

// Roles are all roles in their order.
func Roles() []Role {
	return []Role{FirstSubject, MidSubject, LastSubject, FirstAfter, FurtherAfter, LastToken}
}

// positions are the tokens of a prompt of n that have a role; where the subject ends the prompt, some have none.
func (r Role) positions(subject [2]int, n int) (from, to int) {
	b, e := subject[0], subject[1]
	switch r {
	case FirstSubject:
		return b, b + 1
	case MidSubject:
		return b + 1, max(b+1, e-1)
	case LastSubject:
		return e - 1, e
	case FirstAfter:
		return e, min(e+1, n)
	case FurtherAfter:
		return min(e+1, n), max(min(e+1, n), n-1)
	}
	return n - 1, n
}

// AverageOptions say which facts to trace and how.
type AverageOptions struct {
	Facts []KnownFact
	// Trace has the settings of all traces; its prompt, subject, tokens and kind are not used.
	Trace TraceOptions
	Kinds []TraceKind // nil means hidden, mlp and attn
	// Journal names a file that keeps what is finished, so that the same call goes on there after an interruption; ""
	// means none. It is removed in the end.
	Journal  string
	Progress func(done, total int) // facts; nil means not at all
}

// AverageResult is a causal trace averaged over facts.
type AverageResult struct {
	Facts   int           `json:"facts"` // that the model knows, and that were traced
	Skipped []SkippedFact `json:"skipped"`
	High    Estimate      `json:"high"`         // the answer's probability without noise
	Low     Estimate      `json:"low"`          // with noise
	Total   Estimate      `json:"total_effect"` // the mean of their difference (ATE)
	Noise   Noise         `json:"noise"`
	RNG     RNG           `json:"rng"`
	Seed    uint64        `json:"seed"`
	Samples int           `json:"samples"`
	Kinds   []AverageKind `json:"kinds"`
}

// SkippedFact is a fact that was not traced.
type SkippedFact struct {
	ID     int    `json:"known_id"`
	Prompt string `json:"prompt"`
	Answer string `json:"answer"` // of the model
	Why    string `json:"why"`
}

// Estimate is a mean with half the width of its 95 % interval, 1.96·std/√n.
type Estimate struct {
	Mean     float64 `json:"mean"`
	Interval float64 `json:"interval"`
}

// AverageKind is the average effect of putting one kind of state back.
type AverageKind struct {
	Kind   TraceKind    `json:"kind"`
	Window int          `json:"window"`
	Roles  []RoleEffect `json:"roles"`
}

// RoleEffect is what the states of tokens of one role do, by layer [L].
type RoleEffect struct {
	Role    Role      `json:"role"`
	Samples int       `json:"samples"` // tokens; without any the lists are empty
	Score   []float64 `json:"score"`   // mean probability of the answer with the state put back
	Effect  []float64 `json:"effect"`  // the same less the mean of low: the average indirect effect (AIE)
	// Interval has half the width of the 95 % interval of the score, 1.96·std/√samples.
	Interval []float64 `json:"interval"`
}

// factTrace is what is kept of a fact.
type factTrace struct {
	Answer  string                    `json:"answer"`
	Skipped string                    `json:"skipped,omitempty"`
	High    float64                   `json:"high"`
	Low     float64                   `json:"low"`
	Noise   Noise                     `json:"noise"`
	Subject [2]int                    `json:"subject"`
	Scores  map[TraceKind][][]float32 `json:"scores"`
}

// AverageTrace says where, over many facts, the states are that carry an answer (Meng et al. 2022, § 2.2 and figure 3):
// it traces every fact whose attribute is the one token the model answers, and averages the answer's probability with
// a state put back over the tokens of each role, layer by layer. As the authors do, an average indirect effect is the
// mean over a role's tokens of that probability less the mean over facts of the one with noise.
//
// Facts that the model, under the interventions, does not know, or whose prompt lacks the subject, are skipped and
// listed. Errors wrap ErrTrace where none is left, ErrPart where the journal is another job's, and those of Trace.
func AverageTrace(ctx context.Context, m *transformer.Model, opts AverageOptions) (*AverageResult, error) {
	if opts.Kinds == nil {
		opts.Kinds = []TraceKind{TraceHidden, TraceMLP, TraceAttn}
	}
	if err := opts.settle(m); err != nil {
		return nil, err
	}
	id := map[string]any{
		"job": "trace average", "version": 1, "fingerprint": m.Fingerprint, "deltas": deltasHash(m), "facts": opts.Facts,
		"kinds": opts.Kinds, "window": opts.Trace.Window, "noise": opts.Trace.Noise, "samples": opts.Trace.Samples,
		"seed": opts.Trace.Seed, "rng": opts.Trace.RNG, "subjects": hashOf(opts.Trace.Subjects),
		"interventions": changesHash(&opts.Trace.Interventions),
	}
	j := job{path: opts.Journal, identity: id, progress: opts.Progress}
	var list []factTrace
	err := runJob(ctx, j, len(opts.Facts), func(i int) (factTrace, error) { return opts.trace(ctx, m, i) },
		func(_ int, t factTrace) error { list = append(list, t); return nil })
	if err != nil {
		return nil, err
	}
	r := &AverageResult{
		RNG: opts.Trace.RNG, Seed: opts.Trace.Seed, Samples: opts.Trace.Samples, Noise: opts.Trace.Noise,
		Skipped: []SkippedFact{},
	}
	return r, r.summarise(&opts, list, m.Config.Layers)
}

// settle fills in defaults and refuses what no trace takes, before the first one.
func (o *AverageOptions) settle(m *transformer.Model) error {
	if len(o.Facts) == 0 {
		return fmt.Errorf("%w: no facts", ErrTrace)
	}
	if o.Trace.Subjects == nil {
		for _, f := range o.Facts {
			o.Trace.Subjects = append(o.Trace.Subjects, f.Subject)
		}
	}
	for _, kind := range o.Kinds {
		t := o.Trace
		t.Kind, t.Tokens = kind, []transformer.Token{}
		if err := t.settle(m); err != nil {
			return err
		}
		o.Trace.Noise, o.Trace.RNG, o.Trace.Samples = t.Noise, t.RNG, t.Samples
	}
	return nil
}

// trace traces one fact, if the model knows it.
func (o *AverageOptions) trace(ctx context.Context, m *transformer.Model, i int) (factTrace, error) {
	f, out := &o.Facts[i], factTrace{Scores: map[TraceKind][][]float32{}}
	for _, kind := range o.Kinds {
		opts := o.Trace
		opts.Prompt, opts.Subject, opts.Kind, opts.Tokens, opts.Progress = f.Prompt, f.Subject, kind, nil, nil
		opts.Expect = f.Attribute
		r, err := Trace(ctx, m, opts)
		var unknown *UnknownError
		switch {
		case errors.As(err, &unknown):
			return factTrace{Answer: unknown.Answer, Skipped: "not known"}, nil
		case errors.Is(err, ErrSubject):
			return factTrace{Skipped: err.Error()}, nil
		case err != nil:
			return out, fmt.Errorf("fact %d: %w", f.ID, err)
		}
		out.Answer, out.High, out.Low, out.Subject, out.Noise = r.Answer, r.High, r.Low, r.Subject, r.Noise
		for _, row := range r.Scores {
			out.Scores[kind] = append(out.Scores[kind], float32s(row))
		}
	}
	return out, nil
}

// UnknownError says that a model answers something else than was expected.
type UnknownError struct{ Prompt, Want, Answer string }

// Error names both answers.
func (e *UnknownError) Error() string {
	return fmt.Sprintf("behind %q the model says %q and not %q", e.Prompt, e.Answer, e.Want)
}

// Unwrap is ErrTrace.
func (e *UnknownError) Unwrap() error { return ErrTrace }

// summarise averages.
func (r *AverageResult) summarise(o *AverageOptions, list []factTrace, layers int) error {
	var high, low, total []float64
	for i, t := range list {
		if t.Skipped != "" {
			r.Skipped = append(r.Skipped, SkippedFact{o.Facts[i].ID, o.Facts[i].Prompt, t.Answer, t.Skipped})
			continue
		}
		high, low, total = append(high, t.High), append(low, t.Low), append(total, t.High-t.Low)
		r.Noise = t.Noise
	}
	if r.Facts = len(high); r.Facts == 0 {
		return fmt.Errorf("%w: the model knows none of the %d facts (of the first it says %q)",
			ErrTrace, len(list), strings.TrimSpace(list[0].Answer))
	}
	r.High, r.Low, r.Total = estimate(high), estimate(low), estimate(total)
	for _, kind := range o.Kinds {
		k := AverageKind{Kind: kind, Window: 1}
		if kind != TraceHidden {
			if k.Window = o.Trace.Window; k.Window == 0 {
				k.Window = defaultWindow
			}
		}
		for _, role := range Roles() {
			k.Roles = append(k.Roles, roleEffect(role, kind, list, layers, r.Low.Mean))
		}
		r.Kinds = append(r.Kinds, k)
	}
	return nil
}

// roleEffect averages over the tokens of a role.
func roleEffect(role Role, kind TraceKind, list []factTrace, layers int, low float64) RoleEffect {
	e := RoleEffect{Role: role, Score: []float64{}, Effect: []float64{}, Interval: []float64{}}
	for l := range layers {
		var all []float64
		for _, t := range list {
			if t.Skipped != "" {
				continue
			}
			from, to := role.positions(t.Subject, len(t.Scores[kind]))
			for p := from; p < to; p++ {
				all = append(all, float64(t.Scores[kind][p][l]))
			}
		}
		if e.Samples = len(all); e.Samples == 0 {
			return e
		}
		s := estimate(all)
		e.Score, e.Effect = append(e.Score, s.Mean), append(e.Effect, s.Mean-low)
		e.Interval = append(e.Interval, s.Interval)
	}
	return e
}

func estimate(x []float64) Estimate {
	mean, half := meanInterval(x)
	return Estimate{mean, half}
}
