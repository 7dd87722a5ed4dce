package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// The batches of key statistics where no text is at hand.
const (
	keyRows    = 16
	keyTokens  = 128
	keyBatches = 4
)

// facts is what traces and edits are made of: the prompts, edits and contexts beside a checkpoint that knows facts.
type facts struct {
	dir   string
	trace struct {
		Noise   float64 `json:"noise"`
		Samples int     `json:"samples"`
		Facts   []struct {
			Prompt  string `json:"prompt"`
			Subject string `json:"subject"`
		} `json:"facts"`
	}
	rome struct {
		Contexts []string `json:"contexts"`
		Edits    []struct {
			Prompt  string  `json:"prompt"`
			Subject string  `json:"subject"`
			Target  string  `json:"target_new"`
			Clamp   float64 `json:"clamp_norm_factor"`
		} `json:"edits"`
	}
	evaluations int // of the last edit
}

func readFacts(dir string) (*facts, error) {
	f := &facts{dir: dir}
	for name, into := range map[string]any{"trace.json": &f.trace, "rome.json": &f.rome} {
		data, err := os.ReadFile(filepath.Join(dir, "reference", name))
		if err != nil {
			return nil, err
		}
		if err := json.Unmarshal(data, into); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return f, nil
}

// shapeOfEdits is what is compared on a checkpoint: which facts are traced and edited, and how much faster is enough.
type shapeOfEdits struct {
	name           string
	layer, window  int
	facts, edits   []int
	hidden, others float64
	edit           float64
}

// editingFigures compares traces, ROME's edits and key statistics with the ROME authors' code on a checkpoint that
// knows facts, and on a random one of GPT-2 small's shape that is given the same prompts. Both sides make the same
// number of evaluations in an edit, or it fails: the ratio of whole edits is that per evaluation. Only jobs whose name
// contains the words are run.
func editingFigures(be compute.Backend, dir, words string, o *options) error {
	if o.rome == "" {
		fmt.Println("editing: left out, because there is nothing to compare with; -rome names a checkout of kmeng01/rome")
		return nil
	}
	f, err := readFacts(o.facts)
	if err != nil {
		return fmt.Errorf("-facts names a checkpoint with facts: %w", err)
	}
	if err := makeCheckpoint(dir, small); err != nil {
		return err
	}
	known := shapeOfEdits{"facts", 0, 4, []int{0, 1, 2}, []int{0, 1, 2}, 5, 3, 2.5}
	if err := editingOn(be, o.facts, f, known, words, o); err != nil {
		return err
	}
	random := shapeOfEdits{"GPT-2 small", small.layers / 3, 10, []int{2}, []int{0}, 6, 3.5, 4}
	return editingOn(be, dir, f, random, words, o)
}

// editingOn compares on one checkpoint.
func editingOn(be compute.Backend, dir string, f *facts, s shapeOfEdits, words string, o *options) (err error) {
	ctx := context.Background()
	m, err := loader.Open(ctx, dir, loader.Options{Backend: be})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	if m.Tokenizer == nil {
		owner, err := loader.Open(ctx, f.dir, loader.Options{Backend: be})
		if err != nil {
			return err
		}
		defer owner.Close()
		m.Tokenizer = owner.Tokenizer
	}
	p, err := startPeer("rome.py", o.threads, o.rome, dir, f.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	list, err := f.jobs(s, m)
	if err != nil {
		return err
	}
	for _, j := range list {
		if !strings.Contains(j.name, words) {
			continue
		}
		j.name = s.name + ": " + j.name
		if err := compare(m, p, j, o.rounds); err != nil {
			return fmt.Errorf("%s: %w", j.name, err)
		}
		if !strings.HasPrefix(j.peer, "edit") {
			continue
		}
		if n, err := p.time("evaluations"); err != nil || int(n) != f.evaluations {
			return errors.Join(err, fmt.Errorf("%s: %d evaluations, the peer makes %g", j.name, f.evaluations, n))
		}
	}
	return nil
}

// jobs are the comparisons on a checkpoint.
func (f *facts) jobs(s shapeOfEdits, m *transformer.Model) ([]job, error) {
	var list []job
	for _, kind := range []editing.TraceKind{editing.TraceHidden, editing.TraceMLP, editing.TraceAttn} {
		bound := s.others
		if kind == editing.TraceHidden {
			bound = s.hidden
		}
		list = append(list, job{
			name: fmt.Sprintf("%s trace of %d facts", kind, len(s.facts)), bound: 1 / bound,
			peer: strings.Join(append([]string{"trace", string(kind), fmt.Sprint(s.window)}, words(s.facts)...), " "),
			ours: f.tracing(kind, s),
		})
	}
	statistics, err := plainStatistics(m, s.layer)
	if err != nil {
		return nil, err
	}
	for _, i := range s.edits {
		list = append(list, job{
			name: fmt.Sprintf("ROME of layer %d, edit %d", s.layer, i), bound: 1 / s.edit,
			peer: fmt.Sprintf("edit %d %d", s.layer, i), ours: f.editing(i, statistics),
		})
	}
	text := &corpus.Corpus{}
	for i, ids := range rows(m, keyRows*keyBatches, keyTokens) {
		text.Append(ids, i)
	}
	list = append(list, job{
		name: "statistics of keys, equal lengths", bound: 1, ours: keyStatistics(s.layer, text),
		peer: fmt.Sprintf("keys %d %d %d %d", s.layer, keyRows, keyTokens, keyBatches),
	})
	if text, err = lines(m, filepath.Join(f.dir, "corpus.txt")); err != nil {
		return nil, err
	}
	return append(list, job{
		name: "statistics of keys, lines of text", bound: 1, peer: fmt.Sprintf("corpus %d", s.layer),
		ours: keyStatistics(s.layer, text),
	}), nil
}

func words(numbers []int) []string {
	out := make([]string, len(numbers))
	for i, n := range numbers {
		out[i] = fmt.Sprint(n)
	}
	return out
}

// lines is a text of one document a line, all of which the comparison takes.
func lines(m *transformer.Model, path string) (*corpus.Corpus, error) {
	return corpus.Load(context.Background(), []string{path}, corpus.Options{
		Length: m.Config.Context,
		Encode: func(text string, special bool) ([]int, error) {
			tokens, err := m.Tokenizer.Encode(text, special)
			ids := make([]int, len(tokens))
			for i, t := range tokens {
				ids[i] = t.ID
			}
			return ids, err
		},
	}, nil)
}

// tracing traces facts one after the other.
func (f *facts) tracing(kind editing.TraceKind, s shapeOfEdits) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		return func() error {
			for _, i := range s.facts {
				fact := f.trace.Facts[i]
				if _, err := editing.Trace(context.Background(), m, editing.TraceOptions{
					Prompt: fact.Prompt, Subject: fact.Subject, Kind: kind, Window: s.window, Samples: f.trace.Samples,
					Noise: editing.Noise{Kind: editing.GaussianNoise, Level: f.trace.Noise},
				}); err != nil {
					return err
				}
			}
			return nil
		}, nil
	}
}

// editing makes an edit as the peer does, with its settings.
func (f *facts) editing(i int, c *editing.Statistics) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		e := f.rome.Edits[i]
		return func() error {
			got, err := editing.ROME(context.Background(), m, editing.Request{
				Prompt: e.Prompt, Subject: e.Subject, Target: e.Target,
			}, editing.ROMEOptions{
				Method: editing.MethodROME, Statistics: c, Contexts: f.rome.Contexts,
				Value: editing.ValueOptions{Clamp: e.Clamp},
			})
			if err == nil {
				f.evaluations = len(got.Losses)
			}
			return err
		}, nil
	}
}

// plainStatistics are made up, but solving with them costs what it does with real ones. They are factored already.
func plainStatistics(m *transformer.Model, layer int) (*editing.Statistics, error) {
	s, err := editing.Identity(m, layer)
	if err != nil {
		return nil, err
	}
	s.Moment = slices.Repeat([]float32{0.1}, s.Size*s.Size)
	for i := range s.Size {
		s.Moment[i*s.Size+i] = 1
	}
	_, err = s.Factor()
	return s, err
}

// keyStatistics takes the second moment of all keys of a text.
func keyStatistics(layer int, text *corpus.Corpus) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		return func() error {
			_, err := editing.CollectStatistics(context.Background(), m, editing.CollectOptions{
				Layer: layer, Text: text, Tokens: -1,
			})
			return err
		}, nil
	}
}
