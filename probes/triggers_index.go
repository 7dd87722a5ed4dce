package probes

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/engram-go/engram/internal/corpus"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/transformer"
)

// Trigger is an example of what a memory answers to: the coefficient at a position of a sequence. Its prefix is the
// tokens up to the position, that one included.
type Trigger struct {
	Value    float64 `json:"value"`
	Sequence int     `json:"sequence"`
	Position int     `json:"position"`
	NextID   int     `json:"next_id"` // of the token behind the prefix, −1 at the end of the sequence
}

// TriggerIndex is an index file, read where it is asked. Close it.
type TriggerIndex struct {
	TriggersInfo
	Positions int64     // that competed
	Edges     []float64 // of the histograms, ascending; there is a bin before and one behind them

	file      *safetensors.File
	corpus    *corpus.Corpus
	lists     map[Tail]storedTriggers
	sample    storedTriggers
	numbers   map[string]stored[float32] // moments and the like, by name
	histogram stored[int32]
}

// storedTriggers are examples in a file.
type storedTriggers struct {
	value              stored[float32]
	sequence, position stored[int32]
	k                  int
}

// OpenTriggers opens an index. Errors about what it holds wrap ErrTriggers.
func OpenTriggers(path string) (_ *TriggerIndex, err error) {
	f, err := openIndexFile(path)
	if err != nil {
		return nil, err
	}
	x := &TriggerIndex{file: f}
	defer func() {
		if err != nil {
			_ = f.Close() // it was read only
		}
	}()
	if x.TriggersInfo, err = infoOf(f, triggersSchema); err != nil {
		return nil, err
	}
	if x.Positions, err = strconv.ParseInt(f.Metadata["positions"], 10, 64); err != nil {
		return nil, fmt.Errorf("%w: %s: positions: %w", ErrTriggers, f.Base(), err)
	}
	if err := x.find(); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrTriggers, f.Base(), err)
	}
	return x, nil
}

// openIndexFile opens a file; what is no safetensors file is no index.
func openIndexFile(path string) (*safetensors.File, error) {
	f, err := safetensors.Open(path)
	if errors.Is(err, safetensors.ErrFormat) {
		return nil, fmt.Errorf("%w: %w", ErrTriggers, err)
	}
	return f, err
}

// find looks up the tensors.
func (x *TriggerIndex) find() error {
	r := tensorReader{f: x.file}
	l, d := x.Layers, x.Memories
	triggers := func(prefix string, k int) storedTriggers {
		return storedTriggers{
			lookIn[float32](&r, prefix+"value", l, d, k), lookIn[int32](&r, prefix+"sequence", l, d, k),
			lookIn[int32](&r, prefix+"position", l, d, k), k,
		}
	}
	x.lists, x.numbers = map[Tail]storedTriggers{}, map[string]stored[float32]{}
	for _, t := range x.Tails {
		x.lists[t] = triggers(tailPrefix(t), x.Top)
	}
	x.sample = triggers("sample.", x.Sample)
	for _, name := range []string{"mean", "variance", "skewness", "kurtosis", "min", "max", "fraction_active"} {
		x.numbers[name] = lookIn[float32](&r, name, l, d)
	}
	x.histogram = lookIn[int32](&r, "histogram", l, d, coefBins())
	edges, err := lookIn[float32](&r, "histogram_edges", coefBins()-1).all()
	if r.err != nil || err != nil {
		return firstError(r.err, err)
	}
	for _, e := range edges {
		x.Edges = append(x.Edges, float64(e))
	}
	x.corpus, err = readCorpus(&r, x.Sequences, x.Tokens)
	return err
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func lookIn[T number](r *tensorReader, name string, shape ...int) stored[T] {
	if r.err != nil {
		return stored[T]{}
	}
	t, err := storedTensor[T](r.f, name, shape...)
	r.err = err
	return t
}

// readCorpus reads the sequences that an index is of.
func readCorpus(r *tensorReader, sequences, tokens int) (*corpus.Corpus, error) {
	c := &corpus.Corpus{}
	readInto(r, &c.IDs, "corpus.ids", tokens)
	readInto(r, &c.Starts, "corpus.starts", sequences+1)
	readInto(r, &c.Documents, "corpus.documents", sequences)
	if r.err != nil {
		return nil, r.err
	}
	if c.Starts[0] != 0 || c.Starts[sequences] != int64(tokens) {
		return nil, fmt.Errorf("%w: sequences from %d to %d of %d tokens",
			errTensor, c.Starts[0], c.Starts[sequences], tokens)
	}
	for s := range sequences {
		if c.Starts[s+1] <= c.Starts[s] {
			return nil, fmt.Errorf("%w: sequence %d ends at or before its start", errTensor, s)
		}
	}
	return c, nil
}

// Close closes the file.
func (x *TriggerIndex) Close() error { return x.file.Close() }

// CheckModel refuses the index of another model; the error wraps ErrOtherModel.
func (x *TriggerIndex) CheckModel(name, fingerprint string) error {
	if x.Fingerprint != fingerprint {
		return fmt.Errorf("%w: %s is of %s (%.12s), not of %s (%.12s)",
			ErrOtherModel, x.file.Base(), x.Model, x.Fingerprint, name, fingerprint)
	}
	return nil
}

// checkPlain refuses the index of another model, or of the model under interventions, whose corpus cannot be run again.
func (x *TriggerIndex) checkPlain(m *transformer.Model) error {
	if len(x.Interventions) > 0 {
		return fmt.Errorf("%w: %s was made under interventions, which are not in force now", ErrTriggers, x.file.Base())
	}
	return x.CheckModel(m.Name, m.Fingerprint)
}

// check refuses memories that the index does not have; the result is the memory's place in the tensors.
func (x *TriggerIndex) check(n transformer.Neuron) (int, error) {
	if n.Layer < 0 || n.Layer >= x.Layers || n.Index < 0 || n.Index >= x.Memories {
		return 0, fmt.Errorf("%w: %s, the index has layers 0 to %d of %d memories", ErrNeuron, n, x.Layers-1, x.Memories)
	}
	return n.Layer*x.Memories + n.Index, nil
}

// Triggers are a memory's examples by their order in a tail. Errors wrap ErrNeuron or ErrTriggers.
func (x *TriggerIndex) Triggers(n transformer.Neuron, tail Tail) ([]Trigger, error) {
	at, err := x.check(n)
	if err != nil {
		return nil, err
	}
	list, ok := x.lists[tail]
	if !ok {
		return nil, fmt.Errorf("%w: %s has no tail %s", ErrTriggers, x.file.Base(), tail)
	}
	return x.read(list, at)
}

// strongest are the first examples of a memory of the model, all of them if top is 0.
func (x *TriggerIndex) strongest(c *transformer.Config, n transformer.Neuron, tail Tail, top int) ([]Trigger, error) {
	if err := checkNeuron(c, n); err != nil {
		return nil, err
	}
	list, err := x.Triggers(n, tail)
	if err != nil {
		return nil, fmt.Errorf("triggers of %s: %w", n, err)
	}
	if top > 0 {
		list = list[:min(top, len(list))]
	}
	return list, nil
}

// Samples are the positions that were drawn at random for a memory, by sequence and position.
func (x *TriggerIndex) Samples(n transformer.Neuron) ([]Trigger, error) {
	at, err := x.check(n)
	if err != nil {
		return nil, err
	}
	return x.read(x.sample, at)
}

func (x *TriggerIndex) read(list storedTriggers, memory int) ([]Trigger, error) {
	var out []Trigger
	for i := memory * list.k; i < (memory+1)*list.k && list.sequence.at(i) != -1; i++ {
		t := Trigger{Value: float64(list.value.at(i)), Sequence: int(list.sequence.at(i)), Position: int(list.position.at(i))}
		if t.Sequence < 0 || t.Sequence >= x.Sequences || t.Position < 0 || t.Position >= x.corpus.Size(t.Sequence) {
			return nil, fmt.Errorf("%w: %s has an example at sequence %d, position %d, where its corpus has nothing",
				ErrTriggers, x.file.Base(), t.Sequence, t.Position)
		}
		t.NextID = int(token(x.corpus.Sequence(t.Sequence), t.Position+1))
		out = append(out, t)
	}
	return out, nil
}

// Sequence is the ids of a sequence of the corpus, in memory of its own.
func (x *TriggerIndex) Sequence(i int) []int { return x.corpus.Row(i) }

// Document is the document that a sequence is of, or begins in.
func (x *TriggerIndex) Document(sequence int) int { return int(x.corpus.Documents[sequence]) }

// Moments describe all of a memory's coefficients.
func (x *TriggerIndex) Moments(n transformer.Neuron) (Moments, error) {
	at, err := x.check(n)
	if err != nil {
		return Moments{}, err
	}
	of := func(name string) float64 { return float64(x.numbers[name].at(at)) }
	m := Moments{
		Mean: of("mean"), Variance: of("variance"), Skewness: of("skewness"), Kurtosis: of("kurtosis"),
		FractionActive: of("fraction_active"),
	}
	if x.Positions > 0 {
		m.Min, m.Max = of("min"), of("max")
	}
	return m, nil
}

// Histogram counts a memory's coefficients between the edges.
func (x *TriggerIndex) Histogram(n transformer.Neuron) ([]int, error) {
	at, err := x.check(n)
	if err != nil {
		return nil, err
	}
	out := make([]int, coefBins())
	for i := range out {
		out[i] = int(x.histogram.at(at*len(out) + i))
	}
	return out, nil
}
