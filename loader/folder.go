package loader

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/engram-go/engram/internal/safetensors"
)

// File names of a checkpoint.
const (
	configFile = "config.json"
	modelFile  = "model.safetensors"
	indexFile  = "model.safetensors.index.json"
)

// Limits on files that are read whole; real ones are a thousandth of that.
const (
	maxConfig = 16 << 20
	maxIndex  = 256 << 20
)

// sideFiles go with a checkpoint wherever it goes, if they are there: the tokenizer, and what tools keep beside it.
func sideFiles() []string {
	return []string{
		"generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
		"added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja",
		"LICENSE",
	}
}

// folder is where the files of a checkpoint are: on disk or in the program.
type folder interface {
	path(name string) string                 // for messages
	has(name string) bool                    // whether the file is there
	open(name string) (io.ReadCloser, error) // errors do not name the file
	tensors(name string) (*safetensors.File, error)
}

// dirFolder is a folder on disk.
type dirFolder string

func (d dirFolder) path(name string) string { return filepath.Join(string(d), name) }

func (d dirFolder) has(name string) bool {
	info, err := os.Stat(d.path(name))
	return err == nil && !info.IsDir()
}

func (d dirFolder) open(name string) (io.ReadCloser, error) {
	// A named pipe would block the opening itself, so its kind is asked first.
	info, err := os.Stat(d.path(name))
	if err == nil && !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	var file *os.File
	if err == nil {
		file, err = os.Open(d.path(name))
	}
	var p *fs.PathError
	if errors.As(err, &p) {
		err = p.Err
	}
	if err != nil {
		return nil, err
	}
	return file, nil
}

func (d dirFolder) tensors(name string) (*safetensors.File, error) {
	return safetensors.Open(d.path(name))
}

// memFolder is a folder in memory; its bytes are used in place.
type memFolder struct {
	name  string
	files map[string][]byte
}

func (m memFolder) path(name string) string { return m.name + "/" + name }

func (m memFolder) has(name string) bool {
	_, ok := m.files[name]
	return ok
}

func (m memFolder) open(name string) (io.ReadCloser, error) {
	data, ok := m.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

func (m memFolder) tensors(name string) (*safetensors.File, error) {
	data, ok := m.files[name]
	if !ok {
		return nil, fmt.Errorf("open %s: %w", m.path(name), fs.ErrNotExist)
	}
	return safetensors.New(m.path(name), data)
}

// readFile reads a whole file of at most limit bytes.
func readFile(f folder, name string, limit int64) ([]byte, error) {
	r, err := f.open(name)
	if err != nil {
		return nil, bad("load %s: %w", f.path(name), err)
	}
	defer func() { _ = r.Close() }()
	data, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, bad("load %s: %w", f.path(name), err)
	}
	if int64(len(data)) > limit {
		return nil, bad("load %s: longer than %d bytes", f.path(name), limit)
	}
	return data, nil
}

// checkShardName refuses names that could lead out of the folder on any system. A plain name may still be a symbolic
// link elsewhere: that is how the hub's cache is built, and it is the owner of the folder who made it.
func checkShardName(name string) error {
	switch {
	case !strings.HasSuffix(name, ".safetensors"):
		return fmt.Errorf("shard %q is not a .safetensors file", name)
	case strings.ContainsAny(name, "/\\:\x00"), !filepath.IsLocal(name), strings.HasPrefix(name, "."):
		return fmt.Errorf("shard name %q leaves the folder", name)
	}
	return nil
}

// weightFiles decides which files hold the weights, as transformers does: the single file wins over the index.
func weightFiles(f folder) (shards []string, placed map[string]string, err error) {
	if f.has(modelFile) {
		return []string{modelFile}, nil, nil
	}
	if !f.has(indexFile) {
		return nil, nil, noWeights(f)
	}
	if placed, err = readIndex(f); err != nil {
		return nil, nil, err
	}
	for _, shard := range placed {
		shards = append(shards, shard)
	}
	slices.Sort(shards)
	return slices.Compact(shards), placed, nil
}

func noWeights(f folder) error {
	for _, name := range []string{"pytorch_model.bin", "pytorch_model.bin.index.json"} {
		if f.has(name) {
			return pickled(f.path(name))
		}
	}
	return bad("load %s: neither %s nor %s is there", f.path(""), modelFile, indexFile)
}

func pickled(path string) error {
	return &failure{
		err:  fmt.Errorf("load %s: PyTorch's pickle files are not read", path),
		kind: ErrCheckpoint,
		hint: "convert it once in Python: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEWDIR)",
	}
}
