package loader

import (
	"errors"
	"fmt"

	"github.com/gomlx/compute/dtypes"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// Checkpoint is an opened checkpoint: its configuration, its files with their headers read, and which tensor fills
// which slot. It is a transformer.Source. Opening reads headers only.
type Checkpoint struct {
	Name     string // as it was asked for
	Config   *transformer.Config
	Bindings transformer.Bindings

	rawConfig []byte
	folder    folder
	files     []*safetensors.File
	where     map[string]*safetensors.File
	canonical map[string]string // name in the files → the family's usual name
	copies    map[string]string // second copy of a tied weight → the weight that is used
	unused    []string          // tensors that no slot uses and that are known not to matter
}

// translator has the contract of translate.
type translator func(raw []byte, has func(string) bool) (*transformer.Config, transformer.Bindings, error)

// openFolder opens the checkpoint in a folder and checks that configuration and tensors agree. Nothing stays open after
// an error.
func openFolder(name string, f folder, translate translator) (c *Checkpoint, err error) {
	c = &Checkpoint{Name: name, folder: f, where: map[string]*safetensors.File{}}
	defer func() {
		if err != nil {
			_ = c.Close()
			c = nil
		}
	}()
	if c.rawConfig, err = readFile(f, configFile, maxConfig); err != nil {
		return c, err
	}
	_, usual, err := translate(c.rawConfig, nil)
	if err != nil {
		return c, inConfig(f, err)
	}
	if err = c.openWeights(); err != nil {
		return c, err
	}
	if c.Config, c.Bindings, err = translate(c.rawConfig, c.has); err != nil {
		return c, inConfig(f, err)
	}
	c.canonical = canonicalNames(usual, c.Bindings)
	return c, c.bind()
}

// canonicalNames maps the names that a checkpoint uses to the usual ones of its family.
func canonicalNames(usual, used transformer.Bindings) map[string]string {
	names := map[string]string{}
	for place, list := range used {
		for i := range list {
			if i < len(usual[place]) {
				names[list[i].Tensor] = usual[place][i].Tensor
			}
		}
	}
	return names
}

func inConfig(f folder, err error) error {
	return &failure{
		err: fmt.Errorf("load %s: %w", f.path(configFile), err), kind: ErrCheckpoint, hint: Hint(err),
	}
}

func (c *Checkpoint) openWeights() error {
	shards, placed, err := weightFiles(c.folder)
	if err != nil {
		return err
	}
	for _, shard := range shards {
		file, err := c.folder.tensors(shard)
		if err != nil {
			return bad("load: %w", err)
		}
		c.files = append(c.files, file)
		for i := range file.Entries {
			c.where[file.Entries[i].Name] = file
		}
	}
	if placed == nil {
		return nil
	}
	return checkIndex(c.folder, placed, c.files)
}

// Close ends the mappings. No tensor of the checkpoint may be used afterwards.
func (c *Checkpoint) Close() error {
	var errs []error
	for _, file := range c.files {
		errs = append(errs, file.Close())
	}
	c.files, c.where = nil, nil
	return errors.Join(errs...)
}

// Tensor implements transformer.Source for every tensor of the files that has a floating-point type it knows.
func (c *Checkpoint) Tensor(name string) (transformer.RawTensor, error) {
	file, ok := c.where[name]
	if !ok {
		return transformer.RawTensor{}, bad("load %s: tensor %q is missing", c.folder.path(""), name)
	}
	t, err := file.Tensor(name)
	if err != nil {
		return transformer.RawTensor{}, bad("load: %w", err)
	}
	dtype, ok := weightType(t.DType)
	if !ok {
		return transformer.RawTensor{}, bad("load %s: tensor %q: dtype %s is not supported; want F32, F16 or BF16",
			file.Path(), name, t.DType)
	}
	return transformer.RawTensor{DType: dtype, Shape: t.Shape, Data: t.Data}, nil
}

// Release implements transformer.Source.
func (c *Checkpoint) Release(name string) {
	if file, ok := c.where[name]; ok {
		file.Release(name)
	}
}

func weightType(d safetensors.DType) (dtypes.DType, bool) {
	switch d {
	case safetensors.F32:
		return dtypes.Float32, true
	case safetensors.F16:
		return dtypes.Float16, true
	case safetensors.BF16:
		return dtypes.BFloat16, true
	}
	return dtypes.InvalidDType, false
}

// entry is the header entry of a tensor that is there.
func (c *Checkpoint) entry(name string) *safetensors.Entry {
	e, _ := c.where[name].Lookup(name)
	return e
}

func (c *Checkpoint) has(name string) bool {
	_, ok := c.where[name]
	return ok
}
