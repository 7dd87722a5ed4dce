package loader

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// Info is what a checkpoint says about itself without its weights being read.
type Info struct {
	Name        string              `json:"name"`
	Path        string              `json:"path"`
	Family      string              `json:"family"`
	Fingerprint string              `json:"fingerprint"`
	DType       string              `json:"dtype"`      // the type of most parameters
	Parameters  int64               `json:"parameters"` // a tied weight counts once
	Bytes       int64               `json:"bytes"`      // of all weight files
	Tied        bool                `json:"tied"`
	Config      *transformer.Config `json:"config"`
	Files       []FileInfo          `json:"files"`
	Tensors     []TensorInfo        `json:"tensors"` // in the order of the files
	Warnings    []string            `json:"warnings,omitempty"`
}

// FileInfo is one file with weights.
type FileInfo struct {
	Name    string `json:"name"`
	Bytes   int64  `json:"bytes"`
	Tensors int    `json:"tensors"`
}

// TensorInfo is one tensor of a checkpoint.
type TensorInfo struct {
	Name  string `json:"name"`
	DType string `json:"dtype"`
	Shape []int  `json:"shape"`
	Bytes int64  `json:"bytes"`
	File  string `json:"file"`
	// Use lists the slots the tensor fills, as "slot" or "slot@layer"; empty for a tensor that is not used.
	Use []string `json:"use"`
}

// Inspect describes a checkpoint from its headers, the sample for its fingerprint and its tokenizer; it needs no
// backend. Names are those of OpenCheckpoint.
func Inspect(ctx context.Context, name string, opts Options) (*Info, error) {
	c, err := OpenCheckpoint(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	info, err := c.Info(ctx, opts)
	if closed := c.Close(); err == nil {
		err = closed
	}
	return info, err
}

// Info describes the checkpoint; of opts only FullHash matters.
func (c *Checkpoint) Info(ctx context.Context, opts Options) (*Info, error) {
	print, err := c.Fingerprint(ctx, FingerprintOptions{Full: opts.FullHash})
	if err != nil {
		return nil, err
	}
	info := &Info{
		Name: c.Name, Path: c.folder.path(""), Family: c.Config.Family, Fingerprint: print, DType: string(c.DType()),
		Tied: c.Config.Tied, Config: c.Config,
	}
	uses := c.uses()
	for _, file := range c.files {
		info.Files = append(info.Files, FileInfo{file.Base(), file.Size(), len(file.Entries)})
		info.Bytes += file.Size()
		for i := range file.Entries {
			e := &file.Entries[i]
			use := uses[e.Name]
			if len(use) > 0 {
				info.Parameters += elements(e)
			}
			info.Tensors = append(info.Tensors, TensorInfo{
				e.Name, string(e.DType), append([]int{}, e.Shape...), e.Bytes(), file.Base(), append([]string{}, use...),
			})
		}
	}
	info.Warnings = c.warnings()
	return info, nil
}

func (c *Checkpoint) warnings() []string {
	var out []string
	for _, name := range slices.Sorted(slices.Values(c.unused)) {
		out = append(out, fmt.Sprintf("tensor %q is not used", name))
	}
	switch t, err := c.Tokenizer(); {
	case err != nil:
		out = append(out, err.Error())
	case t == nil:
		out = append(out, "there is no tokenizer: prompts can be given as ids only")
	case t.VocabSize() < c.Config.Vocab:
		out = append(out, fmt.Sprintf("%d rows of the embedding have no token: the tokenizer ends at id %d",
			c.Config.Vocab-t.VocabSize(), t.VocabSize()-1))
	}
	return out
}

// uses lists the slots that each tensor fills, in the order of layers.
func (c *Checkpoint) uses() map[string][]string {
	uses := map[string][]string{}
	for _, b := range parts(c.Bindings) {
		use := string(b.place.Slot)
		if b.place.Layer >= 0 {
			use = fmt.Sprintf("%s@%d", use, b.place.Layer)
		}
		if list := uses[b.part.Tensor]; !slices.Contains(list, use) {
			uses[b.part.Tensor] = append(list, use)
		}
	}
	return uses
}

// DType is the type of most parameters, as the files spell it.
func (c *Checkpoint) DType() safetensors.DType {
	count := map[safetensors.DType]int64{}
	for _, name := range c.tensorNames() {
		e := c.entry(name)
		count[e.DType] += elements(e)
	}
	most := safetensors.F32
	for _, d := range []safetensors.DType{safetensors.F32, safetensors.BF16, safetensors.F16} {
		if cmp.Compare(count[d], count[most]) > 0 {
			most = d
		}
	}
	return most
}

func elements(e *safetensors.Entry) int64 { return e.Bytes() / int64(e.DType.Size()) }
