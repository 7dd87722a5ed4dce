package editing

import (
	"context"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// Drift is what later edits did to an edit's fact.
type Drift struct {
	Edit    int     `json:"edit"` // counted from 0
	Request Request `json:"request"`
	// Made and Now are the target's probability behind the bare prompt right after the edit, and with all edits.
	Made float64 `json:"target_prob_made"`
	Now  float64 `json:"target_prob_now"`
	// Reply is what the model says with all edits.
	Reply Reply `json:"reply"`
}

// Lost reports whether the fact is worse than halfway gone.
func (d *Drift) Lost() bool { return d.Now < d.Made/2 }

// Drift measures what edits did to the facts of those before them: all are put in force on the model's checkpoint for a
// moment. A fact that several edits rewrite counts with the last of them.
func (e *Edits) Drift(ctx context.Context, m *transformer.Model) (out []Drift, err error) {
	var list []*rewrite
	seen := map[[2]string]bool{}
	for i := len(e.List) - 1; i >= 0; i-- {
		for _, f := range e.List[i].Facts() {
			if k := [2]string{f.Request.Prompt, f.Request.Subject}; !seen[k] {
				seen[k] = true
				w, err := f.Request.place(m, nil)
				if err != nil {
					return nil, err
				}
				list, out = append(list, w), append(out, Drift{Edit: i, Request: f.Request, Made: f.TargetProbAfter})
			}
		}
	}
	defer m.KeepDeltas()(&err)
	if err := m.SetDeltas(e.Deltas()); err != nil {
		return nil, err
	}
	err = answers(ctx, m, list, func(i int, r Reply, prob float64) { out[i].Now, out[i].Reply = prob, r })
	slices.Reverse(out)
	return out, err
}
