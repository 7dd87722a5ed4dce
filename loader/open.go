package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/loader/embedded"
	"github.com/engram-go/engram/transformer"
)

// Options say how to find and open a model. The zero value is right for most uses.
type Options struct {
	// Backend runs the model; nil lets package compute choose among those that the program imports.
	Backend compute.Backend
	// Check reads all weights and refuses NaN and infinite ones.
	Check bool
	// Stream releases each layer's weights after use, for models larger than memory.
	Stream bool
	// Share is an open model of the same architecture whose compiled programs are used; see transformer.Options.
	Share *transformer.Model
	// FullHash makes Model.Fingerprint the hash of every byte instead of a sample.
	FullHash bool
	// Refresh asks the hub whether a branch has moved, although the model is in the cache.
	Refresh bool
	// Progress is told about downloads; it may be nil. It is called from another goroutine, one call at a time.
	Progress func(file string, done, total int64)
}

// Open opens a model by name and checks it; see OpenCheckpoint for names. Close the model to close its files.
func Open(ctx context.Context, name string, opts Options) (m *transformer.Model, err error) {
	c, err := OpenCheckpoint(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	tokenizer, err := c.Tokenizer()
	if err != nil {
		return nil, err
	}
	print, err := c.Fingerprint(ctx, FingerprintOptions{Full: opts.FullHash})
	if err != nil {
		return nil, err
	}
	be := opts.Backend
	if be == nil {
		if be, err = compute.New(); err != nil {
			return nil, fmt.Errorf("load %s: %w", name, err)
		}
	}
	how := transformer.Options{Stream: opts.Stream, Share: opts.Share}
	m, err = transformer.New(be, c.Config, c.Bindings, c, how, c.Close)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", name, err)
	}
	m.Name, m.Fingerprint, m.DType, m.Tokenizer = c.Name, print, string(c.DType()), tokenizer
	return m, nil
}

// OpenCheckpoint finds a checkpoint, reads its headers and checks that configuration and tensors agree. A name is, in
// this order: "" or the name of an embedded checkpoint; a folder; owner/model[@revision] on the Hugging Face hub, which
// is downloaded unless the cache has it. The variables HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE
// mean what they mean to Python's huggingface_hub.
func OpenCheckpoint(ctx context.Context, name string, opts Options) (*Checkpoint, error) {
	if name == "" {
		name = embedded.Default
	}
	f, err := resolve(ctx, name, opts)
	if err != nil {
		return nil, err
	}
	c, err := openFolder(name, f, translate)
	if err != nil {
		return nil, err
	}
	if opts.Check {
		if err := c.Check(ctx); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

func resolve(ctx context.Context, name string, opts Options) (folder, error) {
	if files := embedded.Files(name); files != nil {
		return memFolder{name, files}, nil
	}
	switch info, err := os.Stat(name); {
	case err == nil && info.IsDir():
		return dirFolder(name), nil
	case err == nil:
		return nil, &failure{
			err: fmt.Errorf("load %s: not a folder", name), kind: ErrNoModel, hint: "name the folder: " + filepath.Dir(name),
		}
	case errors.Is(err, os.ErrPermission):
		return nil, &failure{err: fmt.Errorf("load: %w", err), kind: ErrNoModel, hint: "ask for permission to read it"}
	}
	remote, ok := parseHubName(name)
	if !ok {
		return nil, unknownName(name)
	}
	h, err := hubFromEnvironment()
	if err != nil {
		return nil, err
	}
	h.progress = opts.Progress
	dir, err := h.fetch(ctx, remote, opts.Refresh)
	if err != nil {
		return nil, err
	}
	return dirFolder(dir), nil
}

func unknownName(name string) error {
	return &failure{
		err:  fmt.Errorf("load %s: no such folder, and not a name on the hub", name),
		kind: ErrNoModel,
		hint: fmt.Sprintf("a model is a folder with %s, owner/name[@revision] on the hub, or one of the embedded: %s",
			configFile, strings.Join(embedded.Names(), ", ")),
	}
}
