package main

import (
	"bytes"
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/engram-go/engram/cmd/engram-train/training"
	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/backend"
	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/loader"
)

//go:embed tokenizer.py
var tokenizerScript string

// dataError is an error of what there is to train on.
type dataError struct{ error }

func (e dataError) Unwrap() error { return e.error }

// What lies in a training folder.
const (
	tokenizerFile = "tokenizer.json"
	modelFolder   = "model"
)

// The tokenizer is trained on this many documents, and on every word that is to be a token this many times.
const (
	tokenizerDocuments = 40000
	tokenizerRepeats   = 60
)

// job is one run of the command.
type job struct {
	stdout, stderr io.Writer
	out            string
	table, text    string
	python         string
	dtype          string
	backend        string
	options        training.Options
	quiet          bool
	early, every   int
}

// flags declares the command line; the defaults are the demo model's recipe.
func (j *job) flags(f *pflag.FlagSet) {
	o := &j.options
	f.StringVar(&j.out, "out", "", "training folder; the model is written to model/ in it")
	f.StringVar(&j.table, "facts", "", "folder of a fact table, instead of the one in the program")
	f.StringVar(&j.text, "text", "", "train on the lines of this file instead of facts")
	f.StringVar(&j.python, "python", "python3", "Python with the package tokenizers, which trains the tokenizer")
	f.StringVar(&j.dtype, "dtype", "float16", "weights as written: float16 or float32")
	f.StringVar(&j.backend, "backend", backend.XLACPU, "backend to train on")
	f.IntVar(&j.early, "early", 250, "blocks of 200 documents that mostly need attention circuits, at the start")
	f.IntVar(&j.every, "every", 500, "steps between checkpoints; a run that is killed loses no more")
	f.BoolVarP(&j.quiet, "quiet", "q", false, "no progress")
	f.IntVar(&o.Shape.Layers, "layers", 8, "blocks")
	f.IntVar(&o.Shape.Width, "width", 192, "residual stream")
	f.IntVar(&o.Shape.Heads, "heads", 3, "attention heads")
	f.IntVar(&o.Shape.Context, "context", 96, "most tokens of a sequence")
	f.IntVar(&o.Shape.Vocab, "vocab", 4096, "tokens of the vocabulary")
	f.IntVar(&o.Steps, "steps", 15000, "steps of training")
	f.IntVar(&o.Batch, "batch", 6, "rows of a step")
	f.IntVar(&o.Length, "length", 96, "tokens of a row")
	f.Float64Var(&o.Rate, "rate", 2e-3, "highest learning rate")
	f.IntVar(&o.Warmup, "warmup", 200, "steps until the learning rate is reached")
	f.Float64Var(&o.Floor, "floor", 0.03, "share of the learning rate that the cosine ends with")
	f.Float64Var(&o.Decay, "weight-decay", 0.1, "decoupled weight decay of matrices")
	f.Float64Var(&o.Clip, "clip", 1, "largest norm of the gradient")
	f.Float64Var(&o.Emphasis, "emphasis", 3, "loss weight of tokens that answer")
	f.Float64Var(&o.Noise, "noise", 0.1, "loss weight of tokens that nobody can tell")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of weights, documents and masks")
	f.Float64Var(&o.Route.Share, "route", 0.8, "share of rows in which words see a subject through its last token only")
	f.IntVar(&o.Route.Gather, "gather", 2, "first layer in which a subject's tokens see each other, in those rows")
	f.IntVar(&o.Route.Read, "read", 4, "first layer in which words behind a subject see it, in those rows")
}

// run trains and writes the model.
func (j *job) run(ctx context.Context) error {
	if j.out == "" {
		return fmt.Errorf("%w: --out: no folder named", training.ErrOptions)
	}
	if j.every < 1 {
		return fmt.Errorf("%w: --every: %d steps between checkpoints, at least 1", training.ErrOptions, j.every)
	}
	dir := filepath.Join(j.out, modelFolder)
	if j.finished() {
		return fmt.Errorf("write %s: %w", dir, os.ErrExist)
	}
	if err := training.CheckDType(j.dtype); err != nil {
		return err
	}
	data, err := j.data()
	if err != nil {
		return dataError{err}
	}
	if err := os.MkdirAll(j.out, 0o755); err != nil {
		return err
	}
	vocabulary, err := j.tokenizer(ctx, data)
	if err != nil {
		return err
	}
	tokenizer, err := loader.OpenTokenizer(j.out)
	if err != nil {
		return err
	}
	be, _, err := backend.Open(j.backend)
	if err != nil {
		return err
	}
	defer be.Finalize()
	j.options.Shape.Vocab = tokenizer.VocabSize()
	result, err := training.Train(ctx, be, j.options, training.Run{
		Dir: j.out, Documents: data.documents, Tokenizer: tokenizer, Data: append(data.identity, vocabulary...),
		Every: j.every, Report: j.reporter(),
	})
	if err != nil {
		return err
	}
	if !j.has(modelFolder) {
		if err := result.Weights.Export(ctx, dir, j.dtype, vocabulary); err != nil {
			return err
		}
		fmt.Fprintf(j.stdout, "%s written after %d steps\n", dir, result.Steps)
	}
	if data.table == nil {
		return nil
	}
	return j.evaluate(ctx, be, data.table, dir)
}

// finished tells whether a model is in the folder that nothing is left to do for. One from facts is measured after it
// is written, and the report is the last file: without it, a run stopped there and goes on.
func (j *job) finished() bool {
	return j.has(modelFolder) && (j.text != "" || j.has(reportFile) || !j.has(training.CheckpointFile))
}

func (j *job) has(name string) bool {
	_, err := os.Stat(filepath.Join(j.out, name))
	return err == nil
}

// data is what to train on.
type data struct {
	documents training.Documents
	table     *facts.Table // nil for plain text
	identity  []byte       // what the documents are made from
}

// data opens the documents that the flags name.
func (j *job) data() (*data, error) {
	if j.text != "" {
		text, err := os.ReadFile(j.text)
		if err != nil {
			return nil, err
		}
		lines, err := training.NewLines(string(text), j.options.Seed)
		if err != nil {
			return nil, fmt.Errorf("train on %s: %w", j.text, err)
		}
		return &data{documents: lines, identity: text}, nil
	}
	table, err := facts.Load()
	if j.table != "" {
		table, err = facts.Parse(os.DirFS(j.table))
	}
	if err != nil {
		return nil, err
	}
	g, err := facts.NewGenerator(table, facts.GeneratorOptions{Seed: j.options.Seed, Early: j.early})
	if err != nil {
		return nil, err
	}
	d := &data{documents: g, table: table}
	for i := range uint64(1000) {
		d.identity = append(append(d.identity, g.Document(i).Text...), '\n')
	}
	return d, nil
}

// tokenizer trains the tokenizer, or reads the one an earlier run has trained.
func (j *job) tokenizer(ctx context.Context, d *data) ([]byte, error) {
	path := filepath.Join(j.out, tokenizerFile)
	if text, err := os.ReadFile(path); err == nil {
		return text, nil
	}
	var text bytes.Buffer
	for i := range uint64(tokenizerDocuments) {
		text.WriteString(d.documents.Document(i).Text + "\n")
	}
	if d.table != nil {
		for _, word := range d.table.Vocabulary() {
			text.WriteString(strings.Repeat(" "+word, tokenizerRepeats) + "\n")
		}
	}
	tmp, err := os.MkdirTemp(j.out, "tokenizer-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	trained := filepath.Join(tmp, tokenizerFile)
	cmd := exec.CommandContext(ctx, j.python, "-c", tokenizerScript, fmt.Sprint(j.options.Shape.Vocab), trained)
	cmd.Stdin, cmd.Stderr = &text, j.stderr
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil { // Python was stopped, and is not to blame
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("train tokenizer with %s and its package tokenizers: %w", j.python, err)
	}
	made, err := os.ReadFile(trained)
	if err != nil {
		return nil, fmt.Errorf("train tokenizer: %w", err)
	}
	err = atomicfile.Write(ctx, path, func(w io.Writer) error {
		_, err := w.Write(made)
		return err
	}, atomicfile.Options{})
	return made, err
}

// reporter prints loss and speed, a line for every hundred steps.
func (j *job) reporter() func(training.Point) {
	if j.quiet {
		return nil
	}
	var loss, norm, speed float64
	n, began := 0, time.Now()
	return func(p training.Point) {
		loss, norm, speed, n = loss+p.Loss, norm+p.Norm, speed+1/p.Speed, n+1
		if p.Step%100 != 0 && p.Step != j.options.Steps {
			return
		}
		f := float64(n)
		fmt.Fprintf(j.stderr, "step %d of %d  loss %.4f  gradient %.3f  rate %.2e  %.0f tokens/s  %s\n", p.Step,
			j.options.Steps, loss/f, norm/f, p.Rate, f/speed, time.Since(began).Round(time.Second))
		loss, norm, speed, n = 0, 0, 0, 0
	}
}
