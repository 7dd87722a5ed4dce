package training

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"path/filepath"
	"slices"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// CheckpointFile is the file in a training folder from which a run goes on.
const CheckpointFile = "checkpoint.safetensors"

// ErrOtherRun is returned when a folder holds the checkpoint of a run with other options, tokenizer or documents.
var ErrOtherRun = errors.New("the folder holds the checkpoint of another run")

// progressState is what a checkpoint holds beside tensors.
type progressState struct {
	Options Options `json:"options"`
	Data    string  `json:"data"` // hash of what is trained on: documents and tokenizer
	Step    int     `json:"step"` // steps done
	Place   place   `json:"place"`
	History []Point `json:"history"`
}

var stateNames = [3]string{"weight", "first_moment", "second_moment"}

func tensorName(kind int, p transformer.Param) string {
	return fmt.Sprintf("%s.%d.%s", stateNames[kind], p.Layer, p.Name)
}

// saveCheckpoint replaces the folder's checkpoint; an interruption leaves the one before.
func saveCheckpoint(
	ctx context.Context, dir string, params []transformer.Param, tensors [3][][]float32, s *progressState,
) error {
	text, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	var items []safetensors.Item
	for k := range tensors {
		for i, p := range params {
			items = append(items, floatItem(tensorName(k, p), p.Shape, tensors[k][i]))
		}
	}
	err = atomicfile.Write(ctx, filepath.Join(dir, CheckpointFile), func(w io.Writer) error {
		return safetensors.Write(w, items, map[string]string{"state": string(text)})
	}, atomicfile.Options{Replace: true})
	if err != nil {
		return fmt.Errorf("save checkpoint: %w", err)
	}
	return nil
}

// floatItem is a float32 tensor as something to write.
func floatItem(name string, shape []int, data []float32) safetensors.Item {
	return safetensors.Item{Name: name, DType: safetensors.F32, Shape: shape, WriteData: func(w io.Writer) error {
		b := make([]byte, 4*len(data))
		for i, v := range data {
			binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
		}
		_, err := w.Write(b)
		return err
	}}
}

// loadCheckpoint reads the folder's checkpoint; found is false where there is none.
func loadCheckpoint(
	dir string, params []transformer.Param, want *progressState,
) (tensors [3][][]float32, s *progressState, found bool, err error) {
	path := filepath.Join(dir, CheckpointFile)
	f, err := safetensors.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return tensors, nil, false, nil
	}
	if err != nil {
		return tensors, nil, false, fmt.Errorf("load checkpoint: %w", err)
	}
	defer f.Close()
	s = &progressState{}
	if err := json.Unmarshal([]byte(f.Metadata["state"]), s); err != nil {
		return tensors, nil, false, fmt.Errorf("load checkpoint %s: state: %w", path, err)
	}
	if s.Options != want.Options || s.Data != want.Data {
		return tensors, nil, false, fmt.Errorf("load checkpoint %s: %w", path, ErrOtherRun)
	}
	for k := range tensors {
		for _, p := range params {
			t, err := f.Tensor(tensorName(k, p))
			if err != nil {
				return tensors, nil, false, fmt.Errorf("load checkpoint: %w", err)
			}
			if t.DType != safetensors.F32 || !slices.Equal(t.Shape, p.Shape) {
				return tensors, nil, false, fmt.Errorf("load checkpoint %s: tensor %q: want F32 %v, got %s %v",
					path, t.Name, p.Shape, t.DType, t.Shape)
			}
			tensors[k] = append(tensors[k], floats(t.Data))
		}
	}
	return tensors, s, true, nil
}

func floats(b []byte) []float32 {
	out := make([]float32, len(b)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
	return out
}
