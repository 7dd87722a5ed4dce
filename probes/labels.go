package probes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/transformer"
)

// Labels are what a user calls memories, kept in a file of their own beside the models: names belong to a model by its
// fingerprint.
type Labels struct {
	path   string
	models map[string]modelLabels // by fingerprint
}

type modelLabels struct {
	Name   string            `json:"name"` // of the model when it was labelled last
	Labels map[string]string `json:"labels"`
}

type labelsFile struct {
	Schema  string                 `json:"schema"`
	Version int                    `json:"schema_version"`
	Models  map[string]modelLabels `json:"models"`
}

const labelsSchema = "engram.labels"

// maxLabel is the most bytes of a label.
const maxLabel = 1000

// ErrLabels is wrapped by errors about files that hold no labels, and about texts that are none.
var ErrLabels = errors.New("no labels")

// OpenLabels reads a file of labels; one that is not there has none. Errors about what it holds wrap ErrLabels.
func OpenLabels(path string) (*Labels, error) {
	l := &Labels{path: path, models: map[string]modelLabels{}}
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	var f labelsFile
	if err := json.Unmarshal(raw, &f); err != nil {
		return nil, fmt.Errorf("%w in %s: %w", ErrLabels, path, err)
	}
	if f.Schema != labelsSchema || f.Version != 1 {
		return nil, fmt.Errorf("%w in %s: schema %q, version %d", ErrLabels, path, f.Schema, f.Version)
	}
	for fingerprint, m := range f.Models {
		for name := range m.Labels {
			if _, err := transformer.ParseNeuron(name); err != nil {
				return nil, fmt.Errorf("%w in %s: %w", ErrLabels, path, err)
			}
		}
		l.models[fingerprint] = m
	}
	return l, nil
}

// Of is the label of a memory of a model, "" without one; also of no labels.
func (l *Labels) Of(m *transformer.Model, n transformer.Neuron) string {
	if l == nil {
		return ""
	}
	return l.models[m.Fingerprint].Labels[n.String()]
}

// All are the labels of a model, by the memory's name.
func (l *Labels) All(m *transformer.Model) map[string]string { return l.models[m.Fingerprint].Labels }

// Set labels a memory of a model; "" takes the label away. Errors wrap ErrNeuron or ErrLabels.
func (l *Labels) Set(m *transformer.Model, n transformer.Neuron, label string) error {
	if err := checkNeuron(m.Config, n); err != nil {
		return err
	}
	if label = strings.TrimSpace(label); len(label) > maxLabel || strings.ContainsAny(label, "\n\r") {
		return fmt.Errorf("%w: a label is one line of at most %d bytes", ErrLabels, maxLabel)
	}
	of := l.models[m.Fingerprint]
	of.Name = m.Name
	if of.Labels == nil {
		of.Labels = map[string]string{}
	}
	if label == "" {
		delete(of.Labels, n.String())
	} else {
		of.Labels[n.String()] = label
	}
	if l.models[m.Fingerprint] = of; len(of.Labels) == 0 {
		delete(l.models, m.Fingerprint)
	}
	return nil
}

// Save writes the file, which is there whole or as it was.
func (l *Labels) Save(ctx context.Context) error {
	fill := func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(labelsFile{labelsSchema, 1, l.models})
	}
	return atomicfile.Write(ctx, l.path, fill, atomicfile.Options{Replace: true})
}
