package editing_test

import (
	"errors"
	"hash/fnv"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// words is a tokenizer for models without one: every word with the space before it is a token.
type words struct{ vocab int }

func (w words) Encode(text string, _ bool) (out []transformer.Token, err error) {
	for at := 0; at < len(text); {
		end := at + 1
		for end < len(text) && text[end] != ' ' {
			end++
		}
		h := fnv.New32a()
		_, _ = h.Write([]byte(text[at:end]))
		out = append(out, transformer.Token{ID: int(h.Sum32() % uint32(w.vocab)), Start: at, End: end})
		at = end
	}
	return out, nil
}
func (w words) Decode([]int) (string, error)        { return "x", nil }
func (w words) Bytes(id int) []byte                 { return []byte{'x'} }
func (w words) VocabSize() int                      { return w.vocab }
func (w words) Special() []transformer.SpecialToken { return nil }

// methodsFor are editors of every method for a model.
func methodsFor(t *testing.T, m *transformer.Model) map[editing.Method]editing.Editor {
	t.Helper()
	out := map[editing.Method]editing.Editor{}
	for _, name := range editing.Methods() {
		s := editing.Settings{
			Statistics: []*editing.Statistics{identity(t, m, 0)}, Layers: []int{0},
		}
		s.Steps, s.Clamp, s.KL, s.Decay, s.Rate = 20, 1e6, -1, -1, 0.1
		switch name {
		case editing.MethodMEMIT, editing.MethodEMMET, editing.MethodAlphaEdit, editing.MethodPMET:
			s.Statistics, s.Lambda = append(s.Statistics, identity(t, m, 1)), 1e-9
		case editing.MethodFT, editing.MethodFTM:
			s.Rate = 0.02
		case editing.MethodFTL:
			s.Rate, s.Bound = 0.02, 0.1
		}
		e, err := editing.NewEditor(name, s)
		if err != nil {
			t.Fatal(err)
		}
		if e.Name() != name {
			t.Errorf("%s is called %s", name, e.Name())
		}
		out[name] = e
	}
	return out
}

// logitsOf are the logits behind a prompt.
func logitsOf(t *testing.T, m *transformer.Model, text string) []float32 {
	t.Helper()
	tokens, err := m.Tokenizer.Encode(text, true)
	if err != nil {
		t.Fatal(err)
	}
	var ids []int
	for _, x := range tokens {
		ids = append(ids, x.ID)
	}
	run, err := m.Run(t.Context(), [][]int{ids}, transformer.Capture{
		Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	x, err := run.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(x.At(0, 0).Data)
}

// raises tells by how much edits raise the targets' log P, as measured with them in force, and that without them the
// model is what it was.
func raises(t *testing.T, m *transformer.Model, editor editing.Editor, facts []editing.Request) (edits []*editing.Edit) {
	t.Helper()
	before := logitsOf(t, m, "He met Tom")
	edits, err := editor.Edit(t.Context(), m, facts, nil)
	if err != nil {
		t.Fatalf("%s: %v", editor.Name(), err)
	}
	var deltas []transformer.Delta
	for _, e := range edits {
		deltas = append(deltas, e.Delta())
		for _, f := range e.Facts() {
			if !(f.TargetProbAfter > f.TargetProbBefore) {
				t.Errorf("%s: P(%s) %.3g to %.3g", e.Method, f.Request.Target, f.TargetProbBefore, f.TargetProbAfter)
			}
		}
	}
	if err := m.SetDeltas(deltas); err != nil {
		t.Fatal(err)
	}
	if slices.Equal(logitsOf(t, m, "He met Tom"), before) {
		t.Errorf("%s changes nothing", editor.Name())
	}
	if err := m.SetDeltas(nil); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(logitsOf(t, m, "He met Tom"), before) {
		t.Errorf("%s: taken back, the model is not what it was", editor.Name())
	}
	return edits
}

// TestUsualClamps: what a method says is what its edits are made with when nothing else is asked for.
func TestUsualClamps(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	for _, name := range editing.Methods() {
		s := editing.Settings{Statistics: []*editing.Statistics{identity(t, m, 1)}, Layers: []int{1}}
		s.Steps = 1
		e, err := editing.NewEditor(name, s)
		if err != nil {
			t.Fatal(err)
		}
		edits, err := e.Edit(t.Context(), m, []editing.Request{sadTom()}, nil)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := edits[0].Settings.Clamp; got != name.UsualClamp() {
			t.Errorf("%s: made with the clamp %g, usually %g", name, got, name.UsualClamp())
		}
	}
}

// TestEveryMethodOnEveryFamily: on every architecture, with plain and gated FFNs and either layout of the matrix, edits
// make their targets more probable and are taken back exactly. Two architectures see every method, the others two.
func TestEveryMethodOnEveryFamily(t *testing.T) {
	backendtest.Long(t)
	list, err := os.ReadDir(golden(""))
	if err != nil {
		t.Fatal(err)
	}
	facts := []editing.Request{
		{Prompt: "He met {}", Subject: "Tom", Target: "sad today"}, {Prompt: "One day {}", Subject: "Lily", Target: "rain"},
	}
	be := backendtest.Open(t, "go")
	tried := 0
	for _, entry := range list {
		if !entry.IsDir() {
			continue
		}
		t.Run(entry.Name(), func(t *testing.T) {
			m := open(t, be, golden(entry.Name()))
			m.Tokenizer = words{m.Config.Vocab}
			if m.Config.Encoder || m.Config.HasExperts(0) || m.Config.HasExperts(1) {
				_, err := editing.MEMIT(t.Context(), m, facts, editing.MEMITOptions{
					Statistics: []*editing.Statistics{{StatisticsInfo: editing.StatisticsInfo{
						Size: m.Config.FFN.Hidden, Fingerprint: m.Fingerprint,
					}}},
				})
				if !errors.Is(err, editing.ErrLayer) && !errors.Is(err, editing.ErrRequest) {
					t.Errorf("it is edited: %v", err)
				}
				return
			}
			for name, editor := range methodsFor(t, m) {
				if many := entry.Name() == "gpt2" || entry.Name() == "llama"; many ||
					name == editing.MethodRROME || name == editing.MethodMEMIT {
					raises(t, m, editor, facts)
					tried++
				}
			}
		})
	}
	if tried < 60 {
		t.Errorf("only %d tried", tried)
	}
}

// TestEveryMethodOnTheEmbeddedModel: the same for a model that speaks, and the edits pass through a file. XLA, which
// compiles programs for each, sees the methods whose programs are their own; others compare numbers of reference on it.
func TestEveryMethodOnTheEmbeddedModel(t *testing.T) {
	backendtest.Long(t)
	facts := []editing.Request{sadTom(), {Prompt: "{} saw a", Subject: "Ben", Target: "cat"}}
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		all := &editing.Edits{Model: m.Name, Fingerprint: m.Fingerprint}
		own := []editing.Method{editing.MethodPMET, editing.MethodFTM}
		for name, editor := range methodsFor(t, m) {
			if strings.Contains(t.Name(), "xla") && !slices.Contains(own, name) {
				continue
			}
			all.List = append(all.List, raises(t, m, editor, facts)...)
		}
		path := filepath.Join(t.TempDir(), "e.safetensors")
		if err := all.Save(t.Context(), path, false); err != nil {
			t.Fatal(err)
		}
		again, err := editing.LoadEdits(path)
		if err != nil {
			t.Fatal(err)
		}
		for i, e := range all.List {
			got := again.List[i]
			if got.Layer != e.Layer || len(got.Batch) != len(e.Batch) || !slices.Equal(got.Key, e.Key) ||
				!slices.EqualFunc(got.Left, e.Left, slices.Equal) || !slices.EqualFunc(got.Right, e.Right, slices.Equal) {
				t.Errorf("edit %d, %s, is not what was saved", i, e.Method)
			}
			for j, f := range e.Facts() {
				if g := got.Facts()[j]; !slices.Equal(g.Key, f.Key) || !slices.Equal(g.Value, f.Value) ||
					g.TargetProbAfter != f.TargetProbAfter {
					t.Errorf("edit %d, %s: fact %d is not what was saved", i, e.Method, j)
				}
			}
		}
	})
}

// TestEditorsRefuse: what a method cannot do is said.
func TestEditorsRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	c0, c1 := identity(t, m, 0), identity(t, m, 1)
	twice := []editing.Request{sadTom(), {Prompt: "{} was very", Subject: "Tom", Target: "glad"}}
	for name, x := range map[string]struct {
		method   editing.Method
		settings editing.Settings
		facts    []editing.Request
		want     string
	}{
		"name":       {"mend", editing.Settings{}, nil, `no method "mend"`},
		"two layers": {"rome", editing.Settings{Statistics: []*editing.Statistics{c0, c1}}, nil, "edits one layer"},
		"no layer":   {"memit", editing.Settings{}, []editing.Request{sadTom()}, "none given"},
		"same layer": {
			"memit", editing.Settings{Statistics: []*editing.Statistics{c0, c0}}, []editing.Request{sadTom()}, "two statistics of layer 0",
		},
		"contradiction": {"emmet", editing.Settings{Statistics: []*editing.Statistics{c0}}, twice, "facts 0 and 1 both say"},
		"no facts":      {"alphaedit", editing.Settings{Statistics: []*editing.Statistics{c0}}, nil, "no facts"},
		"ft without":    {"ft", editing.Settings{}, []editing.Request{sadTom()}, "trains one layer, not 0"},
		"ft far":        {"ft-m", editing.Settings{Layers: []int{9}}, []editing.Request{sadTom()}, "layer 9"},
		"kn far": {
			"kn", editing.Settings{Neurons: []transformer.Neuron{{Layer: 0, Index: 1 << 20}}}, []editing.Request{sadTom()}, "no memory",
		},
	} {
		editor, err := editing.NewEditor(x.method, x.settings)
		if err == nil {
			_, err = editor.Edit(t.Context(), m, x.facts, nil)
		}
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
}
