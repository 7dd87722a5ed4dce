package editing_test

import (
	"errors"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// checked are the results of one kind of check.
func checked(r *editing.VerifyResult, kind string) (out []editing.Verified) {
	for _, c := range r.Checks {
		if c.Check == kind {
			out = append(out, c)
		}
	}
	return out
}

// TestVerifyFindsWhatIsNotAsRecorded: edits made alone and on top of each other are as recorded; a vector that was
// changed, a probability that was, and edits in another model are found out.
func TestVerifyFindsWhatIsNotAsRecorded(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		first := rome(t, m, sadTom(), someEditor(t, m))
		alone := rome(t, m, someRecords()[1].Request, someEditor(t, m))
		if err := m.SetDeltas([]transformer.Delta{first.Delta()}); err != nil {
			t.Fatal(err)
		}
		onTop := rome(t, m, someRecords()[1].Request, someEditor(t, m))
		for what, second := range map[string]*editing.Edit{"alone": alone, "on top": onTop} {
			list := &editing.Edits{Fingerprint: m.Fingerprint, List: []*editing.Edit{first, second}}
			got, err := editing.Verify(t.Context(), m, list)
			if err != nil {
				t.Fatal(err)
			}
			if !got.OK || len(checked(got, "norm")) != 2 || len(checked(got, "target_prob")) != 2 ||
				len(checked(got, "reverted")) != 1 {
				t.Errorf("made %s: %+v", what, got)
			}
		}
		if len(m.Deltas()) != 1 {
			t.Errorf("%d changes in force, want the one that was", len(m.Deltas()))
		}
		bent := *first
		bent.Left = [][]float32{append([]float32(nil), first.Left[0]...)}
		for i := range bent.Left[0] {
			bent.Left[0][i] *= -1 // the same size, the other way
		}
		longer := *first
		longer.Norm *= 1.01
		for what, c := range map[string]struct {
			edit  editing.Edit
			check string
		}{"turned around": {bent, "target_prob"}, "of another size": {longer, "norm"}} {
			got, err := editing.Verify(t.Context(), m, &editing.Edits{Fingerprint: m.Fingerprint, List: []*editing.Edit{&c.edit}})
			if err != nil {
				t.Fatal(err)
			}
			if bad := checked(got, c.check); got.OK || bad[0].OK {
				t.Errorf("%s: %+v", what, got)
			}
		}
		_, err := editing.Verify(t.Context(), m, &editing.Edits{Fingerprint: "x", List: []*editing.Edit{first}})
		if !errors.Is(err, editing.ErrEdit) {
			t.Errorf("of another model: %v", err)
		}
	})
}

// TestVerifyTakesLayersTogether: what MEMIT writes at two layers is one rewriting of its facts.
func TestVerifyTakesLayersTogether(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	facts := []editing.Request{sadTom(), someRecords()[1].Request}
	edits, err := editing.MEMIT(t.Context(), m, facts, editing.MEMITOptions{
		Statistics: []*editing.Statistics{identity(t, m, 1), identity(t, m, 2)},
	})
	if err != nil || len(edits) != 2 {
		t.Fatalf("%d edits: %v", len(edits), err)
	}
	got, err := editing.Verify(t.Context(), m, &editing.Edits{Fingerprint: m.Fingerprint, List: edits})
	if err != nil {
		t.Fatal(err)
	}
	if !got.OK || len(checked(got, "norm")) != 2 || len(checked(got, "target_prob")) != 2 {
		t.Errorf("%+v", got)
	}
}
