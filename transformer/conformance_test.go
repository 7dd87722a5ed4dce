package transformer_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// golden is a checkpoint with the numbers that transformers computes for it.
type golden struct {
	name    string
	dir     string
	ids     [][]int
	tensors map[string]*transformer.Tensor
}

// goldens are the checkpoints of the repository and, where it lies beside the checkout, of the shared folder.
func goldens(t testing.TB) []*golden {
	t.Helper()
	var all []*golden
	patterns := []string{"../testdata/goldens/*", "../../shared/goldens/*", "../../shared/checkpoints/stories260K"}
	if testing.Short() {
		patterns = patterns[:1]
	}
	for _, pattern := range patterns {
		found, err := filepath.Glob(filepath.Join(pattern, "golden.safetensors"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			all = append(all, readGolden(t, filepath.Dir(f)))
		}
	}
	if len(all) == 0 {
		t.Fatal("no golden checkpoints in testdata")
	}
	return all
}

func readGolden(t testing.TB, dir string) *golden {
	t.Helper()
	file, err := safetensors.Open(filepath.Join(dir, "golden.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	parts := strings.Split(filepath.ToSlash(filepath.Clean(dir)), "/")
	g := &golden{
		name: strings.Join(parts[len(parts)-2:], "/"), dir: dir, tensors: map[string]*transformer.Tensor{},
	}
	for _, e := range file.Entries {
		raw, err := file.Tensor(e.Name)
		if err != nil {
			t.Fatal(err)
		}
		x := transformer.NewTensor(raw.Shape...)
		for i := range x.Data {
			if raw.DType == "I64" {
				x.Data[i] = float32(int64(binary.LittleEndian.Uint64(raw.Data[8*i:])))
			} else {
				x.Data[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw.Data[4*i:]))
			}
		}
		g.tensors[e.Name] = x
	}
	for row := range g.tensors["ids"].Shape[0] {
		var out []int
		for _, v := range g.tensors["ids"].At(row).Data {
			out = append(out, int(v))
		}
		g.ids = append(g.ids, out)
	}
	return g
}

// rows are the indices of all rows.
func (g *golden) rows() []int {
	all := make([]int, len(g.ids))
	for i := range all {
		all[i] = i
	}
	return all
}

// open opens the golden's checkpoint on a backend.
func (g *golden) open(t testing.TB, be compute.Backend, opts loader.Options) *transformer.Model {
	t.Helper()
	opts.Backend = be
	m, err := loader.Open(t.Context(), g.dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// site is where the engine has a golden tensor.
func (g *golden) site(name string, layers int) (s transformer.Site, layer int, ok bool) {
	switch name {
	case "logits":
		return transformer.Logits, -1, true
	case "normed_final":
		return transformer.Final, -1, true
	case "resid_final":
		return transformer.ResidPost, layers - 1, true
	}
	base, index, found := strings.Cut(name, ".")
	if !found {
		return "", 0, false
	}
	if _, err := fmt.Sscan(index, &layer); err != nil {
		return "", 0, false
	}
	if base == "resid" {
		return transformer.ResidPre, layer, true
	}
	s, err := transformer.ParseSite(base)
	return s, layer, err == nil
}

// tolerance is the one of the goldens' README: 2e-4 on logits, elsewhere 2e-5 of the largest magnitude, at least 2e-5.
func tolerance(name string, want *transformer.Tensor) float64 {
	if strings.HasPrefix(name, "logits") {
		return 2e-4
	}
	top := 1.0
	for _, v := range want.Data {
		top = max(top, math.Abs(float64(v)))
	}
	return 2e-5 * top
}

// near fails the test when two tensors differ in shape or by more than the tolerance anywhere.
func near(t *testing.T, name string, got, want *transformer.Tensor, tol float64) {
	t.Helper()
	if !slices.Equal(got.Shape, want.Shape) {
		t.Errorf("%s: shape %v, want %v", name, got.Shape, want.Shape)
		return
	}
	worst, at := 0.0, 0
	for i := range want.Data {
		d := math.Abs(float64(got.Data[i]) - float64(want.Data[i]))
		if !(d <= worst) { // NaN counts as worst
			worst, at = d, i
		}
	}
	if !(worst <= tol) {
		t.Errorf("%s: differs by %.3g (tolerance %.3g) at %d of %v: got %g, want %g",
			name, worst, tol, at, want.Shape, got.Data[at], want.Data[at])
	}
}

// rows takes some rows and the positions from first on of a golden tensor; pattern has positions on its third axis.
func cut(x *transformer.Tensor, name string, rows []int, first int) *transformer.Tensor {
	axis := 1
	if strings.HasPrefix(name, "pattern") {
		axis = 2
	}
	shape := append([]int{len(rows)}, x.Shape[1:]...)
	shape[axis] -= first
	out := transformer.NewTensor(shape...)
	outer, inner := 1, 1
	for _, d := range x.Shape[1:axis] {
		outer *= d
	}
	for _, d := range x.Shape[axis+1:] {
		inner *= d
	}
	n := x.Shape[axis]
	for i, row := range rows {
		for o := range outer {
			src := x.Data[((row*outer+o)*n+first)*inner : ((row*outer+o)+1)*n*inner]
			copy(out.Data[(i*outer+o)*(n-first)*inner:], src)
		}
	}
	return out
}

// compare checks every golden tensor that the run captured, for golden rows and positions from first on.
func (g *golden) compare(t *testing.T, r *transformer.Run, layers int, rows []int, first, lowest int) {
	t.Helper()
	seen := 0
	for name, want := range g.tensors {
		s, l, ok := g.site(name, layers)
		if !ok || l >= 0 && l < lowest {
			continue
		}
		got, err := r.Tensor(s, l)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		near(t, name, got, cut(want, name, rows, first), tolerance(name, want))
		seen++
	}
	if seen == 0 {
		t.Error("nothing compared")
	}
}

// everySite captures all sites that the goldens know.
func everySite(m *transformer.Model) transformer.Capture {
	var sites []transformer.Site
	for _, s := range transformer.Sites() {
		for l := range m.Config.Layers {
			if m.Config.HasSite(s, l) {
				sites = append(sites, s)
				break
			}
		}
	}
	return transformer.Capture{Sites: sites}
}

// TestConformance holds the engine to the golden numbers of every family, on every backend and in every way of running.
// Captures are the same throughout, so that few programs are compiled.
func TestConformance(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, g := range goldens(t) {
			t.Run(g.name, func(t *testing.T) {
				m := g.open(t, be, loader.Options{})
				c := everySite(m)
				c.Base, c.Cuts = true, true
				r := run(t, m, g.ids, c)
				t.Run("full", func(t *testing.T) { testFull(t, g, m, r) })
				t.Run("batched", func(t *testing.T) { testBatched(t, g, m, c) })
				t.Run("resumed", func(t *testing.T) { testResumed(t, g, m, r) })
				t.Run("gradients", func(t *testing.T) { checkGradients(t, g, m, r, 0, 0) })
				t.Run("generated", func(t *testing.T) { testGenerated(t, g, m) })
				t.Run("streamed", func(t *testing.T) {
					m := g.open(t, be, loader.Options{Stream: true, Share: m})
					testFull(t, g, m, run(t, m, g.ids, c))
				})
				t.Run("legacy", func(t *testing.T) { testLegacy(t, g, m, c) })
			})
		}
	})
}

func run(
	t *testing.T, m *transformer.Model, ids [][]int, c transformer.Capture, ivs ...transformer.Intervention,
) *transformer.Run {
	t.Helper()
	r, err := m.Run(t.Context(), ids, c, ivs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

// testFull: one run gives every site, and the identities between sites hold.
func testFull(t *testing.T, g *golden, m *transformer.Model, r *transformer.Run) {
	g.compare(t, r, m.Config.Layers, g.rows(), 0, 0)
	if m.Config.Layout == transformer.PostNorm {
		return
	}
	for l := range m.Config.Layers {
		total := transformer.NewTensor(len(g.ids), len(g.ids[0]), m.Config.Width)
		for _, s := range []transformer.Site{transformer.ResidPre, transformer.AttnOut, transformer.FFNOut} {
			part, err := r.Tensor(s, l)
			if err != nil {
				t.Fatal(err)
			}
			for i, v := range part.Data {
				total.Data[i] += v
			}
		}
		post, err := r.Tensor(transformer.ResidPost, l)
		if err != nil {
			t.Fatal(err)
		}
		near(t, fmt.Sprint("resid_pre + attn_out + ffn_out, layer ", l), total, post, tolerance("", post))
	}
}

// testBatched: a row's numbers do not depend on the rows beside it, on their lengths, or on the bucket.
func testBatched(t *testing.T, g *golden, m *transformer.Model, c transformer.Capture) {
	long, last := g.ids[0], g.ids[len(g.ids)-1]
	short := last[:5]
	for _, batch := range [][][]int{{long, short}, {long, short, short, last, short, long[:3], long[:1], short, short}} {
		r := run(t, m, batch, c)
		sub := &subRun{r, 0}
		sub.compare(t, g, m)
	}
	if want := g.tensors["logits_short"]; want != nil {
		n := want.Shape[1]
		r := run(t, m, [][]int{long[:n], last}, c)
		got, err := r.Tensor(transformer.Logits, -1)
		if err != nil {
			t.Fatal(err)
		}
		short := transformer.NewTensor(want.Shape...)
		copy(short.Data, got.At(0).Data)
		near(t, "logits_short", short, want, 2e-4)
	}
}

// subRun is one row of a run.
type subRun struct {
	r   *transformer.Run
	row int
}

func (s *subRun) compare(t *testing.T, g *golden, m *transformer.Model) {
	t.Helper()
	for name, want := range g.tensors {
		site, l, ok := g.site(name, m.Config.Layers)
		if !ok {
			continue
		}
		got, err := s.r.Tensor(site, l)
		if err != nil {
			t.Fatal(err)
		}
		one := got.At(s.row)
		near(t, name, &transformer.Tensor{Shape: append([]int{1}, one.Shape...), Data: one.Data},
			cut(want, name, []int{0}, 0), tolerance(name, want))
	}
}

// testResumed: a quadrant recomputed over a base equals the whole run, from several layers and positions, with rows
// repeated and in another order; and the quadrant's gradients are those of the whole.
func testResumed(t *testing.T, g *golden, m *transformer.Model, base *transformer.Run) {
	L, T := m.Config.Layers, len(g.ids[0])
	cases := []transformer.From{
		{Layer: 0, Position: 0},
		{Layer: 1, Position: 4},
		{Layer: L - 1, Position: T - 1},
		{Layer: 1, Position: T / 2, Rows: append(g.rows(), g.rows()...)},
		{Layer: 0, Position: 3, Rows: []int{len(g.ids) - 1, len(g.ids) - 1, 0}},
	}
	if m.Config.Encoder {
		cases = []transformer.From{{Layer: 0}, {Layer: 1}, {Layer: L - 1, Rows: []int{len(g.ids) - 1, 0, 0}}}
	}
	for _, from := range cases {
		t.Run(fmt.Sprintf("L%dT%d", from.Layer, from.Position), func(t *testing.T) {
			c := everySite(m)
			c.Cuts = true
			r, err := m.Resume(t.Context(), base, from, c)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			rows := from.Rows
			if rows == nil {
				rows = g.rows()
			}
			g.compare(t, r, L, rows, from.Position, from.Layer)
			if from.Rows == nil && from.Layer < L-1 {
				checkGradients(t, g, m, r, from.Position, from.Layer)
			}
		})
	}
}

// checkGradients compares the golden gradients at positions from first and layers from lowest on.
func checkGradients(t *testing.T, g *golden, m *transformer.Model, r *transformer.Run, first, lowest int) {
	t.Helper()
	var sites []transformer.Site
	for _, s := range transformer.Sites() {
		if s.InBlock() && s != transformer.RouterIndices && slices.Contains(everySite(m).Sites, s) {
			sites = append(sites, s)
		}
	}
	got, err := m.Gradient(t.Context(), r, transformer.LogitDiff(7, 11), transformer.GradientOptions{Sites: sites})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	for row, v := range got.Values {
		logits := g.tensors["logits"].At(row, len(g.ids[row])-1).Data
		if want := float64(logits[7] - logits[11]); math.Abs(v-want) > 4e-4 {
			t.Errorf("objective of row %d: %g, want %g", row, v, want)
		}
	}
	seen := 0
	for name, want := range g.tensors {
		rest, ok := strings.CutPrefix(name, "grad.")
		if !ok {
			continue
		}
		s, l, ok := g.site(rest, m.Config.Layers)
		if !ok || l < lowest {
			continue
		}
		x, err := got.Tensor(s, l)
		if err != nil {
			t.Fatal(err)
		}
		near(t, name, x, cut(want, rest, g.rows(), first), tolerance(rest, want))
		seen++
	}
	if seen < 2 {
		t.Errorf("%d gradients compared", seen)
	}
}

// testGenerated: logits of a sequence fed token by token through the cache are those of the whole run.
func testGenerated(t *testing.T, g *golden, m *transformer.Model) {
	if m.Config.Encoder {
		if _, err := m.Decode(t.Context(), g.ids); err == nil {
			t.Error("an encoder must refuse to generate")
		}
		return
	}
	const prompt = 3
	heads := make([][]int, len(g.ids))
	for row := range heads {
		heads[row] = g.ids[row][:prompt]
	}
	d, err := m.Decode(t.Context(), heads)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for p := prompt; ; p++ {
		for row := range g.ids {
			want := g.tensors["logits"].At(row, p-1)
			near(t, fmt.Sprintf("logits of row %d behind position %d", row, p-1), d.Logits().At(row), want, 2e-4)
		}
		if p == len(g.ids[0]) {
			return
		}
		tokens := make([]int, len(g.ids))
		for row := range tokens {
			tokens[row] = g.ids[row][p]
		}
		if err := d.Step(context.Background(), tokens); err != nil {
			t.Fatal(err)
		}
	}
}

// testLegacy: the same checkpoint under the configuration that transformers 4 would have written.
func testLegacy(t *testing.T, g *golden, like *transformer.Model, c transformer.Capture) {
	legacy, err := os.ReadFile(filepath.Join(g.dir, "config.legacy.json"))
	if os.IsNotExist(err) {
		return // both spellings are one for this family
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	weights, err := os.ReadFile(filepath.Join(g.dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"config.json": legacy, "model.safetensors": weights} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := &golden{name: g.name, dir: dir, ids: g.ids, tensors: g.tensors}
	m := old.open(t, like.Backend(), loader.Options{Share: like})
	old.compare(t, run(t, m, g.ids, c), m.Config.Layers, g.rows(), 0, 0)
}
