package probes_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// TestActivationsFile: the file holds the reference's numbers under the promised names.
func TestActivationsFile(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"gpt2", "llama", "gemma2", "mixtral"} {
			t.Run(family, func(t *testing.T) {
				m := open(t, be, golden(family))
				ref := openFile(t, filepath.Join(golden(family), "golden.safetensors"))
				opts := probes.ActivationsOptions{IDs: intRows(ref.rows("ids")), Grad: []int{7, 11}}
				for _, s := range transformer.Sites() {
					if m.Config.HasSite(s, 0) {
						opts.Sites = append(opts.Sites, s)
					}
				}
				r, err := probes.Activations(t.Context(), m, opts)
				if err != nil {
					t.Fatal(err)
				}
				defer r.Close()
				path := filepath.Join(t.TempDir(), "a.safetensors")
				if err := r.Save(t.Context(), path, false, map[string]string{"schema": "x"}); err != nil {
					t.Fatal(err)
				}
				compareFiles(t, r, openFile(t, path), ref)
			})
		}
	})
}

// compareFiles compares every tensor that the reference has too.
func compareFiles(t *testing.T, r *probes.ActivationsResult, got, ref file) {
	t.Helper()
	compared := 0
	for _, a := range r.Tensors {
		shape, values := got.floats(a.Name)
		if !slices.Equal(shape, a.Shape) {
			t.Errorf("%s has shape %v in the file, %v in the result", a.Name, shape, a.Shape)
		}
		// The reference calls these three by other names.
		name := strings.NewReplacer("resid_pre", "resid", "final", "normed_final").Replace(a.Name)
		if !ref.has(name) {
			continue
		}
		compared++
		wantShape, want := ref.floats(name)
		if !slices.Equal(shape, wantShape) {
			t.Errorf("%s has shape %v, want %v", a.Name, shape, wantShape)
			continue
		}
		largest := 1.0
		for _, v := range want {
			largest = max(largest, v, -v)
		}
		for i := range want {
			if d := values[i] - want[i]; d > 1e-4*largest || d < -1e-4*largest {
				t.Errorf("%s[%d] is %g, want %g", a.Name, i, values[i], want[i])
				break
			}
		}
	}
	if compared < 10 {
		t.Errorf("only %d tensors could be compared", compared)
	}
}

func intRows(rows [][]float64) [][]int {
	out := make([][]int, len(rows))
	for i, row := range rows {
		for _, v := range row {
			out[i] = append(out[i], int(v))
		}
	}
	return out
}

// TestActivationsRowsAndLayers: rows of different length are padded with zeros, layers are those asked for, and
// gradients are those of each row alone.
func TestActivationsRowsAndLayers(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	opts := probes.ActivationsOptions{
		IDs: [][]int{{1, 403}, {1, 378, 432}}, Sites: []transformer.Site{transformer.ResidPost, transformer.Embed},
		Layers: []int{1, 3}, Grad: []int{317, 410},
	}
	r, err := probes.Activations(t.Context(), m, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var names []string
	for _, a := range r.Tensors {
		names = append(names, a.Name)
	}
	want := []string{
		"embed", "resid_post.1", "grad.resid_pre.1", "grad.coef.1", "resid_post.3", "grad.resid_pre.3", "grad.coef.3",
	}
	if !slices.Equal(names, want) || len(r.Objective) != 2 {
		t.Fatalf("got %v, objective %v", names, r.Objective)
	}
	for row, ids := range opts.IDs {
		alone := opts
		alone.IDs = [][]int{ids}
		one, err := probes.Activations(t.Context(), m, alone)
		if err != nil {
			t.Fatal(err)
		}
		near(t, "objective", r.Objective[row], one.Objective[0], 1e-5)
		for _, name := range names {
			a, err1 := r.Tensor(name)
			b, err2 := one.Tensor(name)
			if err := errors.Join(err1, err2); err != nil {
				t.Fatal(err)
			}
			for p := range 3 {
				for j, v := range a.At(row, p).Data {
					other := 0.0
					if p < len(ids) {
						other = float64(b.At(0, p).Data[j])
					}
					near(t, fmt.Sprint(name, row, p, j), float64(v), other, 1e-5)
				}
			}
		}
		one.Close()
	}
	if x, err := r.Tensor("nothing"); x != nil || err != nil {
		t.Errorf("got %v, %v", x, err)
	}
}

func TestActivationsRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	sites := []transformer.Site{transformer.Coef}
	for _, c := range []struct {
		opts probes.ActivationsOptions
		want error
	}{
		{probes.ActivationsOptions{Sites: sites}, transformer.ErrEmptyPrompt},
		{probes.ActivationsOptions{IDs: [][]int{{1}}, Sites: []transformer.Site{"x"}}, transformer.ErrSite},
		{probes.ActivationsOptions{IDs: [][]int{{1}}, Sites: []transformer.Site{transformer.Pre}}, transformer.ErrSite},
		{probes.ActivationsOptions{IDs: [][]int{{1}}, Sites: sites, Layers: []int{5}}, probes.ErrLayer},
		{probes.ActivationsOptions{IDs: [][]int{{1}}, Sites: sites, Grad: []int{1, 512}}, transformer.ErrTokenRange},
	} {
		if _, err := probes.Activations(t.Context(), m, c.opts); !errors.Is(err, c.want) {
			t.Errorf("%+v: got %v, want %v", c.opts, err, c.want)
		}
	}
	r, err := probes.Activations(t.Context(), m, probes.ActivationsOptions{IDs: [][]int{{1}}, Sites: sites})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	path := filepath.Join(t.TempDir(), "a.safetensors")
	if err := os.WriteFile(path, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.Save(t.Context(), path, false, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an existing file: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Save(ctx, path, true, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "mine" {
		t.Errorf("the file is %q now, %v", text, err)
	}
}
