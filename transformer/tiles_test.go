package transformer_test

import (
	"context"
	"errors"
	"math"
	"testing"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// statesOf are n different states of a model's width.
func statesOf(m *transformer.Model, n int) *transformer.Tensor {
	x := transformer.NewTensor(n, m.Config.Width)
	for i := range x.Data {
		x.Data[i] = float32(math.Sin(float64(3*i+1))) * float32(1+i%5)
	}
	return x
}

// TestUnembedTiles: tiles of any size, put together, are what Unembed gives, and their LogSumExp adds up. The models
// have a bias-free head, a softcap, a narrower unembedding and a head of their own.
func TestUnembedTiles(t *testing.T) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		for _, family := range []string{"llama", "gemma2", "opt", "bert", "phi"} {
			t.Run(family, func(t *testing.T) {
				m := readGolden(t, "../testdata/goldens/"+family).open(t, be, loader.Options{})
				x := statesOf(m, 11)
				for _, opts := range []transformer.TileOptions{
					{Raw: true},
					{},
					{Rows: 4, Tokens: 40, LogSumExp: true},
					{Raw: true, Rows: 4, Tokens: 40, LogSumExp: true, Keep: true},
				} {
					checkTiles(t, m, x, opts)
				}
			})
		}
	})
}

func checkTiles(t *testing.T, m *transformer.Model, x *transformer.Tensor, opts transformer.TileOptions) {
	t.Helper()
	want, err := m.Unembed(x, opts.Raw)
	if err != nil {
		t.Fatal(err)
	}
	got := transformer.NewTensor(want.Shape...)
	sums := make([]float64, x.Shape[0])
	last, covered := -1, 0
	err = m.UnembedTiles(t.Context(), x, opts, func(tile *transformer.Tile) error {
		if tile.Token < last {
			t.Errorf("tile from token %d after %d", tile.Token, last)
		}
		last = tile.Token
		if (tile.LogSumExp != nil) != opts.LogSumExp {
			t.Errorf("LogSumExp is %v", tile.LogSumExp)
		}
		for i := range tile.Logits.Shape[0] {
			covered += copy(got.At(tile.Row + i).Data[tile.Token:], tile.Logits.At(i).Data)
			if opts.LogSumExp {
				sums[tile.Row+i] += math.Exp(float64(tile.LogSumExp[i]))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if covered != len(want.Data) {
		t.Errorf("tiles have %d logits of %d", covered, len(want.Data))
	}
	for i, v := range got.Data {
		if d := math.Abs(float64(v - want.Data[i])); !(d <= 1e-5*max(1, math.Abs(float64(want.Data[i])))) {
			t.Fatalf("%+v: logit %d is %v, want %v", opts, i, v, want.Data[i])
		}
	}
	for i := range sums {
		if !opts.LogSumExp {
			break
		}
		sum := 0.0
		for _, v := range want.At(i).Data {
			sum += math.Exp(float64(v))
		}
		if math.Abs(math.Log(sums[i])-math.Log(sum)) > 1e-5 {
			t.Errorf("row %d: log of the sum %g, want %g", i, math.Log(sums[i]), math.Log(sum))
		}
	}
}

// TestUnembedTilesRelease: without Keep no piece of the unembedding stays on the device, and nothing is compiled for a
// second set of states.
func TestUnembedTilesRelease(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := readGolden(t, "../testdata/goldens/gpt2").open(t, be, loader.Options{})
	ignore := func(*transformer.Tile) error { return nil }
	for _, keep := range []bool{false, true} {
		opts := transformer.TileOptions{Raw: true, Keep: keep}
		if err := m.UnembedTiles(t.Context(), statesOf(m, 9), opts, ignore); err != nil {
			t.Fatal(err)
		}
		if on := m.OnDevice()[-1]; (on > 0) != keep {
			t.Errorf("keep %v: %d weights of the head on the device", keep, on)
		}
	}
	programs := m.Programs()
	if err := m.UnembedTiles(t.Context(), statesOf(m, 9), transformer.TileOptions{Raw: true}, ignore); err != nil {
		t.Fatal(err)
	}
	if m.Programs() != programs {
		t.Errorf("%d programs, then %d", programs, m.Programs())
	}
}

func TestUnembedTilesRefuse(t *testing.T) {
	be := backendtest.Open(t, "go")
	m := readGolden(t, "../testdata/goldens/gpt2").open(t, be, loader.Options{})
	ignore := func(*transformer.Tile) error { return nil }
	wrong := transformer.NewTensor(2, m.Config.Width+1)
	if err := m.UnembedTiles(t.Context(), wrong, transformer.TileOptions{}, ignore); err == nil {
		t.Error("states of another width were taken")
	}
	stop := errors.New("stop")
	calls := 0
	err := m.UnembedTiles(t.Context(), statesOf(m, 3), transformer.TileOptions{Tokens: 32}, func(*transformer.Tile) error {
		calls++
		return stop
	})
	if !errors.Is(err, stop) || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(stop)
	if err := m.UnembedTiles(ctx, statesOf(m, 3), transformer.TileOptions{}, ignore); !errors.Is(err, stop) {
		t.Errorf("cancelled: %v", err)
	}
	if err := m.UnembedTiles(t.Context(), transformer.NewTensor(0, m.Config.Width), transformer.TileOptions{}, ignore); err != nil {
		t.Errorf("no states: %v", err)
	}
}
