package editing_test

import (
	"errors"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestRepliesAreThoseOfTheTwoModels: before and after an edit, Replies has what predictions of the two models have at
// the end of each prompt, losses are told as they are made, and the changes in force are as they were.
func TestRepliesAreThoseOfTheTwoModels(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		c, err := editing.Identity(m, 2)
		if err != nil {
			t.Fatal(err)
		}
		var told []editing.Loss
		edit, err := editing.ROME(t.Context(), m, editing.Request{Prompt: "{} was very", Subject: "Tom", Target: "sad"},
			editing.ROMEOptions{Statistics: c, Value: editing.ValueOptions{
				Steps: 6, Clamp: 8, Evaluated: func(l editing.Loss) { told = append(told, l) },
			}})
		if err != nil {
			t.Fatal(err)
		}
		if len(told) != len(edit.Losses) || told[len(told)-1] != edit.Losses[len(told)-1] || edit.Settings.Evaluated != nil {
			t.Errorf("told %v, the edit has %v", told, edit.Losses)
		}
		after := []transformer.Delta{edit.Delta()}
		prompts := []string{"Tom was very", "Once upon a time, Tom was very", "Lily was very"}
		got, err := editing.Replies(t.Context(), m, editing.RepliesOptions{Prompts: prompts, After: after, Target: "sad"})
		if err != nil {
			t.Fatal(err)
		}
		near(t, "target before", got.Prompts[0].Before.TargetProb, edit.TargetProbBefore, 1e-4)
		near(t, "target after", got.Prompts[0].After.TargetProb, edit.TargetProbAfter, 1e-4)
		if len(m.Deltas()) != 0 {
			t.Error("changes are left in force")
		}
		for i, p := range got.Prompts {
			for _, side := range []struct {
				deltas []transformer.Delta
				reply  editing.PromptReply
			}{{nil, p.Before}, {after, p.After}} {
				if err := m.SetDeltas(side.deltas); err != nil {
					t.Fatal(err)
				}
				tokens, err := m.Tokenizer.Encode(prompts[i], true)
				if err != nil {
					t.Fatal(err)
				}
				want, err := probes.Predict(t.Context(), m, probes.PredictOptions{IDs: [][]int{ids(tokens)}, Top: 1})
				if err != nil {
					t.Fatal(err)
				}
				if top := want.Rows[0].Next[0]; top.ID != side.reply.Top {
					t.Errorf("%q: top %d, predicted %d", prompts[i], side.reply.Top, top.ID)
				} else {
					near(t, prompts[i], side.reply.TopProb, top.Prob, 1e-4)
				}
			}
			if p.Kept() != (p.Before.Top == p.After.Top) {
				t.Errorf("%q kept: %v", p.Prompt, p.Kept())
			}
		}
		if _, err := editing.Replies(t.Context(), m, editing.RepliesOptions{Prompts: prompts, Target: "  "}); !errors.Is(err, editing.ErrRequest) {
			t.Errorf("an empty target: %v", err)
		}
	})
}

func ids(tokens []transformer.Token) []int {
	out := make([]int, len(tokens))
	for i, t := range tokens {
		out[i] = t.ID
	}
	return out
}
