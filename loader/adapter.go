package loader

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// The files of an adapter.
const (
	adapterConfig  = "adapter_config.json"
	adapterWeights = "adapter_model.safetensors"
)

// Adapter says what was written.
type Adapter struct {
	Modules []string       `json:"modules"` // down projections, as transformers names them
	Ranks   map[string]int `json:"ranks"`
}

// loraConfig is adapter_config.json of a LoRA adapter (Hu et al. 2021): W + (alpha/r)·B·A with alpha = r.
type loraConfig struct {
	Type           string         `json:"peft_type"`
	Task           *string        `json:"task_type"`
	Base           string         `json:"base_model_name_or_path"`
	R              int            `json:"r"`
	Alpha          int            `json:"lora_alpha"`
	Dropout        float64        `json:"lora_dropout"`
	Bias           string         `json:"bias"`
	FanInFanOut    bool           `json:"fan_in_fan_out"`
	Inference      bool           `json:"inference_mode"`
	Targets        []string       `json:"target_modules"`
	RankPattern    map[string]int `json:"rank_pattern"`
	AlphaPattern   map[string]int `json:"alpha_pattern"`
	ModulesToSave  []string       `json:"modules_to_save"`
	RankStabilized bool           `json:"use_rslora"`
	Decomposed     bool           `json:"use_dora"`
}

// adapter is what an adapter consists of.
type adapter struct {
	config  loraConfig
	modules []string
	left    map[string][][]float32 // by module
	right   map[string][][]float32
}

// SaveAdapter writes changes of weights as a LoRA adapter that the Python library peft loads beside the checkpoint: for
// each changed down projection A [r,m] holds the right vectors and B [d,r] the left ones, in float32, with the rank of
// the changes and a scale of 1. The folder appears when it is whole, and is read again; an existing one is an error
// that wraps ErrExists.
func SaveAdapter(ctx context.Context, c *Checkpoint, dir string, changes []transformer.Delta) (*Adapter, error) {
	a, err := c.adapter(changes)
	if err != nil {
		return nil, err
	}
	err = atomicfile.Dir(ctx, dir, func(tmp string) error { return a.write(ctx, tmp) })
	if errors.Is(err, fs.ErrExist) {
		return nil, &failure{
			err: fmt.Errorf("save %s: it already exists", dir), kind: ErrExists, hint: "name a folder that is not there yet",
		}
	}
	if err != nil {
		return nil, fmt.Errorf("save: %w", err)
	}
	if err := a.verify(dir); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return &Adapter{Modules: a.modules, Ranks: a.config.RankPattern}, nil
}

// VerifyAdapter compares an adapter's folder with what SaveAdapter would write. One that differs is an error that wraps
// ErrCheckpoint.
func VerifyAdapter(c *Checkpoint, dir string, changes []transformer.Delta) error {
	a, err := c.adapter(changes)
	if err != nil {
		return err
	}
	return a.verify(dir)
}

// IsAdapter reports whether a folder holds an adapter and no checkpoint.
func IsAdapter(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, adapterConfig))
	return err == nil
}

// adapter turns changes into modules.
func (c *Checkpoint) adapter(changes []transformer.Delta) (*adapter, error) {
	if _, err := transformer.Patched(c.Bindings, c, changes); err != nil { // refuses what does not fit
		return nil, err
	}
	task := "CAUSAL_LM"
	a := &adapter{left: map[string][][]float32{}, right: map[string][][]float32{}, config: loraConfig{
		Type: "LORA", Task: &task, Base: c.Name, Bias: "none", Inference: true, RankPattern: map[string]int{},
		AlphaPattern: map[string]int{},
	}}
	if c.Config.Encoder {
		a.config.Task = nil
	}
	for _, d := range changes {
		part := c.Bindings[transformer.Place{Slot: transformer.SlotDown, Layer: d.Layer}][0]
		module := strings.TrimSuffix(c.canonical[part.Tensor], ".weight")
		a.config.FanInFanOut = part.InOut
		a.left[module], a.right[module] = append(a.left[module], d.Left...), append(a.right[module], d.Right...)
		if !slices.Contains(a.modules, module) {
			a.modules = append(a.modules, module)
		}
	}
	slices.Sort(a.modules)
	for _, m := range a.modules {
		r := len(a.left[m])
		a.config.RankPattern[m], a.config.AlphaPattern[m] = r, r
		a.config.R, a.config.Alpha = max(a.config.R, r), max(a.config.Alpha, r)
	}
	a.config.Targets = a.modules
	if len(a.modules) == 0 {
		return nil, errors.New("no changes to write")
	}
	return a, nil
}

// tensors are A and B of every module, row-major.
func (a *adapter) tensors() (items []safetensors.Item) {
	add := func(name string, rows, columns int, at func(i, j int) float32) {
		items = append(items, safetensors.Item{
			Name: "base_model.model." + name + ".weight", DType: safetensors.F32, Shape: []int{rows, columns},
			WriteData: func(w io.Writer) error {
				row := make([]byte, 0, 4*columns)
				for i := range rows {
					row = row[:0]
					for j := range columns {
						row = binary.LittleEndian.AppendUint32(row, math.Float32bits(at(i, j)))
					}
					if _, err := w.Write(row); err != nil {
						return err
					}
				}
				return nil
			},
		})
	}
	for _, m := range a.modules {
		left, right := a.left[m], a.right[m]
		add(m+".lora_A", len(right), len(right[0]), func(i, j int) float32 { return right[i][j] })
		add(m+".lora_B", len(left[0]), len(left), func(i, j int) float32 { return left[j][i] })
	}
	return items
}

func (a *adapter) write(ctx context.Context, dir string) error {
	text, err := json.MarshalIndent(&a.config, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, adapterConfig), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return atomicfile.Write(ctx, filepath.Join(dir, adapterWeights), func(w io.Writer) error {
		return safetensors.Write(w, a.tensors(), map[string]string{"format": "pt"})
	}, atomicfile.Options{})
}

// verify reads an adapter and compares it.
func (a *adapter) verify(dir string) error {
	text, err := os.ReadFile(filepath.Join(dir, adapterConfig))
	if err != nil {
		return bad("%w", err)
	}
	var config loraConfig
	if err := json.Unmarshal(text, &config); err != nil {
		return bad("%s: %w", filepath.Join(dir, adapterConfig), err)
	}
	config.Base = a.config.Base // a folder may have moved
	got, err := json.Marshal(&config)
	if err != nil {
		return err
	}
	if want, err := json.Marshal(&a.config); err != nil || !bytes.Equal(got, want) {
		return bad("%s is not what it should be", filepath.Join(dir, adapterConfig))
	}
	f, err := safetensors.Open(filepath.Join(dir, adapterWeights))
	if err != nil {
		return bad("%w", err)
	}
	defer f.Close()
	items := a.tensors()
	if len(f.Entries) != len(items) {
		return bad("%s has %d tensors, not %d", f.Path(), len(f.Entries), len(items))
	}
	for _, item := range items {
		var want bytes.Buffer
		if err := item.WriteData(&want); err != nil {
			return err
		}
		x, err := f.Tensor(item.Name)
		if err != nil || x.DType != item.DType || !slices.Equal(x.Shape, item.Shape) || !bytes.Equal(x.Data, want.Bytes()) {
			return bad("%s: tensor %q is not what it should be", f.Path(), item.Name)
		}
	}
	return nil
}
