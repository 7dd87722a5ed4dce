package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/routes"
	"github.com/engram-go/engram/transformer"
)

type aggregateFlags struct {
	graph   routesFlags // for the threshold
	corpus  corpusFlags
	changes changeFlags
	records string
	by, out string
	top     int
	force   bool
	opts    routes.AggregateOptions
}

func (a *app) aggregateCommand() *cobra.Command {
	var f aggregateFlags
	cmd := a.command("aggregate --text FILE | --records FILE [flags]", "heads, FFNs and streams over many predictions",
		"aggregate draws the graph of routes of each text's last position, or with --every of each position, and sums up:\n"+
			"how much of the states heads, FFNs and streams make up (importance), in how many graphs they are (frequency),\n"+
			"and what heads do over whole texts: read the position before, the first one, or the word that they are in.\n"+
			"Labels are the files of several --text, the field label of --records, or with --by position the positions;\n"+
			"with several, heads are compared between them. With --out, a job that is stopped goes on where it was.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runAggregate(cmd, &f) })
	f.corpus.register(cmd)
	f.graph.registerThreshold(cmd)
	f.changes.register(cmd)
	c := cmd.Flags()
	c.StringVar(&f.records, "records", "", `file of JSON lines with "text" or "ids", and "label"`)
	c.BoolVar(&f.opts.Everywhere, "every", false, "a prediction at every position behind the first")
	c.StringVar(&f.by, "by", "label", "what predictions are grouped by: label or position")
	c.BoolVar(&f.opts.NoRoles, "no-roles", false, "leave out the roles of heads, which need the parts of every state")
	c.IntVar(&f.opts.Bootstrap, "bootstrap", 1000, "draws behind each interval")
	c.Uint64Var(&f.opts.Seed, "seed", 0, "of the draws")
	c.IntVar(&f.top, "show", 10, "heads to list, and for each label")
	c.StringVarP(&f.out, "out", "o", "", "file to write instead of standard output; FILE.part keeps what is done")
	c.BoolVar(&f.force, "force", false, "replace the file if it exists")
	_ = cmd.MarkFlagFilename("records", "jsonl")
	return cmd
}

func (f *aggregateFlags) check() error {
	if (len(f.corpus.texts) > 0) == (f.records != "") {
		return withHint(usagef("give one of --text and --records"), "a text has a document on each line")
	}
	if f.records == "" {
		if err := f.corpus.check(); err != nil {
			return err
		}
	}
	if f.by != "label" && f.by != "position" {
		return usagef("--by: %q is neither label nor position", f.by)
	}
	if err := f.graph.threshold(); err != nil {
		return err
	}
	if f.out != "" {
		if err := writable(f.out, f.force); err != nil {
			return err
		}
		f.opts.Part = f.out + ".part"
	}
	f.opts.Threshold, f.opts.ByPosition = f.graph.cut, f.by == "position"
	var err error
	if f.opts.Interventions, err = f.changes.parse(); err != nil {
		return err
	}
	return bounds(map[string][2]int{"bootstrap": {f.opts.Bootstrap, 1}, "show": {f.top, 1}})
}

func (a *app) runAggregate(cmd *cobra.Command, f *aggregateFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	ctx := cmd.Context()
	m, err := a.open(ctx, 1<<14)
	if err != nil {
		return err
	}
	if err := a.ready(ctx, &f.changes, &f.opts.Interventions); err != nil {
		return err
	}
	files := f.corpus.texts
	if f.records != "" {
		files = []string{f.records}
		f.opts.Records = jsonRecords(m, f.records)
	} else {
		f.opts.Records = f.texts(ctx, m)
	}
	if f.opts.Data, err = hashFiles(files, f.corpus); err != nil {
		return err
	}
	if m.Tokenizer != nil {
		f.opts.Words = func(ids []int) []int { return routes.Words(m.Tokenizer, ids) }
	}
	line := a.progress()
	f.opts.Progress = func(n int) { line.Printf("%d predictions", n) }
	got, err := routes.Aggregate(ctx, m, f.opts)
	line.Clear()
	if err != nil {
		return f.changes.refused(err)
	}
	conventions := map[string]string{
		"importance": "mean over predictions of the sum of a part's kept weights; " + got.Threshold.Text(),
		"frequency":  "share of predictions with such an edge", "root": "the last layer's state",
		"role":           "shares of a head's edges over all states of the texts, no threshold",
		"specialisation": "frequency less the largest of another label; 95 % interval of bootstrap draws",
		"merge":          "share of earlier pieces of the same word over what their number among pairs would give",
	}
	noteChanges(conventions, &f.opts.Interventions)
	return a.into(cmd, f.out, f.force, func() error {
		return a.print("routes.aggregate", got, conventions, func(p *page) { writeAggregate(p, got, f.top) })
	})
}

// hashFiles says what a job's records are.
func hashFiles(paths []string, f corpusFlags) (string, error) {
	h := sha256.New()
	fmt.Fprint(h, f.t.Format, f.t.Length, f.t.Pack, f.t.NoSpecial, f.t.Limit)
	for _, path := range paths {
		file, err := os.Open(path)
		if err != nil {
			return "", inputError{err}
		}
		_, err = io.Copy(h, file)
		if err := errors.Join(err, file.Close()); err != nil {
			return "", inputError{err}
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// texts are the sequences of the files, labelled by file where there are several.
func (f *aggregateFlags) texts(ctx context.Context, m *transformer.Model) iter.Seq2[routes.Record, error] {
	return func(yield func(routes.Record, error) bool) {
		for _, path := range f.corpus.texts {
			label := ""
			if len(f.corpus.texts) > 1 {
				label = filepath.Base(path)
			}
			r, err := corpus.NewReader([]string{path}, f.options(m))
			if err != nil {
				yield(routes.Record{}, err)
				return
			}
			for {
				s, err := r.Next(ctx)
				if errors.Is(err, io.EOF) {
					break
				}
				if !yield(routes.Record{IDs: s.IDs, Label: label}, err) || err != nil {
					r.Close()
					return
				}
			}
		}
	}
}

// options are how the texts become sequences.
func (f *aggregateFlags) options(m *transformer.Model) corpus.Options {
	t := &f.corpus.t
	o := corpus.Options{
		Format: corpus.Format(t.Format), NoSpecial: t.NoSpecial, Vocab: m.Config.Vocab, Pack: t.Pack, Limit: t.Limit,
		Length: t.Length,
	}
	if o.Length == 0 {
		o.Length = min(m.Config.Context, referenceLength)
	}
	if m.Tokenizer != nil {
		o.Encode = func(text string, special bool) ([]int, error) { return encode(m, text, special) }
	}
	return o
}

func encode(m *transformer.Model, text string, special bool) ([]int, error) {
	tokens, err := m.Tokenizer.Encode(text, special)
	ids := make([]int, len(tokens))
	for i, t := range tokens {
		ids[i] = t.ID
	}
	return ids, err
}

// jsonRecords reads a file line by line.
func jsonRecords(m *transformer.Model, path string) iter.Seq2[routes.Record, error] {
	return func(yield func(routes.Record, error) bool) {
		file, err := os.Open(path)
		if err != nil {
			yield(routes.Record{}, inputError{err})
			return
		}
		defer file.Close()
		lines := bufio.NewScanner(file)
		lines.Buffer(nil, maxPrompt)
		for n := 1; lines.Scan(); n++ {
			if len(lines.Bytes()) == 0 {
				continue
			}
			r, err := jsonRecord(m, lines.Bytes())
			if err != nil {
				err = inputError{fmt.Errorf("%s, line %d: %w", path, n, err)}
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(routes.Record{}, inputError{fmt.Errorf("%s: %w", path, err)})
		}
	}
}

func jsonRecord(m *transformer.Model, line []byte) (routes.Record, error) {
	var x struct {
		Text, Label string
		IDs         []int
	}
	if err := json.Unmarshal(line, &x); err != nil {
		return routes.Record{}, err
	}
	r := routes.Record{IDs: x.IDs, Label: x.Label}
	switch {
	case (x.Text == "") == (len(x.IDs) == 0):
		return r, errors.New(`want one of "text" and "ids"`)
	case x.Text == "":
		return r, nil
	case m.Tokenizer == nil:
		return r, errors.New("the model has no tokenizer; give ids")
	}
	var err error
	r.IDs, err = encode(m, x.Text, true)
	return r, err
}

// writeAggregate prints the heads that are in most graphs, the layers, and what is special about labels.
func writeAggregate(p *page, r *routes.AggregateResult, top int) {
	p.heading(fmt.Sprintf("%d predictions in %d texts, weights %s", r.Predictions, r.Records, r.Threshold.Text()))
	heads := slices.Clone(r.Heads)
	slices.SortStableFunc(heads, func(a, b routes.HeadUse) int { return cmp.Compare(b.Importance, a.Importance) })
	t := &table{header: []string{
		"head", ">importance", ">±", ">frequency", ">self", ">previous", ">first", ">word", ">×", "role",
	}}
	for _, h := range heads[:min(top, len(heads))] {
		cells := []string{
			h.Head, numfmt.Float(h.Importance, 3), numfmt.Float(h.Deviation, 2), numfmt.Percent(h.Frequency),
			"", "", "", "", "", "",
		}
		if x := h.Role; x != nil {
			cells[4], cells[5], cells[6] = numfmt.Percent(x.Offsets[0]), numfmt.Percent(x.Offsets[1]), numfmt.Percent(x.Sink)
			if cells[9] = x.Name; x.Merge != nil {
				cells[7], cells[8] = numfmt.Percent(*x.Word), numfmt.Float(*x.Merge, 2)
			}
		}
		t.add(cells...)
	}
	p.table(t)
	p.printf("\n")
	t = &table{header: []string{">layer", ">FFN", ">frequency", ">stream into A", ">into I"}}
	for l, f := range r.FFNs {
		attn := ""
		if len(r.IntoAttn) > 0 {
			attn = numfmt.Float(r.IntoAttn[l].Importance, 3)
		}
		t.add(fmt.Sprint(l), numfmt.Float(f.Importance, 3), numfmt.Percent(f.Frequency), attn,
			numfmt.Float(r.IntoBlock[l].Importance, 3))
	}
	p.table(t)
	writeDomains(p, r, top)
}

// writeDomains prints the heads that a label has most of, and how alike the labels are.
func writeDomains(p *page, r *routes.AggregateResult, top int) {
	if len(r.Domains) == 0 {
		return
	}
	p.printf("\n")
	t := &table{header: []string{"label", ">n", "head", ">frequency", ">more than others", ">95 % from", ">to", ">z"}}
	for _, d := range r.Domains {
		heads := slices.Clone(d.Heads)
		slices.SortStableFunc(heads, func(a, b routes.DomainHeadUse) int {
			return cmp.Compare(b.Specialisation, a.Specialisation)
		})
		label, n := safe(d.Label), fmt.Sprint(d.N)
		for _, h := range heads[:min(top, len(heads))] {
			if h.Specialisation <= 0 {
				break
			}
			z := ""
			if h.Z != nil {
				z = fmt.Sprintf("%.1f", *h.Z)
			}
			t.add(label, n, h.Head, numfmt.Percent(h.Frequency), fmt.Sprintf("%.2f", h.Specialisation),
				fmt.Sprintf("%.2f", h.Low), fmt.Sprintf("%.2f", h.High), z)
			label, n = "", ""
		}
		if label != "" || len(heads) == 0 {
			t.add(label, n, "none more than in others")
		}
	}
	p.table(t)
	p.printf("\n")
	header := []string{"similarity"}
	for _, d := range r.Domains {
		header = append(header, ">"+safe(d.Label))
	}
	t = &table{header: header}
	for i, row := range r.Similarity {
		cells := []string{safe(r.Domains[i].Label)}
		for _, v := range row {
			if v == nil {
				cells = append(cells, "")
			} else {
				cells = append(cells, fmt.Sprintf("%.2f", *v))
			}
		}
		t.add(cells...)
	}
	p.table(t)
}
