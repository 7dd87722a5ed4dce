package transformer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// TestBadInput: prompts and captures that a model cannot take are refused, and the message says which.
func TestBadInput(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		b := lab(t, be, "gpt2")
		one := [][]int{{1, 2, 3}, {1}}
		long := b.sequences(33)
		for _, c := range []struct {
			ids     [][]int
			capture transformer.Capture
			kind    error
			text    string
		}{
			{nil, transformer.Capture{}, transformer.ErrEmptyPrompt, "empty prompt"},
			{[][]int{{1}, {}}, transformer.Capture{}, transformer.ErrEmptyPrompt, "row 1"},
			{[][]int{{1}, {2, 67}}, transformer.Capture{}, transformer.ErrTokenRange, "row 1, position 1: token id out of range: 67, the vocabulary has 67"},
			{[][]int{{-1}}, transformer.Capture{}, transformer.ErrTokenRange, "-1"},
			{long, transformer.Capture{}, transformer.ErrTooLong, "row 0: prompt longer than the context: 33 tokens, the context has 32"},
			{one, transformer.Capture{Sites: []transformer.Site{"residual"}}, transformer.ErrSite, "residual"},
			{one, transformer.Capture{Sites: []transformer.Site{transformer.RouterLogits}}, transformer.ErrSite, "gpt2 has no router_logits"},
			{one, transformer.Capture{Layers: []int{3}}, transformer.ErrSite, "layer 3: the model has 3 layers"},
			{one, transformer.Capture{Layers: []int{-1}}, transformer.ErrSite, "layer -1"},
			{one, transformer.Capture{Positions: []int{3}}, transformer.ErrSite, "position 3: the sequence has 3"},
			{one, transformer.Capture{Positions: []int{-4}}, transformer.ErrSite, "position -4: the sequence has 3"},
		} {
			r, err := b.Run(t.Context(), c.ids, c.capture)
			if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("%v, %+v: error %v, want %q", c.ids, c.capture, err, c.text)
			}
			if r != nil {
				r.Close()
			}
		}
		if _, err := b.Run(t.Context(), b.sequences(32), transformer.Capture{}); err != nil {
			t.Errorf("a prompt that fills the context: %v", err)
		}
	})
}

// stopAfter is a context that is cancelled after a number of looks at it.
type stopAfter struct {
	context.Context
	mu   sync.Mutex
	left int
}

func (s *stopAfter) Done() <-chan struct{} { return s.Context.Done() }

func (s *stopAfter) Value(key any) any { return nil }

func (s *stopAfter) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left--; s.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestCancelled: a cancelled context stops a run, a resume and a gradient between two layers; the model works on.
func TestCancelled(t *testing.T) {
	onReference(t, []string{"gpt2"}, []string{"gpt2"}, func(t *testing.T, b *bench) {
		base := run(t, b.Model, b.ids, transformer.Capture{Base: true, Cuts: true})
		for looks := range b.Config.Layers {
			stop := func() context.Context { return &stopAfter{Context: t.Context(), left: looks} }
			_, err := b.Run(stop(), b.ids, transformer.Capture{Cuts: true})
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), fmt.Sprint("before layer ", looks)) {
				t.Errorf("run: %v", err)
			}
			_, err = b.Gradient(stop(), base, transformer.LogitDiff(1, 2), transformer.GradientOptions{})
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), fmt.Sprint("before layer ", b.Config.Layers-1-looks)) {
				t.Errorf("gradient: %v", err)
			}
			if looks > 0 {
				_, err = b.Resume(&stopAfter{Context: t.Context(), left: looks - 1}, base, transformer.From{Layer: 1, Position: 3}, transformer.Capture{})
				if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), fmt.Sprint("before layer ", looks)) {
					t.Errorf("resume: %v", err)
				}
			}
		}
		cause, cancel := context.WithCancelCause(t.Context())
		cancel(errors.New("the user left"))
		if _, err := b.Run(cause, b.ids, transformer.Capture{}); err == nil || !strings.Contains(err.Error(), "the user left") {
			t.Errorf("cause: %v", err)
		}
		b.sameAs(t, "afterwards")
	})
}

// TestCapture: named layers and positions give what capturing everything gives there; positions count from a row's end
// when negative; what a row does not have is zero; what was not captured is an error.
func TestCapture(t *testing.T) {
	onReference(t, []string{"gpt2", "gemma2", "mixtral"}, []string{"gpt2"}, func(t *testing.T, b *bench) {
		all := run(t, b.Model, b.ids, everySite(b.Model))
		some := everySite(b.Model)
		some.Layers, some.Positions = []int{1}, []int{-1, 0, 5, -5, 0}
		r := run(t, b.Model, b.ids, some)
		for _, s := range some.Sites {
			if s.InBlock() && r.Has(s, 0) || !r.Has(s, 1) {
				t.Errorf("%s: has layer 0 %t, layer 1 %t", s, r.Has(s, 0), r.Has(s, 1))
			}
			got, err := r.Tensor(s, 1)
			if err != nil {
				t.Fatal(err)
			}
			whole, err := all.Tensor(s, 1)
			if err != nil {
				t.Fatal(err)
			}
			tol := 0.0
			if s == transformer.Final || s == transformer.Logits {
				tol = 1e-5 // fewer rows are multiplied at once
			}
			near(t, string(s), got, pick(whole, s, b.ids, some.Positions), tol)
			if _, err := r.Tensor(s, 0); s.InBlock() && !errors.Is(err, transformer.ErrSite) {
				t.Errorf("%s of layer 0: %v", s, err)
			}
		}
		none := run(t, b.Model, b.ids, transformer.Capture{})
		if _, err := none.Tensor(transformer.Logits, -1); !errors.Is(err, transformer.ErrSite) {
			t.Errorf("logits of a run that captured nothing: %v", err)
		}
	})
}

// pick takes positions of each row out of a tensor with all of them; a row without one gets zeros.
func pick(x *transformer.Tensor, s transformer.Site, ids [][]int, positions []int) *transformer.Tensor {
	heads := 1
	if s == transformer.Pattern {
		heads = x.Shape[1]
	}
	shape := slices.Clone(x.Shape)
	axis := 1
	if s == transformer.Pattern {
		axis = 2
	}
	total := shape[axis]
	shape[axis] = len(positions)
	out := transformer.NewTensor(shape...)
	width := len(x.Data) / (len(ids) * heads * total)
	for row := range ids {
		for h := range heads {
			for i, p := range positions {
				if p < 0 {
					p += len(ids[row])
				}
				if p >= 0 && p < len(ids[row]) {
					outer := row*heads + h
					copy(out.Data[(outer*len(positions)+i)*width:][:width], x.Data[(outer*total+p)*width:][:width])
				}
			}
		}
	}
	return out
}

// TestPaddingIsZero: behind the end of a row every captured tensor is zero, whatever an intervention did there.
func TestPaddingIsZero(t *testing.T) {
	onReference(t, []string{"llama", "bert"}, nil, func(t *testing.T, b *bench) {
		r := run(t, b.Model, b.ids, everySite(b.Model), transformer.Intervention{
			Site: transformer.ResidPre, Layer: 0, Op: transformer.OpAdd, Value: []float32{3},
		})
		for _, s := range everySite(b.Model).Sites {
			x, err := r.Tensor(s, 1)
			if err != nil {
				t.Fatal(err)
			}
			for row := range b.ids {
				for p := len(b.ids[row]); s != transformer.Pattern && p < len(b.ids[0]); p++ {
					if y := x.At(row, p).Data; slices.Max(y) != 0 || slices.Min(y) != 0 {
						t.Errorf("%s, row %d, position %d of %d: %v", s, row, p, len(b.ids[row]), y[:1])
					}
				}
				for h := 0; s == transformer.Pattern && h < b.Config.Attention.Heads; h++ {
					for i := range b.ids[0] {
						line := x.At(row, h, i).Data
						if i >= len(b.ids[row]) && slices.Max(line) != 0 || slices.Max(append(line[len(b.ids[row]):], 0)) != 0 {
							t.Errorf("pattern of head %d, row %d, destination %d: %v", h, row, i, line)
						}
					}
				}
			}
		}
	})
}

// TestClose: closing a run frees what it holds on the device and may be done twice; what was read stays readable, what
// was not is an error. A closed model refuses everything.
func TestClose(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		g := readGolden(t, "../testdata/goldens/gpt2")
		m, err := loader.Open(t.Context(), g.dir, loader.Options{Backend: be})
		if err != nil {
			t.Fatal(err)
		}
		ids := [][]int{{1, 2, 3}}
		c := everySite(m)
		c.Base, c.Cuts = true, true
		r := run(t, m, ids, c)
		if _, err := r.Tensor(transformer.Coef, 0); err != nil {
			t.Fatal(err)
		}
		held := r.Held()
		if n := transformer.Alive(held); n == 0 || n != len(held) {
			t.Errorf("%d of %d tensors alive in an open run", n, len(held))
		}
		r.Close()
		r.Close()
		if n := transformer.Alive(held); n != 0 {
			t.Errorf("%d of %d tensors outlive the run", n, len(held))
		}
		if _, err := r.Tensor(transformer.Coef, 0); err != nil {
			t.Errorf("what was read before: %v", err)
		}
		if _, err := r.Tensor(transformer.Coef, 1); !errors.Is(err, transformer.ErrSite) {
			t.Errorf("what was not read: %v", err)
		}
		d, err := m.Decode(t.Context(), ids)
		if err != nil {
			t.Fatal(err)
		}
		open := run(t, m, ids, c)
		for range 2 {
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
		closedModel(t, m, open, d)
	})
}

// closedModel holds every method of a closed model to an error.
func closedModel(t *testing.T, m *transformer.Model, r *transformer.Run, d *transformer.Decoder) {
	t.Helper()
	ctx, ids := t.Context(), [][]int{{1, 2, 3}}
	state := transformer.NewTensor(1, m.Config.Width)
	for name, try := range map[string]func() error{
		"Run":    func() error { _, err := m.Run(ctx, ids, transformer.Capture{}); return err },
		"Resume": func() error { _, err := m.Resume(ctx, r, transformer.From{}, transformer.Capture{}); return err },
		"Gradient": func() error {
			_, err := m.Gradient(ctx, r, transformer.LogitDiff(1, 2), transformer.GradientOptions{})
			return err
		},
		"Decode":   func() error { _, err := m.Decode(ctx, ids); return err },
		"Step":     func() error { return d.Step(ctx, []int{1}) },
		"Generate": func() error { _, err := m.Generate(ctx, ids, transformer.GenerateOptions{}); return err },
		"Readout":  func() error { _, err := m.Readout(ctx, state, transformer.ReadoutOptions{}); return err },
		"Unembed":  func() error { _, err := m.Unembed(state, true); return err },
		"Keys":     func() error { _, err := m.Keys(0); return err },
		"Values":   func() error { _, err := m.Values(0); return err },
		"Value":    func() error { _, err := m.Value(transformer.Neuron{}); return err },
	} {
		if err := try(); !errors.Is(err, transformer.ErrClosed) {
			t.Errorf("%s of a closed model: %v", name, err)
		}
	}
}

// TestConcurrent: several goroutines run, resume, differentiate and generate with one model, read one run, and each
// gets what it would get alone.
func TestConcurrent(t *testing.T) {
	onReference(t, []string{"llama"}, []string{"llama"}, func(t *testing.T, b *bench) {
		base := run(t, b.Model, b.ids, transformer.Capture{Sites: []transformer.Site{transformer.Coef, transformer.Logits}, Base: true, Cuts: true})
		alone := run(t, b.Model, b.ids, everySite(b.Model))
		story := generate(t, b.Model, b.ids[2:], transformer.GenerateOptions{MaxTokens: 4})
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 1))
				for range 3 {
					b.together(t, base, alone, story, rng.IntN(4))
				}
			})
		}
		wg.Wait()
	})
}

// together does one thing beside others and checks it.
func (b *bench) together(t *testing.T, base, alone *transformer.Run, story *transformer.Generation, what int) {
	var err error
	var r *transformer.Run
	switch what {
	case 0:
		r, err = b.Run(t.Context(), b.ids, everySite(b.Model), transformer.Intervention{
			Site: transformer.Coef, Layer: 0, Op: transformer.OpCopy, From: base,
		})
	case 1:
		r, err = b.Resume(t.Context(), base, transformer.From{Layer: 1}, everySite(b.Model))
	case 2:
		var g *transformer.Gradients
		if g, err = b.Gradient(t.Context(), base, transformer.LogitDiff(1, 2), transformer.GradientOptions{}); err == nil {
			g.Close()
		}
	case 3:
		var g *transformer.Generation
		g, err = b.Generate(t.Context(), b.ids[2:], transformer.GenerateOptions{MaxTokens: 4})
		if err == nil && fmt.Sprint(g.IDs) != fmt.Sprint(story.IDs) {
			t.Errorf("generated %v beside others, %v alone", g.IDs, story.IDs)
		}
	}
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := base.Tensor(transformer.Coef, what%2); err != nil {
		t.Error(err)
	}
	if r == nil {
		return
	}
	defer r.Close()
	got, err := r.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Error(err)
		return
	}
	want, err := alone.Tensor(transformer.Logits, -1)
	if err != nil {
		t.Error(err)
		return
	}
	near(t, "logits beside other work", got, want, 2e-4)
}

// TestStreaming: while a streamed model runs, at most one layer's weights are on the device, and none afterwards; the
// numbers are those of a resident model, forwards, backwards, resumed and generated.
func TestStreaming(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		b := lab(t, be, "llama")
		resident := b.Model
		b.Model = readGolden(t, b.ref.dir).open(t, be, loader.Options{Stream: true})
		watch := &watcher{Context: t.Context(), m: b.Model}
		r, err := b.Run(watch, b.ids, transformer.Capture{Sites: everySite(b.Model).Sites, Base: true, Cuts: true})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		b.compare(t, "streamed", r, nil)
		of := transformer.LogitDiff(1, 2)
		opts := transformer.GradientOptions{Sites: []transformer.Site{transformer.ResidPre}}
		g, err := b.Gradient(watch, r, of, opts)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		same := b.gradientOf(t, resident, of, opts)
		near(t, "gradient", same(g, 0), same(nil, 0), 1e-5)
		if watch.looks < 2*b.Config.Layers || watch.most > 1 {
			t.Errorf("%d layers on the device at once, %d looks", watch.most, watch.looks)
		}
		for l, n := range b.OnDevice() {
			if l >= 0 && n != 0 {
				t.Errorf("%d weights of layer %d stay on the device", n, l)
			}
		}
		want := generate(t, resident, b.ids[2:], transformer.GenerateOptions{MaxTokens: 6})
		got := generate(t, b.Model, b.ids[2:], transformer.GenerateOptions{MaxTokens: 6})
		if fmt.Sprint(got.IDs) != fmt.Sprint(want.IDs) {
			t.Errorf("generated %v streamed, %v resident", got.IDs, want.IDs)
		}
	})
}

// gradientOf differentiates a whole run of another model, and gives its tensor, or that of other gradients.
func (b *bench) gradientOf(
	t *testing.T, m *transformer.Model, of transformer.Objective, opts transformer.GradientOptions,
) func(g *transformer.Gradients, layer int) *transformer.Tensor {
	r := run(t, m, b.ids, transformer.Capture{Cuts: true})
	own, err := m.Gradient(t.Context(), r, of, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	return func(g *transformer.Gradients, layer int) *transformer.Tensor {
		if g == nil {
			g = own
		}
		x, err := g.Tensor(opts.Sites[0], layer)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
}

// watcher is a context that counts the layers on the device whenever a run looks at it, which is between two layers.
type watcher struct {
	context.Context
	m           *transformer.Model
	looks, most int
}

func (w *watcher) Value(any) any { return nil }

func (w *watcher) Err() error {
	w.looks++
	layers := 0
	for l, n := range w.m.OnDevice() {
		if l >= 0 && n > 0 {
			layers++
		}
	}
	w.most = max(w.most, layers)
	return w.Context.Err()
}

// TestProgramsAreShared: layers, positions, values and rows of a bucket share programs; only touched sites and shapes
// make new ones.
func TestProgramsAreShared(t *testing.T) {
	onReference(t, []string{"gpt2"}, nil, func(t *testing.T, b *bench) {
		iv := transformer.Intervention{Site: transformer.Coef, Op: transformer.OpScale, Value: []float32{2}, Rows: []int{0}}
		logits := transformer.Capture{Sites: []transformer.Site{transformer.Logits}}
		run(t, b.Model, b.ids, logits, iv)
		before := b.Programs()
		for l := range b.Config.Layers {
			other := iv
			other.Layer, other.Op, other.Rows, other.Positions, other.Units = l, transformer.OpZero, []int{1}, []int{2}, []int{3}
			run(t, b.Model, b.ids, logits, other)
		}
		if n := b.Programs(); n != before {
			t.Errorf("%d programs became %d", before, n)
		}
	})
}
