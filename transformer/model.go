package transformer

import (
	"errors"
	"fmt"
	"reflect"
	"sync"

	"github.com/gomlx/compute"
)

// Model is a transformer on a backend. Weights go to the device when they are first needed. A model is safe for use by
// several goroutines; calls on one device queue behind each other.
type Model struct {
	Config      *Config
	Name        string    // what the user called it
	Fingerprint string    // of configuration and weights, see package loader
	DType       string    // storage type of the weights
	Tokenizer   Tokenizer // nil if the checkpoint has none

	backend  compute.Backend
	weights  *weightStore
	programs *programs
	closer   func() error
	closed   bool

	mu sync.Mutex // one run at a time: the device is one, and memory is planned for one
}

// Options say how a model uses its device.
type Options struct {
	// Stream releases each layer's weights after use, so that a model larger than memory runs at the disk's speed.
	Stream bool
	// Share takes the compiled programs of an open model with an equal configuration on the same backend, so that a
	// second checkpoint of the architecture compiles nothing.
	Share *Model
}

// New makes a model from a translated checkpoint. Close it to release the device's memory; closer, which may be nil,
// is called then too.
func New(
	be compute.Backend, cfg *Config, bind Bindings, src Source, opts Options, closer func() error,
) (*Model, error) {
	if be == nil {
		return nil, errors.New("no backend")
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Tied && len(bind[Place{SlotUnembed, -1}]) == 0 {
		shared := Bindings{}
		for k, v := range bind {
			shared[k] = v
		}
		shared[Place{SlotUnembed, -1}] = bind[Place{SlotEmbed, -1}]
		bind = shared
	}
	w, err := newWeightStore(be, cfg, bind, src, opts.Stream)
	if err != nil {
		return nil, err
	}
	progs := &programs{}
	if s := opts.Share; s != nil {
		if s.backend != be || !reflect.DeepEqual(s.Config, cfg) {
			return nil, fmt.Errorf("%w: models with different configurations or backends share no programs", ErrConfig)
		}
		progs = s.programs
	}
	return &Model{Config: cfg, backend: be, weights: w, programs: progs.join(), closer: closer}, nil
}

// Backend is the compute backend of the model.
func (m *Model) Backend() compute.Backend { return m.backend }

// Close releases device memory, compiled programs and the checkpoint.
func (m *Model) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil
	}
	m.closed = true
	m.weights.close()
	m.programs.leave()
	if m.closer == nil {
		return nil
	}
	if err := m.closer(); err != nil {
		return fmt.Errorf("close %s: %w", m.Name, err)
	}
	return nil
}

// Sentinel errors of runs.
var (
	ErrEmptyPrompt = errors.New("empty prompt")
	ErrTokenRange  = errors.New("token id out of range")
	ErrTooLong     = errors.New("prompt longer than the context")
	ErrClosed      = errors.New("the model is closed")
)

// checkIDs refuses inputs the model cannot take.
func (c *Config) checkIDs(ids [][]int) error {
	if len(ids) == 0 {
		return ErrEmptyPrompt
	}
	for r, row := range ids {
		if len(row) == 0 {
			return fmt.Errorf("row %d: %w", r, ErrEmptyPrompt)
		}
		if len(row) > c.Context {
			return fmt.Errorf("row %d: %w: %d tokens, the context has %d", r, ErrTooLong, len(row), c.Context)
		}
		for t, id := range row {
			if id < 0 || id >= c.Vocab {
				return fmt.Errorf("row %d, position %d: %w: %d, the vocabulary has %d", r, t, ErrTokenRange, id, c.Vocab)
			}
		}
	}
	return nil
}
