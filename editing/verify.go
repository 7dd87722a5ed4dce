package editing

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/engram-go/engram/transformer"
)

// VerifyResult says whether edits are still what they were when they were made.
type VerifyResult struct {
	OK     bool       `json:"ok"`
	Checks []Verified `json:"checks"`
}

// Verified is one check of an edit.
type Verified struct {
	Edit    int     `json:"edit"`
	Check   string  `json:"check"` // norm, target_prob, reverted
	Subject string  `json:"subject,omitempty"`
	Want    float64 `json:"want"`
	Got     float64 `json:"got"`
	OK      bool    `json:"ok"`
}

// How far numbers may be from those of an edit's file, which another backend may have computed.
const (
	verifyProb = 0.01
	verifyNorm = 1e-4 // relative
)

// Verify makes sure that an edit file is what it says on a model: that the size of each change is the one recorded,
// that each target has the probability that was measured when the edit was made (by itself, or on top of those before
// it, for edits are made in either way), and that taking all edits back leaves the predictions bit for bit as they
// were. The model is left as it was. Errors wrap ErrEdit for edits of another model.
func Verify(ctx context.Context, m *transformer.Model, e *Edits) (r *VerifyResult, err error) {
	if err := e.Check(m); err != nil {
		return nil, err
	}
	defer m.KeepDeltas()(&err)
	v := &verifier{m: m, out: &VerifyResult{OK: true}}
	if err := m.SetDeltas(nil); err != nil {
		return nil, err
	}
	if v.rows, err = v.prompts(e); err != nil {
		return nil, err
	}
	before, err := logitsOf(ctx, m, v.rows, []int{-1})
	if err != nil {
		return nil, err
	}
	for from := 0; from < len(e.List); {
		to := from + 1
		for to < len(e.List) && together(e.List[from], e.List[to]) {
			to++
		}
		if err := v.edits(ctx, e.List[:to], from); err != nil {
			return nil, fmt.Errorf("edit %d: %w", from, err)
		}
		from = to
	}
	if err := m.SetDeltas(nil); err != nil {
		return nil, err
	}
	after, err := logitsOf(ctx, m, v.rows, []int{-1})
	if err != nil {
		return nil, err
	}
	different := 0
	for i := range before.Data {
		if math.Float32bits(before.Data[i]) != math.Float32bits(after.Data[i]) {
			different++
		}
	}
	v.add(Verified{Edit: len(e.List) - 1, Check: "reverted", Got: float64(different), OK: different == 0})
	return v.out, nil
}

// verifier checks edits.
type verifier struct {
	m    *transformer.Model
	rows [][]int // the prompts of all facts
	out  *VerifyResult
}

func (v *verifier) add(c Verified) {
	v.out.Checks = append(v.out.Checks, c)
	v.out.OK = v.out.OK && c.OK
}

// prompts are the bare prompts of all edits.
func (v *verifier) prompts(e *Edits) (rows [][]int, err error) {
	for i, one := range e.List {
		for _, f := range one.Facts() {
			w, err := f.Request.place(v.m, nil)
			if err != nil {
				return nil, fmt.Errorf("edit %d: %w", i, err)
			}
			rows = append(rows, w.rows[0].IDs)
		}
	}
	return rows, nil
}

// together reports whether two edits are those of two layers for the same facts.
func together(a, b *Edit) bool {
	f, g := a.Facts(), b.Facts()
	return a.Method == b.Method && a.Layer != b.Layer && slices.EqualFunc(f, g, func(x, y *Fact) bool {
		return x.Request == y.Request && x.TargetProbAfter == y.TargetProbAfter
	})
}

// edits checks the last edits of a list, from one on, which were made together.
func (v *verifier) edits(ctx context.Context, list []*Edit, from int) error {
	for i, e := range list[from:] {
		size := lowRankNorm(e.Left, e.Right)
		ok := math.Abs(size-e.Norm) <= verifyNorm*max(e.Norm, 1e-12)
		v.add(Verified{Edit: from + i, Check: "norm", Want: e.Norm, Got: size, OK: ok})
	}
	facts := list[from].Facts()
	prompts, got := make([]*rewrite, len(facts)), make([]float64, len(facts))
	for k, f := range facts {
		var err error
		if prompts[k], err = f.Request.place(v.m, nil); err != nil {
			return err
		}
		got[k] = math.Inf(1)
	}
	for _, force := range [][]*Edit{list, list[from:]} {
		if err := v.m.SetDeltas(withEdits(nil, force)); err != nil {
			return err
		}
		err := answers(ctx, v.m, prompts, func(k int, _ Reply, prob float64) {
			if want := facts[k].TargetProbAfter; math.Abs(prob-want) < math.Abs(got[k]-want) {
				got[k] = prob
			}
		})
		if err != nil {
			return err
		}
	}
	for k, f := range facts {
		v.add(Verified{
			Edit: from, Check: "target_prob", Subject: f.Request.Subject, Want: f.TargetProbAfter, Got: got[k],
			OK: math.Abs(got[k]-f.TargetProbAfter) <= verifyProb,
		})
	}
	return nil
}
