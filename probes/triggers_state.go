package probes

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// TriggersInfo says what an index is of: the model, the corpus and the rules by which examples were chosen.
type TriggersInfo struct {
	Model       string `json:"model"`
	Fingerprint string `json:"fingerprint"`
	Layers      int    `json:"layers"`
	Memories    int    `json:"memories"` // of the widest layer
	Corpus      string `json:"corpus"`   // hash of the sequences' ids
	Sequences   int    `json:"sequences"`
	Tokens      int    `json:"tokens"`
	Top         int    `json:"top"`
	Tails       []Tail `json:"tails"`
	Packed      bool   `json:"packed"` // sequences are pieces of joined documents
	// EveryPosition says that all positions competed; otherwise a sequence's best one did.
	EveryPosition bool   `json:"every_position"`
	Window        int    `json:"window"` // of de-duplication, 0 without
	KeepFirst     bool   `json:"keep_first"`
	SkipSpecial   bool   `json:"skip_special"`
	Sample        int    `json:"sample"`
	Seed          uint64 `json:"seed"`
	Shards        []int  `json:"shards"` // that were run, of Of
	Of            int    `json:"of"`
	// Interventions are what was changed while the corpus ran.
	Interventions []string `json:"interventions,omitempty"`
}

// triggersState is everything an index is made of, in memory.
type triggersState struct {
	info    TriggersInfo
	done    int // sequences of the order that were run; a finished index has none left
	kept    []*kept
	spreads *spreads
	sample  *sample
}

func newTriggersState(info TriggersInfo) *triggersState {
	n := info.Layers * info.Memories
	s := &triggersState{info: info, spreads: newSpreads(n), sample: newSample(info.Sample, n)}
	for _, t := range info.Tails {
		s.kept = append(s.kept, newKept(t, info.Top, n))
	}
	return s
}

const (
	triggersSchema = "engram.triggers"
	partSchema     = triggersSchema + ".part"
)

// tailPrefix is what stands before a tail's tensor names.
func tailPrefix(t Tail) string {
	if t == Positive {
		return ""
	}
	return string(t) + "."
}

// items are the tensors of the state; with a corpus, also those that make it a finished index.
func (s *triggersState) items(c *corpus.Corpus) []safetensors.Item {
	l, d, k := s.info.Layers, s.info.Memories, s.info.Top
	bins := coefBins()
	items := []safetensors.Item{
		tensorItem("sums.center", s.spreads.center, l, d),
		tensorItem("sums.powers", slices.Concat(s.spreads.powers[:]...), 4, l, d),
		tensorItem("min", s.spreads.min, l, d), tensorItem("max", s.spreads.max, l, d),
		tensorItem("active", s.spreads.active, l, d),
		tensorItem("histogram", s.spreads.histogram, l, d, bins),
		tensorItem("sample.value", s.sample.value, l, d, s.info.Sample),
		tensorItem("sample.sequence", s.sample.sequence, l, d, s.info.Sample),
		tensorItem("sample.position", s.sample.position, l, d, s.info.Sample),
	}
	for _, t := range s.kept {
		p := tailPrefix(t.tail)
		items = append(items, tensorItem(p+"value", t.value, l, d, k),
			tensorItem(p+"sequence", t.sequence, l, d, k), tensorItem(p+"position", t.position, l, d, k))
		if c != nil {
			items = append(items, nextItem(p+"next_id", t, c, l, d, k))
		}
	}
	if c == nil {
		return items
	}
	derived := map[string][]float32{}
	for i := range l * d {
		m := s.spreads.moments(i)
		for name, v := range map[string]float64{
			"mean": m.Mean, "variance": m.Variance, "skewness": m.Skewness, "kurtosis": m.Kurtosis,
			"fraction_active": m.FractionActive,
		} {
			derived[name] = append(derived[name], float32(v))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(derived)) {
		items = append(items, tensorItem(name, derived[name], l, d))
	}
	distribution := coefDistribution()
	return append(items, tensorItem("histogram_edges", distribution.Edges(), bins-1),
		tensorItem("corpus.ids", c.IDs, len(c.IDs)), tensorItem("corpus.starts", c.Starts, len(c.Starts)),
		tensorItem("corpus.documents", c.Documents, len(c.Documents)))
}

func coefBins() int {
	d := coefDistribution()
	return d.Bins()
}

// nextItem is the tokens behind the examples; −1 where there is none.
func nextItem(name string, t *kept, c *corpus.Corpus, shape ...int) safetensors.Item {
	return safetensors.Item{Name: name, DType: safetensors.I32, Shape: shape, WriteData: func(w io.Writer) error {
		const chunk = 1 << 14
		next := make([]int32, 0, chunk)
		for i := range t.value {
			id := int32(-1)
			if t.sequence[i] >= 0 {
				id = token(c.Sequence(int(t.sequence[i])), int(t.position[i])+1)
			}
			if next = append(next, id); len(next) == chunk || i == len(t.value)-1 {
				if err := tensorItem("", next, len(next)).WriteData(w); err != nil {
					return err
				}
				next = next[:0]
			}
		}
		return nil
	}}
}

// save writes the state; with a corpus, the finished index.
func (s *triggersState) save(
	ctx context.Context, path string, c *corpus.Corpus, replace bool, meta map[string]string,
) error {
	settings, err := json.Marshal(s.info)
	if err != nil {
		return err
	}
	all := map[string]string{
		"schema": triggersSchema, "schema_version": "1", "settings": string(settings),
		"positions": strconv.FormatInt(s.spreads.count, 10), "model": s.info.Model, "fingerprint": s.info.Fingerprint,
	}
	maps.Copy(all, meta)
	if c == nil {
		all["schema"], all["done"] = partSchema, strconv.Itoa(s.done)
	}
	fill := func(w io.Writer) error { return safetensors.Write(w, s.items(c), all) }
	return atomicfile.Write(ctx, path, fill, atomicfile.Options{Replace: replace})
}

// infoOf reads what a file says about itself and refuses what is not of the schema.
func infoOf(f *safetensors.File, schema string) (info TriggersInfo, err error) {
	if got := f.Metadata["schema"]; got != schema {
		return info, fmt.Errorf("%w: %s has schema %q, not %q", ErrTriggers, f.Base(), got, schema)
	}
	if v := f.Metadata["schema_version"]; v != "1" {
		return info, fmt.Errorf("%w: %s is of version %q, this program reads version 1", ErrTriggers, f.Base(), v)
	}
	if err := json.Unmarshal([]byte(f.Metadata["settings"]), &info); err != nil {
		return info, fmt.Errorf("%w: %s: settings: %w", ErrTriggers, f.Base(), err)
	}
	sizes := []int{info.Layers, info.Memories, info.Top, info.Sequences, info.Tokens, info.Sample, info.Of}
	for _, n := range sizes {
		if n < 0 || n > 1<<31-1 {
			return info, fmt.Errorf("%w: %s: a size of %d in its settings", ErrTriggers, f.Base(), n)
		}
	}
	for _, t := range info.Tails {
		if _, err := ParseTail(string(t)); err != nil {
			return info, fmt.Errorf("%w: %s: %w", ErrTriggers, f.Base(), err)
		}
	}
	return info, nil
}

// loadTriggers reads a state back.
func loadTriggers(f *safetensors.File, schema string) (*triggersState, error) {
	info, err := infoOf(f, schema)
	if err != nil {
		return nil, err
	}
	s := &triggersState{info: info, spreads: &spreads{}, sample: &sample{r: info.Sample}}
	if s.spreads.count, err = strconv.ParseInt(f.Metadata["positions"], 10, 64); err != nil {
		return nil, fmt.Errorf("%w: %s: positions: %w", ErrTriggers, f.Base(), err)
	}
	if schema != triggersSchema {
		if s.done, err = strconv.Atoi(f.Metadata["done"]); err != nil {
			return nil, fmt.Errorf("%w: %s: done: %w", ErrTriggers, f.Base(), err)
		}
	}
	r := tensorReader{f: f}
	l, d, k := info.Layers, info.Memories, info.Top
	readInto(&r, &s.spreads.center, "sums.center", l, d)
	var powers []float64
	readInto(&r, &powers, "sums.powers", 4, l, d)
	readInto(&r, &s.spreads.min, "min", l, d)
	readInto(&r, &s.spreads.max, "max", l, d)
	readInto(&r, &s.spreads.active, "active", l, d)
	readInto(&r, &s.spreads.histogram, "histogram", l, d, coefBins())
	readInto(&r, &s.sample.value, "sample.value", l, d, info.Sample)
	readInto(&r, &s.sample.sequence, "sample.sequence", l, d, info.Sample)
	readInto(&r, &s.sample.position, "sample.position", l, d, info.Sample)
	for _, tail := range info.Tails {
		t, p := newKept(tail, 0, l*d), tailPrefix(tail)
		t.k = k
		readInto(&r, &t.value, p+"value", l, d, k)
		readInto(&r, &t.sequence, p+"sequence", l, d, k)
		readInto(&r, &t.position, p+"position", l, d, k)
		if r.err == nil {
			t.setFloors()
		}
		s.kept = append(s.kept, t)
	}
	if r.err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrTriggers, f.Base(), r.err)
	}
	for p := range s.spreads.powers {
		s.spreads.powers[p] = powers[p*l*d : (p+1)*l*d]
	}
	return s, nil
}

// tensorReader reads tensors until one is not as it should be.
type tensorReader struct {
	f   *safetensors.File
	err error
}

func readInto[T number](r *tensorReader, to *[]T, name string, shape ...int) {
	if r.err != nil {
		return
	}
	t, err := storedTensor[T](r.f, name, shape...)
	if err == nil {
		*to, err = t.all()
	}
	r.err = err
}

// widest is the number of memories of the widest layer.
func widest(c *transformer.Config) int {
	n := 0
	for l := range c.Layers {
		n = max(n, c.Memories(l))
	}
	return n
}
