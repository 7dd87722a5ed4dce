package probes_test

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// sameIndex compares two indexes: examples and samples exactly, what is summed up to rounding.
func sameIndex(t *testing.T, a, b *probes.TriggerIndex) {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if a.Positions != b.Positions || a.Corpus != b.Corpus || a.Of != b.Of {
		t.Errorf("%d positions of %.9s, want %d of %.9s", a.Positions, a.Corpus, b.Positions, b.Corpus)
	}
	for layer := range a.Layers {
		for i := range a.Memories {
			n := transformer.Neuron{Layer: layer, Index: i}
			for _, tail := range a.Tails {
				x, err := a.Triggers(n, tail)
				check(err)
				y, err := b.Triggers(n, tail)
				check(err)
				sameTriggers(t, n.String()+" "+string(tail), x, y, a.Top)
			}
			x, err := a.Samples(n)
			check(err)
			y, err := b.Samples(n)
			check(err)
			if len(x) != len(y) {
				t.Fatalf("%s has %d samples, want %d", n, len(x), len(y))
			}
			for j := range x {
				near(t, n.String()+" sample", x[j].Value, y[j].Value, 2e-6)
				if x[j].Sequence != y[j].Sequence || x[j].Position != y[j].Position {
					t.Errorf("%s has sample %v, want %v", n, x[j], y[j])
				}
			}
			p, err := a.Moments(n)
			check(err)
			q, err := b.Moments(n)
			check(err)
			near(t, n.String()+" mean", p.Mean, q.Mean, 1e-6)
			near(t, n.String()+" variance", p.Variance, q.Variance, 1e-6)
			near(t, n.String()+" skewness", p.Skewness, q.Skewness, 1e-4)
			near(t, n.String()+" kurtosis", p.Kurtosis, q.Kurtosis, 1e-4)
			near(t, n.String()+" max", p.Max, q.Max, 2e-6)
			g, err := a.Histogram(n)
			check(err)
			total := 0
			for _, count := range g {
				total += count
			}
			if int64(total) != a.Positions {
				t.Errorf("%s: the histogram counts %d of %d positions", n, total, a.Positions)
			}
		}
	}
}

// TestTriggersShards: the merged shards of a corpus, in any order, and indexes built in batches of any size, are the
// index of one job.
func TestTriggersShards(t *testing.T) {
	backendtest.Long(t)
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		opts := probes.TriggersOptions{
			Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Top: 6, Tails: probes.Tails(), Sample: 4, Seed: 9,
		}
		whole := build(t, m, opts)
		for _, batch := range []int{1, 33} {
			opts := opts
			opts.Batch = batch
			sameIndex(t, build(t, m, opts), whole)
		}
		dir := t.TempDir()
		var files []string
		for shard := 3; shard > 0; shard-- {
			opts := opts
			opts.Shard, opts.Of, opts.Out = shard, 3, filepath.Join(dir, string(rune('a'+shard)))
			build(t, m, opts)
			files = append(files, opts.Out)
		}
		out := filepath.Join(dir, "merged")
		if _, err := probes.MergeTriggers(t.Context(), probes.MergeTriggersOptions{Files: files, Out: out}); err != nil {
			t.Fatal(err)
		}
		sameIndex(t, openTriggers(t, out), whole)
		for about, list := range map[string][]string{
			"a shard twice": {files[0], files[1], files[0]}, "shards and the whole": {files[0], out}, "nothing": nil,
		} {
			_, err := probes.MergeTriggers(t.Context(), probes.MergeTriggersOptions{Files: list, Out: filepath.Join(dir, "x")})
			if !errors.Is(err, probes.ErrMerge) {
				t.Errorf("%s: %v", about, err)
			}
		}
	})
}

// TestTriggersJoin: indexes of two corpora make the index of both, but for the sample, which holds positions of both.
func TestTriggersJoin(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		m := open(t, be, "stories")
		rows := someRows(m.Config.Vocab)
		dir := t.TempDir()
		part := func(name string, rows [][]int) *probes.TriggerIndex {
			return build(t, m, probes.TriggersOptions{
				Texts: probes.Texts{IDs: rows}, Top: 6, EveryPosition: true, Sample: 8, Out: filepath.Join(dir, name),
			})
		}
		a, b, whole := part("a", rows[:12]), part("b", rows[12:]), part("c", rows)
		_, err := probes.MergeTriggers(t.Context(), probes.MergeTriggersOptions{
			Files: []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}, Out: filepath.Join(dir, "ab"),
		})
		if err != nil {
			t.Fatal(err)
		}
		got := openTriggers(t, filepath.Join(dir, "ab"))
		if got.Corpus != whole.Corpus || got.Positions != a.Positions+b.Positions {
			t.Errorf("%d positions, want %d; corpus %.9s, want %.9s", got.Positions, whole.Positions, got.Corpus, whole.Corpus)
		}
		of := coefs(t, m, rows, 1)
		fromA, all := 0, 0
		for i := range got.Memories {
			n := transformer.Neuron{Layer: 1, Index: i}
			x, err := got.Triggers(n, probes.Positive)
			if err != nil {
				t.Fatal(err)
			}
			y, err := whole.Triggers(n, probes.Positive)
			if err != nil {
				t.Fatal(err)
			}
			sameTriggers(t, n.String(), x, y, 6)
			samples, err := got.Samples(n)
			if err != nil || len(samples) != 8 {
				t.Fatalf("%d samples, %v", len(samples), err)
			}
			for _, s := range samples {
				want, _ := of(i)(s.Sequence, s.Position)
				near(t, n.String()+" sample", s.Value, want, 2e-6)
				all++
				if s.Sequence < 12 {
					fromA++
				}
			}
		}
		share := float64(a.Positions) / float64(whole.Positions)
		// Five standard deviations of a binomial count, which sampling without replacement stays below.
		if d := math.Abs(float64(fromA)/float64(all) - share); d > 5*math.Sqrt(share*(1-share)/float64(all)) {
			t.Errorf("%d of %d samples are of the first corpus, which holds %.2f of the positions", fromA, all, share)
		}
	})
}

// TestTriggersRefuse: what cannot be built is refused before anything is written.
func TestTriggersRefuse(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	there := filepath.Join(t.TempDir(), "there")
	if err := os.WriteFile(there, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	rows := [][]int{{1, 5, 6}}
	for about, c := range map[string]struct {
		opts probes.TriggersOptions
		want error
		text string
	}{
		"empty":           {probes.TriggersOptions{Texts: probes.Texts{IDs: [][]int{}}}, probes.ErrEmptyCorpus, ""},
		"an empty row":    {probes.TriggersOptions{Texts: probes.Texts{IDs: [][]int{{}}}}, probes.ErrCorpus, "row 0"},
		"only beginnings": {probes.TriggersOptions{Texts: probes.Texts{IDs: [][]int{{1}, {2}}}}, probes.ErrEmptyCorpus, "no position"},
		"unknown token":   {probes.TriggersOptions{Texts: probes.Texts{IDs: [][]int{{1, 512}}}}, transformer.ErrTokenRange, "512"},
		"too long":        {probes.TriggersOptions{Texts: probes.Texts{IDs: rows, Length: 4096}}, transformer.ErrTooLong, "4096"},
		"longer row":      {probes.TriggersOptions{Texts: probes.Texts{IDs: rows, Length: 2}}, probes.ErrCorpus, "3 tokens"},
		"file there":      {probes.TriggersOptions{Texts: probes.Texts{IDs: rows}, Out: there}, fs.ErrExist, ""},
		"unknown tail":    {probes.TriggersOptions{Texts: probes.Texts{IDs: rows}, Tails: []probes.Tail{"both"}}, nil, "no such tail"},
		"tail twice": {
			probes.TriggersOptions{Texts: probes.Texts{IDs: rows}, Tails: []probes.Tail{"positive", "positive"}}, nil, "twice",
		},
		"no shard": {probes.TriggersOptions{Texts: probes.Texts{IDs: rows}, Shard: 3, Of: 2}, nil, "shard 3 of 2"},
		"no file":  {probes.TriggersOptions{Texts: probes.Texts{IDs: rows}, Out: "-"}, nil, "no file to write"},
		"missing":  {probes.TriggersOptions{Texts: probes.Texts{Files: []string{"nowhere"}}}, fs.ErrNotExist, ""},
	} {
		dir := t.TempDir()
		switch c.opts.Out {
		case "":
			c.opts.Out = filepath.Join(dir, "x")
		case "-":
			c.opts.Out = ""
		}
		_, err := probes.Triggers(t.Context(), m, c.opts)
		if err == nil || c.want != nil && !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", about, err)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
			t.Errorf("%s left %v", about, list)
		}
	}
}

// TestTriggersParts: an unfinished index of other options, and what is none, are refused and left alone.
func TestTriggersParts(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	out := filepath.Join(t.TempDir(), "x")
	opts := probes.TriggersOptions{Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Batch: 30, SaveEvery: 1, Out: out}
	failing := opts
	failing.Replace = true
	if err := os.Mkdir(out, 0o755); err != nil { // the index cannot be written, and what was done is kept
		t.Fatal(err)
	}
	if _, err := probes.Triggers(t.Context(), m, failing); !errors.Is(err, fs.ErrExist) {
		t.Fatalf("wrote over a folder: %v", err)
	}
	if err := os.Remove(out); err != nil {
		t.Fatal(err)
	}
	part := contents(t, out+".part")
	other := opts
	other.Top = 3
	if _, err := probes.Triggers(t.Context(), m, other); !errors.Is(err, probes.ErrPart) {
		t.Errorf("went on with other options: %v", err)
	}
	if err := os.WriteFile(out+".part", part[:len(part)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := probes.Triggers(t.Context(), m, opts); !errors.Is(err, probes.ErrPart) {
		t.Errorf("went on with half a file: %v", err)
	}
	if err := os.WriteFile(out+".part", part, 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := probes.Triggers(t.Context(), m, opts)
	if err != nil || r.Resumed != r.Sequences {
		t.Errorf("went on after %d of %d sequences, %v", r.Resumed, r.Sequences, err)
	}
}

// TestOpenTriggers: files that are no index, or were changed, are errors that say so.
func TestOpenTriggers(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	good := filepath.Join(t.TempDir(), "good")
	x := build(t, m, probes.TriggersOptions{Texts: probes.Texts{IDs: someRows(m.Config.Vocab)}, Out: good})
	if err := x.CheckModel("other", "1234"); !errors.Is(err, probes.ErrOtherModel) {
		t.Errorf("another model's index: %v", err)
	}
	for _, n := range []transformer.Neuron{{Layer: -1}, {Layer: 5}, {Index: 172}, {Index: -1}} {
		if _, err := x.Triggers(n, probes.Positive); !errors.Is(err, probes.ErrNeuron) {
			t.Errorf("%v: %v", n, err)
		}
	}
	if _, err := x.Triggers(transformer.Neuron{}, probes.Negative); !errors.Is(err, probes.ErrTriggers) {
		t.Errorf("a tail that is not there: %v", err)
	}
	data := string(contents(t, good))
	for about, bad := range map[string]string{
		"text":         "hello",
		"cut":          data[:len(data)-100],
		"schema":       strings.Replace(data, `"engram.triggers"`, `"engram.diggers?"`, 1),
		"version":      strings.Replace(data, `"schema_version":"1"`, `"schema_version":"7"`, 1),
		"settings":     strings.Replace(data, `\"layers\":5`, `\"layers\":6`, 1),
		"negative":     strings.Replace(data, `\"memories\":172`, `\"memories\":-17`, 1),
		"tail":         strings.Replace(data, `[\"positive\"]`, `[\"positif\"]`+" ", 1),
		"no positions": strings.Replace(data, `"positions":"`, `"positiona":"`, 1),
		"tensor":       strings.Replace(data, `"position":{`, `"bosition":{`, 1),
	} {
		if bad == data {
			t.Fatalf("%s: nothing was changed", about)
		}
		path := filepath.Join(t.TempDir(), "bad")
		if err := os.WriteFile(path, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if x, err := probes.OpenTriggers(path); !errors.Is(err, probes.ErrTriggers) {
			t.Errorf("%s: %v", about, err)
			if err == nil {
				_ = x.Close()
			}
		}
	}
}
