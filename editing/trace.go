package editing

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// ErrTrace is wrapped by errors about traces that cannot be made.
var ErrTrace = errors.New("cannot trace")

// TraceKind is what a trace puts back.
type TraceKind string

// The kinds of traces.
const (
	TraceHidden TraceKind = "hidden" // the residual stream behind one layer
	TraceMLP    TraceKind = "mlp"    // what the FFNs of a window of layers add
	TraceAttn   TraceKind = "attn"   // what the attentions of a window of layers add
)

// site is where a kind's states are put back. The stream behind a layer enters the next one.
func (k TraceKind) site() transformer.Site {
	switch k {
	case TraceMLP:
		return transformer.FFNOut
	case TraceAttn:
		return transformer.AttnOut
	}
	return transformer.ResidPre
}

// TraceOptions say what to trace. Prompt and Subject are needed.
type TraceOptions struct {
	Prompt, Subject string
	// Tokens are those of the prompt, with byte offsets into it; nil means what the tokenizer makes of it, with the
	// tokens that it puts around a text.
	Tokens []transformer.Token
	Kind   TraceKind // "" means hidden
	// Window is how many layers around a cell's are put back together, l−⌊w/2⌋ … l+⌈w/2⌉−1 cut off at the ends; 0 means
	// 10, and hidden states are always put back at one layer.
	Window int
	// Sever also puts the hidden state at the subject's last token back while the outputs of all its FFNs (TraceMLP) or
	// attentions (TraceAttn) stay as the noise made them; "" means not at all.
	// With RNGNumPy the runs that are put back get the draws that follow, as the reference's code does it.
	Sever   TraceKind
	Noise   Noise // the zero value means three standard deviations
	Samples int   // corrupted runs; 0 means 10
	Seed    uint64
	RNG     RNG
	// Subjects are the texts whose embeddings calibrate the noise; nil means the subject alone.
	Subjects []string
	// Interventions hold in all runs: clean, with noise, and with states put back. Those at embed act ahead of the noise,
	// but for projections, which are always last. A state that is put back is the clean run's under the interventions;
	// where they change the very site that is put back, they do not act on it again.
	Interventions probes.Interventions
	// Expect is the answer, which must be one token that is it but for spaces around; "" takes whatever the model says.
	// Another answer is an *UnknownError.
	Expect   string
	Progress func(done, total int) // called after some cells; nil means not at all
	// Cells is given what there is of the result after some cells, in which scores that are missing are NaN; nil means not
	// at all. Begun is such a part of a trace with the same options: what it has is not computed again.
	Cells func(part *TraceResult)
	Begun *TraceResult
}

// defaultWindow is how many layers are put back together unless said otherwise.
const defaultWindow = 10

// Token is a token of a prompt. Text is what it stands for; where that is not UTF-8, in the escaped form of package
// display.
type Token struct {
	ID   int    `json:"id"`
	Text string `json:"text"`
}

// TraceResult is a causal trace. Scores and Stderr are [T][L]: the mean over the noise samples of the answer's
// probability when the clean state of position t is put back at layer l, and the standard error of that mean.
type TraceResult struct {
	Prompt   string    `json:"prompt"`
	Tokens   []Token   `json:"tokens"`
	Subject  [2]int    `json:"subject"` // the subject's tokens [b,e)
	Merged   bool      `json:"merged_boundary"`
	Answer   string    `json:"answer"` // what the model predicts without noise
	AnswerID int       `json:"answer_id"`
	High     float64   `json:"high"` // its probability without noise
	Low      float64   `json:"low"`  // its mean probability with noise
	LowError float64   `json:"low_stderr"`
	Kind     TraceKind `json:"kind"`
	Window   int       `json:"window"`
	Noise    Noise     `json:"noise"`
	RNG      RNG       `json:"rng"`
	Seed     uint64    `json:"seed"`
	Samples  int       `json:"samples"`

	Scores [][]float64 `json:"scores"`
	Stderr [][]float64 `json:"stderr"`

	// Severed [L] is the row of the subject's last token with a module held as the noise made it, for hidden states.
	Sever         TraceKind `json:"sever,omitempty"`
	Severed       []float64 `json:"severed,omitempty"`
	SeveredStderr []float64 `json:"severed_stderr,omitempty"`

	changes string // the hash of the interventions
}

// Effect is the total effect, high − low.
func (r *TraceResult) Effect() float64 { return r.High - r.Low }

// Trace finds the states that carry an answer (Meng et al. 2022, section 2): the model runs once as it is and Samples
// times with noise on the embeddings of the subject, which hides the answer; then, cell by cell, the clean state of one
// position and layer is put back into the noisy runs, and what the answer's probability rises to says how much of it
// passes there. Probabilities are averaged, not logits, and all cells see the same noise.
//
// A cell is resumed from the noisy runs where its state is put back, so it costs the later layers and positions alone.
// Errors wrap ErrSubject, ErrNoise, ErrTrace and those of probes.Interventions.Resolve and transformer.Model.Run.
func Trace(ctx context.Context, m *transformer.Model, opts TraceOptions) (*TraceResult, error) {
	if err := opts.settle(m); err != nil {
		return nil, err
	}
	t := &tracer{m: m, opts: &opts}
	defer t.close()
	if err := t.start(ctx); err != nil {
		return nil, err
	}
	if err := t.corrupt(ctx); err != nil {
		return nil, err
	}
	if err := t.cells(ctx); err != nil {
		return nil, err
	}
	return t.out, t.sever(ctx)
}

// settle fills in defaults and refuses what cannot be traced.
func (o *TraceOptions) settle(m *transformer.Model) error {
	if o.Kind == "" {
		o.Kind = TraceHidden
	}
	if o.Samples == 0 {
		o.Samples = 10
	}
	if o.Window == 0 {
		o.Window = defaultWindow
	}
	if o.Kind == TraceHidden {
		o.Window = 1
	}
	if o.Noise.Kind == "" {
		o.Noise = Noise{Kind: GaussianNoise, Deviations: 3}
	}
	if o.RNG == "" {
		o.RNG = RNGFast
	}
	switch {
	case o.Kind != TraceHidden && o.Kind != TraceMLP && o.Kind != TraceAttn:
		return fmt.Errorf("%w: no kind %q; there are hidden, mlp and attn", ErrTrace, o.Kind)
	case o.Sever != "" && o.Sever != TraceMLP && o.Sever != TraceAttn:
		return fmt.Errorf("%w: %q cannot be severed; mlp and attn can", ErrTrace, o.Sever)
	case o.Sever != "" && o.Kind != TraceHidden:
		return fmt.Errorf("%w: severing belongs to hidden states", ErrTrace)
	case o.Samples < 1 || o.Window < 1:
		return fmt.Errorf("%w: %d samples, window %d", ErrTrace, o.Samples, o.Window)
	case m.Config.Encoder:
		return fmt.Errorf("%w: %s predicts no next token", ErrTrace, m.Config.Family)
	case m.Tokenizer == nil && (o.Tokens == nil || o.Noise.calibrated()):
		return fmt.Errorf("%w: the model has no tokenizer", ErrTrace)
	}
	if err := o.Interventions.Check(m.Config); err != nil {
		return err
	}
	if o.Subjects == nil {
		o.Subjects = []string{o.Subject}
	}
	if o.Tokens == nil {
		var err error
		if o.Tokens, err = m.Tokenizer.Encode(o.Prompt, true); err != nil {
			return fmt.Errorf("prompt %q: %w", o.Prompt, err)
		}
	}
	return nil
}

// tracer is a trace being made.
type tracer struct {
	m         *transformer.Model
	opts      *TraceOptions
	out       *TraceResult
	ids       []int
	span      Span
	changed   *probes.Resolved // the interventions on the prompt
	clean     *transformer.Run
	corrupted *transformer.Run
	low       []float64 // by sample
	random    generator
	mean      []float64   // of calibrated noise, nil for none
	root      [][]float64 // of its covariance
}

func (t *tracer) close() {
	if t.changed != nil {
		t.changed.Close()
	}
	for _, r := range []*transformer.Run{t.clean, t.corrupted} {
		if r != nil {
			r.Close()
		}
	}
}

// start finds the subject and runs the prompt without noise.
func (t *tracer) start(ctx context.Context) (err error) {
	o := t.opts
	if t.span, err = FindSubject(o.Prompt, o.Subject, o.Tokens); err != nil {
		return err
	}
	t.ids = idsOf(o.Tokens)
	if t.changed, err = o.Interventions.Resolve(ctx, t.m, [][]int{t.ids}, false); err != nil {
		return err
	}
	capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits, o.Kind.site()}}
	if t.clean, err = t.m.Run(ctx, [][]int{t.ids}, capture, t.changed.Prompt...); err != nil {
		return err
	}
	logits, err := t.clean.Tensor(transformer.Logits, -1)
	if err != nil {
		return err
	}
	last := logits.At(0, len(t.ids)-1).Data
	answer, high := mostProbable(last)
	if math.IsNaN(high) {
		return fmt.Errorf("%w: the model predicts numbers that are not finite", ErrTrace)
	}
	if text := tokenText(t.m, answer); o.Expect != "" && strings.TrimSpace(text) != o.Expect {
		return &UnknownError{o.Prompt, o.Expect, text}
	}
	t.out = &TraceResult{
		Prompt: o.Prompt, Subject: [2]int{t.span.Begin, t.span.End}, Merged: t.span.Merged, Answer: tokenText(t.m, answer),
		AnswerID: answer, High: high, Kind: o.Kind, Window: o.Window, Noise: o.Noise, RNG: o.RNG, Seed: o.Seed,
		Samples: o.Samples, Sever: o.Sever, changes: changesHash(&o.Interventions),
	}
	for _, id := range t.ids {
		t.out.Tokens = append(t.out.Tokens, Token{id, tokenText(t.m, id)})
	}
	return nil
}

// Done counts the scores that are there; a trace that has ended has all.
func (r *TraceResult) Done() (done, total int) {
	for _, row := range r.Scores {
		for _, v := range row {
			if total++; !math.IsNaN(v) {
				done++
			}
		}
	}
	return done, total
}

// part is a copy of what there is.
func (r *TraceResult) part() *TraceResult {
	out := *r
	out.Scores, out.Stderr = make([][]float64, len(r.Scores)), make([][]float64, len(r.Stderr))
	for i := range r.Scores {
		out.Scores[i], out.Stderr[i] = slices.Clone(r.Scores[i]), slices.Clone(r.Stderr[i])
	}
	return &out
}

// takeUp takes the scores of a part, which has to be of this very trace.
func (t *tracer) takeUp() error {
	b := t.opts.Begun
	if b == nil {
		return nil
	}
	mine, theirs := *t.out, *b
	for _, r := range []*TraceResult{&mine, &theirs} {
		r.Scores, r.Stderr, r.Severed, r.SeveredStderr = nil, nil, nil, nil
	}
	if !reflect.DeepEqual(mine, theirs) || len(b.Scores) != len(t.out.Scores) {
		return fmt.Errorf("%w: what was begun is another trace", ErrTrace)
	}
	for i, row := range b.Scores {
		copy(t.out.Scores[i], row)
		copy(t.out.Stderr[i], b.Stderr[i])
	}
	return nil
}

func tokenText(m *transformer.Model, id int) string {
	if m.Tokenizer == nil {
		return ""
	}
	if b := m.Tokenizer.Bytes(id); utf8.Valid(b) {
		return string(b)
	}
	return display.Token(m.Tokenizer.Bytes(id))
}

// mostProbable is the most probable token and its probability.
func mostProbable(logits []float32) (id int, prob float64) {
	for i, v := range logits {
		if v > logits[id] {
			id = i
		}
	}
	sum := 0.0
	for _, v := range logits {
		sum += math.Exp(float64(v) - float64(logits[id]))
	}
	return id, 1 / sum
}

// corrupt runs the prompt with noise on the subject.
func (t *tracer) corrupt(ctx context.Context) (err error) {
	if err := t.calibrate(ctx); err != nil {
		return err
	}
	end := len(t.ids) - 1
	capture := transformer.Capture{Base: true, Reduce: t.reduce(), Positions: []int{end}}
	if t.opts.Sever != "" {
		capture.Sites, capture.Positions = []transformer.Site{t.opts.Sever.site()}, []int{t.span.Last(), end}
	}
	if t.corrupted, err = t.corruptedRun(ctx, capture); err != nil {
		return err
	}
	all, err := probabilities(t.corrupted)
	if err != nil {
		return err
	}
	each := len(capture.Positions)
	for i := range t.opts.Samples {
		t.low = append(t.low, all[(i+1)*each-1])
	}
	t.out.Low, t.out.LowError = meanError(t.low)
	return nil
}

// calibrate settles what the noise is drawn from.
func (t *tracer) calibrate(ctx context.Context) (err error) {
	n := &t.out.Noise
	if t.random, err = newGenerator(t.opts.RNG, t.opts.Seed); err != nil || !n.calibrated() {
		return err
	}
	e, err := embed(ctx, t.m, t.opts.Subjects)
	if err != nil {
		return err
	}
	if n.Deviations > 0 {
		n.Level = n.Deviations * e.deviation()
		return nil
	}
	t.mean, t.root, err = e.shape()
	return err
}

// corruptedRun runs all samples with the noise that is drawn next, which is added to what interventions make of the
// embeddings.
func (t *tracer) corruptedRun(ctx context.Context, capture transformer.Capture) (*transformer.Run, error) {
	iv := transformer.Intervention{Site: transformer.Embed, Op: transformer.OpAdd}
	for p := t.span.Begin; p < t.span.End; p++ {
		iv.Positions = append(iv.Positions, p)
	}
	d := t.m.Config.EmbedWidth
	iv.Value = t.out.Noise.draw(t.random, t.opts.Samples, len(iv.Positions), d, t.mean, t.root)
	rows, samples := make([][]int, t.opts.Samples), make([]int, t.opts.Samples)
	for i := range rows {
		rows[i], samples[i] = t.ids, i
	}
	return t.m.Run(ctx, rows, capture, append(t.changed.ForRows(samples, -1, 0), iv)...)
}

// reduce keeps of the logits what the answer's probability is.
func (t *tracer) reduce() map[transformer.Site]transformer.Reduce {
	return map[transformer.Site]transformer.Reduce{
		transformer.Logits: {Kind: transformer.LogProbs, Targets: []int{t.out.AnswerID}},
	}
}

// probabilities are those of the answer, by row and captured position.
func probabilities(r *transformer.Run) ([]float64, error) {
	got, err := r.Reduced(transformer.Logits, -1)
	if err != nil {
		return nil, err
	}
	out := make([]float64, len(got.Values.Data))
	for i, v := range got.Values.Data {
		out[i] = math.Exp(float64(v))
		if math.IsNaN(out[i]) {
			return nil, fmt.Errorf("%w: noise makes the model's predictions not finite", ErrTrace)
		}
	}
	return out, nil
}

// meanError is the mean and its standard error, 0 for a single number.
func meanError(x []float64) (mean, stderr float64) {
	n := float64(len(x))
	for _, v := range x {
		mean += v / n
	}
	if len(x) < 2 {
		return mean, 0
	}
	for _, v := range x {
		stderr += (v - mean) * (v - mean)
	}
	return mean, math.Sqrt(stderr / (n - 1) / n)
}
