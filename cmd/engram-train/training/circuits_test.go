package training

import (
	"math/rand/v2"
	"testing"

	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/engram-go/engram/internal/backend/backendtest"
)

// Before the first step, the model already says a random sequence again: what follows a token is what followed it.
func TestTheCircuitsFinishASequence(t *testing.T) {
	backendtest.Long(t)
	be := backendtest.Open(t, "go")
	opts := small()
	opts.Shape = Shape{Layers: 3, Width: 192, Heads: 3, Context: 96, Vocab: 500}
	c, params := mustConfig(t, &opts)
	const rows, length = 8, 40
	rng := rand.New(rand.NewPCG(3, 0))
	var ids []int32
	for range rows {
		sequence := rng.Perm(opts.Shape.Vocab)[:length]
		for i := range 2 * length {
			ids = append(ids, int32(sequence[i%length]))
		}
	}
	args := []any{tensors.FromFlatDataAndDimensions(ids, rows, 2*length)}
	for i, values := range initial(c, params, 1) {
		args = append(args, tensors.FromFlatDataAndDimensions(values, params[i].Shape...))
	}
	exec, err := graph.NewExec(be, func(in []*graph.Node) *graph.Node {
		return graph.ArgMax(c.NextTokenLogits(in[1:], in[0], nil), -1)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer exec.Finalize()
	out, err := exec.Call(args...)
	if err != nil {
		t.Fatal(err)
	}
	var first, second int
	err = tensors.ConstFlatData(out[0], func(guesses []int32) {
		for at := range guesses {
			if at%(2*length) == 2*length-1 || guesses[at] != ids[at+1] {
				continue
			}
			if at%(2*length) < length-1 {
				first++
			} else {
				second++
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	// The last token of the first pass has no occurrence before it, so a pass has one prediction less.
	if possible := rows * (length - 1); second < possible/2 || first > possible/10 {
		t.Errorf("%d of %d right in the second pass, %d in the first", second, possible, first)
	}
}
