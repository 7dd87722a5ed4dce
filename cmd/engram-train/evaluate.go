package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/cmd/engram-train/training"
	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/facts"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// What is written about a trained model, beside its folder.
const (
	reportFile  = "evaluation.json"
	knownFile   = "known.json"
	recordsFile = "counterfact.json"
	unknownFile = "unknown.json"
	corpusFile  = "corpus.txt"
)

// Sizes of what is made from the table, and the seed of it.
const (
	evaluationSeed  = 7
	circuitCases    = 1000
	corpusDocuments = 5000
)

// score is how often a model is right on a set of prompts.
type score struct {
	Set    string  `json:"set"`
	Cases  int     `json:"cases"`
	Right  float64 `json:"right"`
	Prob   float64 `json:"mean_probability"`
	Chance float64 `json:"best_guess_without_subject,omitempty"`
}

// evaluate measures the model in a folder and writes what is known of it.
func (j *job) evaluate(ctx context.Context, be compute.Backend, t *facts.Table, dir string) error {
	m, err := loader.Open(ctx, dir, loader.Options{Backend: be})
	if err != nil {
		return err
	}
	defer m.Close()
	e := facts.NewEvaluation(t, evaluationSeed)
	sets := []struct {
		name      string
		questions []facts.Question
	}{
		{"trained templates", e.RecallEvery()},
		{"held-out templates", e.HeldOut()},
		{"held-out templates behind filler", e.BehindFiller(e.HeldOut())},
		{"trained templates, another subject", e.Swapped(e.RecallEvery())},
		{"kind of subject", e.Kinds()},
		{"induction, held-out words", e.Induction(circuitCases)},
		{"indirect object, held-out names", e.Indirect(circuitCases)},
	}
	var report []score
	var unknown []facts.Question
	for _, set := range sets {
		answers, err := ask(ctx, m, set.questions)
		if err != nil {
			return err
		}
		s := score{Set: set.name, Cases: len(answers), Right: training.Share(answers)}
		for i, a := range answers {
			s.Prob += a.Prob / float64(len(answers))
			if !a.Right && len(report) == 0 {
				unknown = append(unknown, set.questions[i])
			}
		}
		if set.questions[0].Relation != "" {
			s.Chance = facts.Chance(set.questions)
		}
		report = append(report, s)
		fmt.Fprintf(j.stdout, "%-36s %6d cases  right %5.1f %%  probability %.3f\n", s.Set, s.Cases, 100*s.Right, s.Prob)
	}
	return j.writeSets(ctx, t, report, unknown)
}

func ask(ctx context.Context, m *transformer.Model, questions []facts.Question) ([]training.Answer, error) {
	prompts, answers := make([]string, len(questions)), make([]string, len(questions))
	for i, q := range questions {
		prompts[i], answers[i] = q.Prompt, q.Answer
	}
	return training.Score(ctx, m, prompts, answers)
}

// writeSets writes the files that prove edits of the model, and last the report.
func (j *job) writeSets(ctx context.Context, t *facts.Table, report []score, unknown []facts.Question) error {
	files, err := j.sets(t, unknown)
	if err != nil {
		return err
	}
	write := func(name string, fill func(io.Writer) error) error {
		return atomicfile.Write(ctx, filepath.Join(j.out, name), fill, atomicfile.Options{Replace: true})
	}
	for name, fill := range files {
		if err := write(name, fill); err != nil {
			return err
		}
	}
	return write(reportFile, func(w io.Writer) error { return writeReport(w, report) })
}

// sets are the files that follow from a table and the questions of its training templates that a model does not answer.
func (j *job) sets(t *facts.Table, unknown []facts.Question) (map[string]func(io.Writer) error, error) {
	var prompts []string
	wrong := map[string]bool{}
	for _, q := range unknown {
		prompts, wrong[q.Prompt] = append(prompts, q.Prompt), true
	}
	knows := func(q facts.Question) bool { return !wrong[q.Prompt] }
	known := facts.KnownFacts(t, facts.KnownOptions{Seed: evaluationSeed, Known: knows})
	records, err := facts.Records(t, facts.RecordOptions{Seed: evaluationSeed, Known: knows})
	if errors.Is(err, facts.ErrTooFew) { // a small table, or a model that knows little, is no failure
		fmt.Fprintf(j.stderr, "note: %v\n", err)
	} else if err != nil {
		return nil, err
	}
	fmt.Fprintf(j.stdout, "%d of %d facts known, %d records\n", len(known), len(t.Facts()), len(records))
	g, err := facts.NewGenerator(t, facts.GeneratorOptions{Seed: evaluationSeed})
	if err != nil {
		return nil, err
	}
	return map[string]func(io.Writer) error{
		knownFile:   func(w io.Writer) error { return facts.WriteJSON(w, known) },
		recordsFile: func(w io.Writer) error { return facts.WriteJSON(w, records) },
		unknownFile: func(w io.Writer) error { return facts.WriteJSON(w, prompts) },
		corpusFile:  func(w io.Writer) error { return g.Corpus(w, corpusDocuments) },
	}, nil
}

func writeReport(w io.Writer, report []score) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(report)
}
