package editing_test

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/transformer"
)

// sadTom is an edit that the embedded model takes.
func sadTom() editing.Request {
	return editing.Request{Prompt: "{} was very", Subject: "Tom", Target: "sad"}
}

func identity(t *testing.T, m *transformer.Model, layer int) *editing.Statistics {
	t.Helper()
	s, err := editing.Identity(m, layer)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func rome(t *testing.T, m *transformer.Model, req editing.Request, opts editing.ROMEOptions) *editing.Edit {
	t.Helper()
	e, err := editing.ROME(t.Context(), m, req, opts)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// recalled is what the layer's down projection gives at the subject's last token, behind a context.
func recalled(t *testing.T, m *transformer.Model, context string, site transformer.Site, layer int) []float64 {
	t.Helper()
	template, err := editing.ParseTemplate(sadTom().Prompt)
	if err != nil {
		t.Fatal(err)
	}
	p, err := template.Behind(context).Place(m.Tokenizer, "Tom", true)
	if err != nil {
		t.Fatal(err)
	}
	run, err := m.Run(t.Context(), [][]int{p.IDs}, transformer.Capture{Sites: []transformer.Site{site}})
	if err != nil {
		t.Fatal(err)
	}
	defer run.Close()
	x, err := run.Tensor(site, layer)
	if err != nil {
		t.Fatal(err)
	}
	return editing.Float64s(x.At(0, p.Last()).Data)
}

// TestEditedLayerRecallsTheValue: after ROME the bare prompt's output at the subject is v*; after r-ROME the mean output
// of all contexts is. Measured in the edited model, which afterwards is what it was.
func TestEditedLayerRecallsTheValue(t *testing.T) {
	backendtest.Long(t)
	m := open(t, backendtest.Open(t, "go"), "stories")
	contexts := []string{"One day", "It was hot"}
	const layer = 2
	for method, prompts := range map[editing.Method][]string{
		editing.MethodROME: {""}, editing.MethodPROME: {""}, "": append([]string{""}, contexts...),
	} {
		before := recalled(t, m, "", transformer.DownOut, layer)
		e := rome(t, m, sadTom(), editing.ROMEOptions{
			Method: method, Statistics: identity(t, m, layer), Contexts: contexts, Value: editing.ValueOptions{Steps: 4, Clamp: 8},
		})
		if again := recalled(t, m, "", transformer.DownOut, layer); !slices.Equal(again, before) {
			t.Errorf("%s: the model is not what it was", e.Method)
		}
		if err := m.SetDeltas([]transformer.Delta{e.Delta()}); err != nil {
			t.Fatal(err)
		}
		mean := make([]float64, len(e.Value))
		for _, p := range prompts {
			for i, v := range recalled(t, m, p, transformer.DownOut, layer) {
				mean[i] += v / float64(len(prompts))
			}
		}
		if d := relative(mean, editing.Float64s(e.Value)); !(d < 1e-4) {
			t.Errorf("%s: the layer recalls something %.2g from v*", e.Method, d)
		}
		if err := m.SetDeltas(nil); err != nil {
			t.Fatal(err)
		}
		if e.TargetProbAfter <= e.TargetProbBefore || len(e.Losses) != 4 {
			t.Errorf("%s: P %g to %g in %d evaluations", e.Method, e.TargetProbBefore, e.TargetProbAfter, len(e.Losses))
		}
	}
}

// TestRefusals: requests and settings that cannot be carried out say so.
func TestRefusals(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	c := identity(t, m, 1)
	other := identity(t, m, 1)
	other.Fingerprint = "of another"
	for _, x := range []struct {
		req  editing.Request
		opts editing.ROMEOptions
		want error
	}{
		{editing.Request{Prompt: "{} is", Subject: "Tom"}, editing.ROMEOptions{Statistics: c}, editing.ErrRequest},
		{editing.Request{Prompt: "Tim is", Subject: "Tom", Target: "x"}, editing.ROMEOptions{Statistics: c}, editing.ErrSubject},
		{sadTom(), editing.ROMEOptions{}, editing.ErrStatistics},
		{sadTom(), editing.ROMEOptions{Statistics: other}, editing.ErrStatistics},
		{sadTom(), editing.ROMEOptions{Statistics: c, Method: "none"}, editing.ErrRequest},
	} {
		if _, err := editing.ROME(t.Context(), m, x.req, x.opts); !errors.Is(err, x.want) {
			t.Errorf("%+v: %v, want %v", x.req, err, x.want)
		}
	}
}

// TestWarnings: an answer that the model gives already, and a search that does not get there.
func TestWarnings(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	opts := editing.ROMEOptions{Statistics: identity(t, m, 1), Value: editing.ValueOptions{Steps: 1}}
	for target, want := range map[string]string{"Lily": "already answers", "sad": `the target "sad" has only P`} {
		req := editing.Request{Prompt: "Once upon a time, there was a little {} named", Subject: "girl", Target: target}
		e := rome(t, m, req, opts)
		if !strings.Contains(strings.Join(e.Warnings, "\n"), want) {
			t.Errorf("%s: %q lacks %q (P %g)", target, e.Warnings, want, e.TargetProbBefore)
		}
	}
}

// TestSingularStatisticsAreTold: fewer keys than memories; the edit says what was added and how C is conditioned.
func TestSingularStatisticsAreTold(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	c := randomStatistics(m.Config.FFN.Hidden, 10)
	c.Fingerprint = m.Fingerprint
	e := rome(t, m, sadTom(), editing.ROMEOptions{Statistics: c, Value: editing.ValueOptions{Steps: 1}})
	text := strings.Join(e.Warnings, "\n")
	if !strings.Contains(text, "the statistics are singular") || e.Statistics.Ridge == 0 || e.Statistics.Condition < 1e3 {
		t.Errorf("%q, ridge %g, condition %g", text, e.Statistics.Ridge, e.Statistics.Condition)
	}
}

func TestEditFileRoundTrip(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	opts := editing.ROMEOptions{Statistics: identity(t, m, 1), Value: editing.ValueOptions{Steps: 2}}
	e := rome(t, m, sadTom(), opts)
	two := *e // of rank two
	two.Left, two.Right = [][]float32{e.Left[0], e.Value}, [][]float32{e.Right[0], e.Key}
	in := &editing.Edits{Model: m.Name, Fingerprint: m.Fingerprint, List: []*editing.Edit{e, &two}}
	path := filepath.Join(t.TempDir(), "e.safetensors")
	if err := in.Save(t.Context(), path, false); err != nil {
		t.Fatal(err)
	}
	if err := in.Save(t.Context(), path, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("written over: %v", err)
	}
	out, err := editing.LoadEdits(path)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(out.Deltas(), in.Deltas()) || out.Fingerprint != in.Fingerprint ||
		!reflect.DeepEqual(out.List[0].Losses, e.Losses) || !slices.Equal(out.List[0].Key, e.Key) {
		t.Errorf("read back is another: %+v", out.List[0])
	}
	if err := out.Check(m); err != nil {
		t.Error(err)
	}
	out.Fingerprint = "x"
	if err := out.Check(m); !errors.Is(err, editing.ErrEdit) {
		t.Errorf("another model: %v", err)
	}
	e.Left[0][0] = float32(math.NaN())
	bad := path + "2"
	if err := in.Save(t.Context(), bad, false); err != nil {
		t.Fatal(err)
	}
	if _, err := editing.LoadEdits(bad); !errors.Is(err, editing.ErrEdit) || !strings.Contains(err.Error(), "NaN") {
		t.Errorf("not a number: %v", err)
	}
}

// TestCorruptedEditFiles: a file with any of its bytes changed or cut off is refused or read, never a panic.
func TestCorruptedEditFiles(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	opts := editing.ROMEOptions{Statistics: identity(t, m, 1), Value: editing.ValueOptions{Steps: 1}}
	in := &editing.Edits{Fingerprint: m.Fingerprint, List: []*editing.Edit{rome(t, m, sadTom(), opts)}}
	path := filepath.Join(t.TempDir(), "e.safetensors")
	if err := in.Save(t.Context(), path, false); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for at := 0; at < len(data); at += 97 {
		broken := slices.Clone(data)
		broken[at] ^= 0x55
		for _, text := range [][]byte{broken, data[:at]} {
			if err := os.WriteFile(path, text, 0o644); err != nil {
				t.Fatal(err)
			}
			if _, err := editing.LoadEdits(path); err != nil {
				if refused++; !errors.Is(err, editing.ErrEdit) {
					t.Fatalf("byte %d: %v", at, err)
				}
			}
		}
	}
	if refused < len(data)/97 {
		t.Errorf("%d refused", refused)
	}
}

// TestSampledContexts: the same seed gives the same texts, another others; no line ends in them.
func TestSampledContexts(t *testing.T) {
	backendtest.Long(t)
	m := open(t, backendtest.Open(t, "go"), "stories")
	var texts [][]string
	for _, seed := range []uint64{1, 1, 2} {
		list, err := editing.SampleContexts(t.Context(), m, seed)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, list)
	}
	if len(texts[0]) != 20 || !slices.Equal(texts[0], texts[1]) || slices.Equal(texts[0], texts[2]) {
		t.Errorf("%q\n%q", texts[0], texts[2])
	}
	if all := strings.Join(texts[0], ""); strings.ContainsAny(all, "\r\n\t") || !strings.HasPrefix(texts[0][0], "The") {
		t.Errorf("%q", texts[0])
	}
}
