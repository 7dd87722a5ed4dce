package transformer

import (
	"context"
	"fmt"

	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// Tile is a piece of the logits of many states: of the states from Row and the tokens from Token on.
type Tile struct {
	Row, Token int
	Logits     *Tensor   // [rows, tokens]
	LogSumExp  []float32 // over the tile's tokens, [rows]; nil unless asked for
}

// TileOptions say how to go through the logits of many states. The zero value includes final norm, bias and softcap.
type TileOptions struct {
	Raw       bool // only the product with the unembedding, as in Unembed
	LogSumExp bool
	// Keep leaves the unembedding on the device for the next call. Otherwise each piece of it is released when all
	// states have met it.
	Keep bool
	// Rows and Tokens bound the size of a tile; 0 means 1024 and 2048, 8 MiB, which stay in a processor's cache.
	Rows, Tokens int
}

// UnembedTiles gives the logits of states [n,d] as Unembed does, but a tile at a time, so that the logits of any number
// of states take 8 MiB. Tiles come by ascending token, and for equal tokens by ascending row; what visit is given is
// valid until it returns. Visit must not use the model. Besides the tile, the states and the unembedding are on the
// device, or with Keep unset one piece of the latter.
func (m *Model) UnembedTiles(ctx context.Context, states *Tensor, opts TileOptions, visit func(*Tile) error) error {
	c := m.Config
	if len(states.Shape) != 2 || states.Shape[1] != c.Width {
		return fmt.Errorf("logits of states of shape %v: want [n,%d]", states.Shape, c.Width)
	}
	opts.Rows, opts.Tokens = tileSize(states.Shape[0], opts.Rows, 1024), tileSize(c.Vocab, opts.Tokens, 2048)
	m.mu.Lock()
	defer m.mu.Unlock()
	groups, err := m.stateGroups(states, &opts)
	defer func() { free(groups...) }()
	if err != nil {
		return err
	}
	for from := 0; from < c.Vocab; from += opts.Tokens {
		r := Range{from, min(from+opts.Tokens, c.Vocab)}
		if err := m.tilesOf(ctx, groups, states.Shape[0], r, &opts, visit); err != nil {
			return err
		}
	}
	for _, p := range m.weights.bind[Place{SlotUnembed, -1}] {
		m.weights.src.Release(p.Tensor)
	}
	return nil
}

// tileSize cuts n into equal pieces of at most the asked size, rounded up for vector instructions.
func tileSize(n, asked, usual int) int {
	if asked <= 0 {
		asked = usual
	}
	if n <= asked {
		return max(1, n)
	}
	pieces := (n + asked - 1) / asked
	const lanes = 32
	return min(asked, ((n+pieces-1)/pieces+lanes-1)/lanes*lanes)
}

// stateGroups sends the states to the device, Rows at a time, and applies the final norm unless Raw is set.
func (m *Model) stateGroups(states *Tensor, opts *TileOptions) (groups []*tensors.Tensor, err error) {
	n, d := states.Shape[0], m.Config.Width
	size := opts.Rows
	if n <= size {
		size = roundUp(n)
	}
	for from := 0; from < n; from += opts.Rows {
		padded := make([]float32, size*d)
		copy(padded, states.Data[from*d:min(from+opts.Rows, n)*d])
		x, err := upload(m.backend, padded, size, d)
		if err != nil {
			return groups, err
		}
		if !opts.Raw {
			final, err := m.finalOf(x)
			free(x)
			if err != nil {
				return groups, err
			}
			x = final
		}
		groups = append(groups, x)
	}
	return groups, nil
}

// tilesOf visits the tiles of all n states for a range of the vocabulary.
func (m *Model) tilesOf(
	ctx context.Context, groups []*tensors.Tensor, n int, r Range, opts *TileOptions, visit func(*Tile) error,
) error {
	list := m.unembedding(r, opts.Raw)
	args := values{}
	if err := m.weights.load(args, list, -1, false); err != nil {
		return err
	}
	defer func() {
		if !opts.Keep {
			m.weights.drop(list, -1)
		}
	}()
	for i, x := range groups {
		if err := context.Cause(ctx); err != nil {
			return fmt.Errorf("stopped at token %d of %d: %w", r.From, m.Config.Vocab, err)
		}
		args["x"] = x
		out, err := m.compute(m.tileRecipe(list, opts), args)
		if err != nil {
			return err
		}
		first := i * opts.Rows
		err = visitTile(out, first, r.From, min(opts.Rows, n-first), visit)
		for _, t := range out {
			free(t)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// visitTile hands a tile on without copying it where host and device share memory.
func visitTile(out values, row, token, rows int, visit func(*Tile) error) error {
	tile := Tile{Row: row, Token: token}
	if t := out["lse"]; t != nil {
		lse, err := download(t)
		if err != nil {
			return err
		}
		tile.LogSumExp = lse.Data[:rows]
	}
	var failed error
	err := tensors.ConstFlatData(out["y"], func(flat []float32) {
		tokens := out["y"].Shape().Dim(1)
		tile.Logits = &Tensor{Shape: []int{rows, tokens}, Data: flat[:rows*tokens]}
		failed = visit(&tile)
	})
	if err != nil {
		return fmt.Errorf("read logits from the device: %w", err)
	}
	return failed
}

func (m *Model) tileRecipe(list []weight, opts *TileOptions) recipe {
	r := recipe{
		key:    fmt.Sprint("unembed tile ", names(list), opts.Raw, opts.LogSumExp),
		inputs: append([]string{"x"}, names(list)...), outputs: []string{"y"},
	}
	if opts.LogSumExp {
		r.outputs = append(r.outputs, "lse")
	}
	r.build = func(in nodes) nodes {
		y := m.Config.logitGraph(in["x"], in)
		if !opts.Raw {
			y = softcap(y, m.Config.LogitSoftcap)
		}
		if !opts.LogSumExp {
			return nodes{"y": y}
		}
		top := ReduceMax(y, -1)
		sum := ReduceSum(Exp(Sub(y, InsertAxes(top, -1))), -1)
		return nodes{"y": y, "lse": Add(top, Log(sum))}
	}
	return r
}
