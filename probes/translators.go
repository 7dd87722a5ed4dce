package probes

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"strconv"
	"strings"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// Translators take states of the residual stream to where the model's unembedding reads them: h' = M·h + b, with a
// map for each place. The logit lens is M = 1, b = 0.
type Translators struct {
	Kind  string            `json:"kind"`  // tuned, jacobian or future
	Ahead int               `json:"ahead"` // tokens between the state's own prediction and the one it is mapped to
	Model string            `json:"-"`     // fingerprint of the model that it is for
	Meta  map[string]string `json:"-"`     // how it was made
	Maps  []Translator      `json:"-"`
}

// Translator is the map of one place.
type Translator struct {
	Site  transformer.Site
	Layer int
	transformer.Affine
}

// The kinds of translators.
const (
	TunedKind    = "tuned"
	JacobianKind = "jacobian"
	FutureKind   = "future"
)

// ErrLens is wrapped by errors about files that hold no translators, and by those about corpora that make none.
var ErrLens = errors.New("no lens")

// lensSchema is the schema of a file of translators.
const lensSchema = "engram.lens"

// newTranslators are identities at some places.
func newTranslators(m *transformer.Model, kind string, places []place) *Translators {
	t := &Translators{Kind: kind, Model: m.Fingerprint, Meta: map[string]string{}}
	d := m.Config.Width
	for _, p := range places {
		a := transformer.Affine{Matrix: transformer.NewTensor(d, d), Offset: make([]float32, d)}
		for i := range d {
			a.Matrix.Data[i*d+i] = 1
		}
		t.Maps = append(t.Maps, Translator{Site: p.site, Layer: p.layer, Affine: a})
	}
	return t
}

// place is a state of the residual stream: resid_pre or resid_mid of a layer, or resid_post of the last one.
type place struct {
	site  transformer.Site
	layer int
}

// placesOf are the states before the last one: resid_pre of every layer, with mid resid_mid too.
func placesOf(c *transformer.Config, mid bool) []place {
	var out []place
	for l := range c.Layers {
		out = append(out, place{transformer.ResidPre, l})
		if mid {
			out = append(out, place{transformer.ResidMid, l})
		}
	}
	return out
}

// of is the map of a state; nil without one. What leaves a layer is what enters the next.
func (t *Translators) of(site transformer.Site, layer int) *Translator {
	if site == transformer.ResidPost {
		site, layer = transformer.ResidPre, layer+1
	}
	for i := range t.Maps {
		if t.Maps[i].Site == site && t.Maps[i].Layer == layer {
			return &t.Maps[i]
		}
	}
	return nil
}

// apply writes M·h + b.
func (t *Translator) apply(dst, h []float32) {
	d := len(h)
	for i := range d {
		dst[i] = t.Offset[i] + float32(product(t.Matrix.Data[i*d:(i+1)*d], h))
	}
}

// check refuses translators of another model.
func (t *Translators) check(m *transformer.Model) error {
	if t.Model != m.Fingerprint {
		return fmt.Errorf("the lens was %w: the one with fingerprint %.12s, this is %.12s",
			ErrOtherModel, t.Model, m.Fingerprint)
	}
	for _, p := range t.Maps {
		if p.Layer < 0 || p.Layer >= m.Config.Layers || len(p.Offset) != m.Config.Width {
			return fmt.Errorf("%w: a map of %s of layer %d for %d components", ErrLens, p.Site, p.Layer, len(p.Offset))
		}
	}
	return nil
}

// Save writes the maps to a safetensors file, <site>.<layer>.matrix [d,d] and <site>.<layer>.offset [d] as float32,
// with meta and Meta in its metadata. An existing file is an error that wraps fs.ErrExist unless replace is set.
func (t *Translators) Save(ctx context.Context, path string, replace bool, meta map[string]string) error {
	all := map[string]string{}
	maps.Copy(all, meta)
	maps.Copy(all, t.Meta)
	all["schema"], all["schema_version"], all["fingerprint"] = lensSchema, "1", t.Model
	all["kind"], all["ahead"] = t.Kind, strconv.Itoa(t.Ahead)
	items := t.items("")
	fill := func(w io.Writer) error { return safetensors.Write(w, items, all) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}

// items are the maps as tensors.
func (t *Translators) items(prefix string) []safetensors.Item {
	var out []safetensors.Item
	for _, p := range t.Maps {
		name := fmt.Sprintf("%s%s.%d", prefix, p.Site, p.Layer)
		for _, x := range []struct {
			part  string
			shape []int
			data  []float32
		}{{".matrix", p.Matrix.Shape, p.Matrix.Data}, {".offset", []int{len(p.Offset)}, p.Offset}} {
			out = append(out, safetensors.Item{
				Name: name + x.part, DType: safetensors.F32, Shape: x.shape,
				WriteData: func(w io.Writer) error { return writeFloats(w, x.data) },
			})
		}
	}
	return out
}

// LoadTranslators reads a file that Save wrote. Errors wrap ErrLens, or ErrOtherModel where it is for another model.
func LoadTranslators(path string, m *transformer.Model) (*Translators, error) {
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Metadata["schema"] != lensSchema {
		return nil, fmt.Errorf("%w in %s: its schema is %q", ErrLens, path, f.Metadata["schema"])
	}
	t := &Translators{Kind: f.Metadata["kind"], Model: f.Metadata["fingerprint"], Meta: f.Metadata}
	if t.Ahead, err = strconv.Atoi(f.Metadata["ahead"]); err != nil {
		return nil, fmt.Errorf("%w in %s: ahead is %q", ErrLens, path, f.Metadata["ahead"])
	}
	if err := t.check(m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := t.read(f, "", m.Config.Width); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(t.Maps) == 0 {
		return nil, fmt.Errorf("%w in %s: it has no map", ErrLens, path)
	}
	if err := t.check(m); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// read fills in the maps whose names begin with the prefix.
func (t *Translators) read(f *safetensors.File, prefix string, d int) error {
	for _, e := range f.Entries {
		name, own := strings.CutPrefix(e.Name, prefix)
		name, matrix := strings.CutSuffix(name, ".matrix")
		if !own || !matrix {
			continue
		}
		site, number, _ := strings.Cut(name, ".")
		layer, err := strconv.Atoi(number)
		if err != nil || site != string(transformer.ResidPre) && site != string(transformer.ResidMid) {
			return fmt.Errorf("%w: a map of %q", ErrLens, name)
		}
		p := Translator{Site: transformer.Site(site), Layer: layer}
		p.Matrix = &transformer.Tensor{Shape: []int{d, d}}
		if p.Matrix.Data, err = readFloats(f, prefix+name+".matrix", d*d); err != nil {
			return err
		}
		if p.Offset, err = readFloats(f, prefix+name+".offset", d); err != nil {
			return err
		}
		t.Maps = append(t.Maps, p)
	}
	return nil
}

// readFloats reads a float32 tensor of n finite elements.
func readFloats(f *safetensors.File, name string, n int) ([]float32, error) {
	x, err := f.Tensor(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrLens, err)
	}
	if x.DType != safetensors.F32 || len(x.Data) != 4*n {
		return nil, fmt.Errorf("%w: %s is %s%v, want %d numbers in F32", ErrLens, name, x.DType, x.Shape, n)
	}
	out := make([]float32, n)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(x.Data[4*i:]))
		if v := float64(out[i]); math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("%w: %s holds %g", ErrLens, name, v)
		}
	}
	return out, nil
}
