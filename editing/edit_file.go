package editing

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// ErrEdit is wrapped by errors about edit files that are damaged or of another model.
var ErrEdit = errors.New("bad edit file")

const editSchema = "engram.edit"

// Edits is what an edit file holds: changes in the order in which they were made, each on top of those before it.
type Edits struct {
	Model       string  `json:"model"`
	Fingerprint string  `json:"fingerprint"` // of the model without them
	List        []*Edit `json:"edits"`
}

// Deltas are the edits as changes of the model's weights.
func (e *Edits) Deltas() []transformer.Delta {
	var out []transformer.Delta
	for _, one := range e.List {
		out = append(out, one.Delta())
	}
	return out
}

// Check refuses edits of another model, with an error that wraps ErrEdit.
func (e *Edits) Check(m *transformer.Model) error {
	if e.Fingerprint != m.Fingerprint {
		return badEdit("give the --model that they were made for",
			"edits of the model %s (%.12s), and this is %s (%.12s)", e.Model, e.Fingerprint, m.Name, m.Fingerprint)
	}
	return nil
}

func badEdit(hint, format string, args ...any) error {
	return &editError{fmt.Sprintf(format, args...), hint}
}

type editError struct{ text, hint string }

func (e *editError) Error() string { return e.text }
func (e *editError) Unwrap() error { return ErrEdit }
func (e *editError) Hint() string  { return e.hint }

// Save writes the edits as a safetensors file: for edit i the tensors edit.<i>.left [d] and edit.<i>.right [m], or
// [d,r] and [m,r] for a change of rank r > 1, edit.<i>.key [m] and edit.<i>.value [d], or [m,n] and [d,n] for n > 1
// facts, all float32; everything else stands in the metadata. The file is there whole or not at all; an existing one is
// an error that wraps fs.ErrExist unless replace is set.
func (e *Edits) Save(ctx context.Context, path string, replace bool) error {
	about, err := json.Marshal(e.List)
	if err != nil {
		return fmt.Errorf("describe the edits: %w", err)
	}
	var items []safetensors.Item
	add := func(i int, name string, vectors ...[]float32) {
		data, shape := vectors[0], []int{len(vectors[0])}
		if r := len(vectors); r > 1 {
			shape, data = []int{shape[0], r}, make([]float32, shape[0]*r)
			for k, v := range vectors {
				for j := range v {
					data[j*r+k] = v[j]
				}
			}
		}
		items = append(items, safetensors.Item{
			Name: tensorName(i, name), DType: safetensors.F32, Shape: shape,
			WriteData: func(w io.Writer) error { return writeFloats(w, data) },
		})
	}
	for i, one := range e.List {
		add(i, "left", one.Left...)
		add(i, "right", one.Right...)
		var keys, values [][]float32
		for _, f := range one.Facts() {
			keys, values = append(keys, f.Key), append(values, f.Value)
		}
		add(i, "key", keys...)
		add(i, "value", values...)
	}
	meta := map[string]string{
		"schema": editSchema, "schema_version": "1", "model": e.Model, "fingerprint": e.Fingerprint,
		"count": strconv.Itoa(len(e.List)), "edits": string(about),
	}
	fill := func(w io.Writer) error { return safetensors.Write(w, items, meta) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}

func tensorName(i int, name string) string { return fmt.Sprintf("edit.%d.%s", i, name) }

// LoadEdits reads a file that Save wrote. Errors about what is in it wrap ErrEdit.
func LoadEdits(path string) (*Edits, error) {
	const hint = "engram edit rome makes such files"
	f, err := safetensors.Open(path)
	if errors.Is(err, safetensors.ErrFormat) {
		return nil, badEdit(hint, "%v", err)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if f.Metadata["schema"] != editSchema {
		return nil, badEdit(hint, "%s: not an edit file", path)
	}
	e := &Edits{Model: f.Metadata["model"], Fingerprint: f.Metadata["fingerprint"]}
	if err := json.Unmarshal([]byte(f.Metadata["edits"]), &e.List); err != nil {
		return nil, badEdit(hint, "%s: %v", path, err)
	}
	if len(e.List) == 0 || strconv.Itoa(len(e.List)) != f.Metadata["count"] {
		return nil, badEdit(hint, "%s: %d edits, not %q", path, len(e.List), f.Metadata["count"])
	}
	for i, one := range e.List {
		if one == nil {
			return nil, badEdit(hint, "%s: edit %d is not described", path, i)
		}
		if err := one.read(f, i); err != nil {
			return nil, badEdit(hint, "%s: edit %d: %v", path, i, err)
		}
	}
	return e, nil
}

// read takes an edit's tensors from a file.
func (e *Edit) read(f *safetensors.File, i int) error {
	vectors := func(name string) (out [][]float32, err error) {
		x, err := f.Tensor(tensorName(i, name))
		if err != nil {
			return nil, err
		}
		if x.DType != safetensors.F32 || len(x.Shape) < 1 || len(x.Shape) > 2 {
			return nil, fmt.Errorf("%s is %s%v", name, x.DType, x.Shape)
		}
		r, data := 1, readFloats(x.Data)
		if len(x.Shape) == 2 {
			r = x.Shape[1]
		}
		for k := range r {
			v := make([]float32, x.Shape[0])
			for j := range v {
				if v[j] = data[j*r+k]; math.IsNaN(float64(v[j])) || math.IsInf(float64(v[j]), 0) {
					return nil, fmt.Errorf("%s holds %g", name, v[j])
				}
			}
			out = append(out, v)
		}
		return out, nil
	}
	var keys, values [][]float32
	for name, into := range map[string]*[][]float32{
		"left": &e.Left, "right": &e.Right, "key": &keys, "value": &values,
	} {
		var err error
		if *into, err = vectors(name); err != nil {
			return err
		}
	}
	facts := e.Facts()
	if len(e.Left) != len(e.Right) || len(e.Left) == 0 {
		return fmt.Errorf("%d left and %d right vectors", len(e.Left), len(e.Right))
	}
	if len(keys) != len(facts) || len(values) != len(facts) {
		return fmt.Errorf("%d keys and %d values of %d facts", len(keys), len(values), len(facts))
	}
	for i, f := range facts {
		f.Key, f.Value = keys[i], values[i]
	}
	e.Key, e.Value = keys[0], values[0]
	return nil
}
