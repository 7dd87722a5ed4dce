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

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// indexSchema names the format of an index file in its metadata.
const indexSchema = "engram.index"

// ErrIndex is wrapped by errors about files that are no index.
var ErrIndex = errors.New("not an index of memories")

// ErrOtherModel is wrapped when a file belongs to another model.
var ErrOtherModel = errors.New("made from another model")

// arrays are an index's arrays by their names in the file; ids are int32, scores float32.
func (x *Index) arrays() (ids map[string]*[]int32, scores map[string]*[]float32) {
	return map[string]*[]int32{"top_ids": &x.TopIDs, "bottom_ids": &x.BottomIDs},
		map[string]*[]float32{
			"top_scores": &x.TopScores, "bottom_scores": &x.BottomScores, "value_norm": &x.ValueNorm, "max_prob": &x.MaxProb,
		}
}

// shape is the shape of an array of the file.
func (x *Index) shape(name string) []int {
	if name == "value_norm" || name == "max_prob" {
		return []int{x.Layers, x.Memories}
	}
	return []int{x.Layers, x.Memories, x.Top}
}

// Save writes the index as a safetensors file: top_ids, bottom_ids int32 and top_scores, bottom_scores float32 [L,D,k],
// value_norm and, if it is there, max_prob float32 [L,D]. The file is there whole or not at all; an existing one is an
// error that wraps fs.ErrExist unless replace is set.
func (x *Index) Save(ctx context.Context, path string, replace bool, meta map[string]string) error {
	var items []safetensors.Item
	ids, scores := x.arrays()
	for _, name := range []string{"top_ids", "bottom_ids"} {
		items = append(items, safetensors.Item{
			Name: name, DType: safetensors.I32, Shape: x.shape(name),
			WriteData: func(w io.Writer) error { return writeIDs(w, *ids[name]) },
		})
	}
	for _, name := range []string{"top_scores", "bottom_scores", "value_norm", "max_prob"} {
		if *scores[name] == nil {
			continue
		}
		items = append(items, safetensors.Item{
			Name: name, DType: safetensors.F32, Shape: x.shape(name),
			WriteData: func(w io.Writer) error { return writeFloats(w, *scores[name]) },
		})
	}
	all := maps.Clone(meta)
	if all == nil {
		all = map[string]string{}
	}
	maps.Copy(all, map[string]string{
		"schema": indexSchema, "schema_version": "1", "model": x.Model, "fingerprint": x.Fingerprint,
		"norm": string(x.Norm), "top": strconv.Itoa(x.Top), "vocab": strconv.Itoa(x.Vocab),
	})
	fill := func(w io.Writer) error { return safetensors.Write(w, items, all) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}

func writeIDs(w io.Writer, ids []int32) error {
	const chunk = 1 << 16
	buffer := make([]byte, 0, 4*min(chunk, len(ids)))
	for from := 0; from < len(ids); from += chunk {
		buffer = buffer[:0]
		for _, id := range ids[from:min(from+chunk, len(ids))] {
			buffer = binary.LittleEndian.AppendUint32(buffer, uint32(id))
		}
		if _, err := w.Write(buffer); err != nil {
			return err
		}
	}
	return nil
}

// ReadIndex reads an index file. Errors about what it holds wrap ErrIndex or safetensors.ErrFormat.
func ReadIndex(path string) (*Index, error) {
	f, err := safetensors.Open(path)
	if err != nil {
		return nil, err
	}
	x, err := readIndex(f)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return nil, fmt.Errorf("index %s: %w", path, err)
	}
	return x, nil
}

func readIndex(f *safetensors.File) (*Index, error) {
	meta := f.Metadata
	if meta["schema"] != indexSchema || meta["schema_version"] != "1" {
		return nil, fmt.Errorf("%w: schema %q, version %q", ErrIndex, meta["schema"], meta["schema_version"])
	}
	x := &Index{Norm: Norm(meta["norm"]), Model: meta["model"], Fingerprint: meta["fingerprint"]}
	if _, err := ParseNorm(string(x.Norm)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIndex, err)
	}
	var err error
	if x.Vocab, err = strconv.Atoi(meta["vocab"]); err != nil || x.Vocab < 1 {
		return nil, fmt.Errorf("%w: vocab %q", ErrIndex, meta["vocab"])
	}
	first, ok := f.Lookup("top_ids")
	if !ok || len(first.Shape) != 3 {
		return nil, fmt.Errorf("%w: no top_ids of three axes", ErrIndex)
	}
	x.Layers, x.Memories, x.Top = first.Shape[0], first.Shape[1], first.Shape[2]
	ids, scores := x.arrays()
	for name, to := range ids {
		data, err := indexTensor(f, name, safetensors.I32, x.shape(name))
		if err != nil {
			return nil, err
		}
		if *to, err = decodeIDs(data, x.Vocab); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrIndex, name, err)
		}
	}
	for name, to := range scores {
		if _, there := f.Lookup(name); !there && name == "max_prob" {
			continue
		}
		data, err := indexTensor(f, name, safetensors.F32, x.shape(name))
		if err != nil {
			return nil, err
		}
		*to = decodeFloats(data)
	}
	return x, nil
}

// indexTensor gives the bytes of a tensor that must have a type and a shape.
func indexTensor(f *safetensors.File, name string, dtype safetensors.DType, shape []int) ([]byte, error) {
	t, err := f.Tensor(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrIndex, err)
	}
	if t.DType != dtype || fmt.Sprint(t.Shape) != fmt.Sprint(shape) {
		return nil, fmt.Errorf("%w: %s is %s%v, not %s%v", ErrIndex, name, t.DType, t.Shape, dtype, shape)
	}
	return t.Data, nil
}

func decodeIDs(data []byte, vocab int) ([]int32, error) {
	out := make([]int32, len(data)/4)
	for i := range out {
		out[i] = int32(binary.LittleEndian.Uint32(data[4*i:]))
		if out[i] < -1 || int(out[i]) >= vocab {
			return nil, fmt.Errorf("id %d of a vocabulary of %d", out[i], vocab)
		}
	}
	return out, nil
}

func decodeFloats(data []byte) []float32 {
	out := make([]float32, len(data)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(data[4*i:]))
	}
	return out
}

// CheckModel refuses an index that was made from another model; the error wraps ErrOtherModel.
func (x *Index) CheckModel(name, fingerprint string) error {
	if x.Fingerprint != fingerprint {
		return fmt.Errorf("%w: the index is of %s (fingerprint %.12s…), the model is %s (%.12s…)",
			ErrOtherModel, x.Model, x.Fingerprint, name, fingerprint)
	}
	return nil
}

// record is what of a layer is kept until the file is written: the layer's piece of every array, in a fixed order.
func (x *Index) record(layer int) []byte {
	var b []byte
	ids, scores := x.pieces(layer)
	for _, piece := range ids {
		for _, id := range piece {
			b = binary.LittleEndian.AppendUint32(b, uint32(id))
		}
	}
	for _, piece := range scores {
		for _, v := range piece {
			b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
		}
	}
	return b
}

// pieces are a layer's pieces of every array.
func (x *Index) pieces(layer int) (ids [][]int32, scores [][]float32) {
	n := x.Memories
	wide, narrow := n*x.Top, n
	ids = [][]int32{x.TopIDs[layer*wide : (layer+1)*wide], x.BottomIDs[layer*wide : (layer+1)*wide]}
	scores = [][]float32{
		x.TopScores[layer*wide : (layer+1)*wide], x.BottomScores[layer*wide : (layer+1)*wide],
		x.ValueNorm[layer*narrow : (layer+1)*narrow],
	}
	if x.MaxProb != nil {
		scores = append(scores, x.MaxProb[layer*narrow:(layer+1)*narrow])
	}
	return ids, scores
}

// restore reads back what record gave.
func (x *Index) restore(layer int, record []byte) error {
	ids, scores := x.pieces(layer)
	size := 0
	for _, piece := range ids {
		size += 4 * len(piece)
	}
	for _, piece := range scores {
		size += 4 * len(piece)
	}
	if len(record) != size {
		return fmt.Errorf("%w: layer %d has %d bytes, not %d", ErrPart, layer, len(record), size)
	}
	for _, piece := range ids {
		got, err := decodeIDs(record[:4*len(piece)], x.Vocab)
		if err != nil {
			return fmt.Errorf("%w: layer %d: %w", ErrPart, layer, err)
		}
		record = record[4*copy(piece, got):]
	}
	for _, piece := range scores {
		record = record[4*copy(piece, decodeFloats(record[:4*len(piece)])):]
	}
	return nil
}

// Tokens are one end of a memory's projection with the tokens' texts, at most n of them.
func (x *Index) Tokens(t transformer.Tokenizer, n transformer.Neuron, bottom bool, limit int) []VectorToken {
	ids, scores := x.TopIDs, x.TopScores
	if bottom {
		ids, scores = x.BottomIDs, x.BottomScores
	}
	at := (n.Layer*x.Memories + n.Index) * x.Top
	out := []VectorToken{}
	for i := at; i < at+min(limit, x.Top); i++ {
		if ids[i] >= 0 {
			out = append(out, VectorToken{int(ids[i]), TokenText(t, int(ids[i])), float64(scores[i])})
		}
	}
	return out
}
