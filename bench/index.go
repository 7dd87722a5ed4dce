package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/gomlx/compute"
	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
)

// medium is GPT-2 medium's shape: 98,304 memories.
var medium = gpt2{layers: 24, width: 1024, heads: 16, vocab: 50257, context: 1024}

// index builds a projection index of a checkpoint of GPT-2 medium's shape. After every layer, products of square
// matrices take a turn, by XLA and by PyTorch; the figure is the rate of the layers over the larger of the products'
// rates, all of them medians. It says how much memory was resident at most.
func index(be compute.Backend, dir string, threads int) error {
	if err := makeCheckpoint(dir, medium); err != nil {
		return err
	}
	m, err := loader.Open(context.Background(), dir, loader.Options{Backend: be})
	if err != nil {
		return err
	}
	defer m.Close()
	products, err := newProducts(be, threads)
	if err != nil {
		return err
	}
	defer products.close()
	out := filepath.Join(dir, "index.safetensors")
	defer os.Remove(out)
	work := 2e-9 * float64(4*medium.width) * float64(medium.width) * float64(medium.vocab)
	var rates []float64
	var failed error
	start := time.Now()
	_, err = probes.BuildIndex(context.Background(), m, probes.IndexOptions{
		Norm: probes.Raw, Out: out, Replace: true, Progress: func(int, int) {
			rates = append(rates, work/time.Since(start).Seconds())
			if err := products.turn(); err != nil && failed == nil {
				failed = err
			}
			start = time.Now()
		},
	})
	if err != nil {
		return err
	}
	if failed != nil {
		return failed
	}
	mib, _ := resident(os.Getpid())
	ours, xla, torch := median(rates), median(products.xla), median(products.torch)
	fmt.Printf("index of %d values × %d tokens: %.0f GFLOP/s; products %.0f by XLA, %.0f by PyTorch; "+
		"ratio %.2f (bound 0.60); %d MiB resident (bound 2048)\n",
		medium.layers*4*medium.width, medium.vocab, ours, xla, torch, ours/max(xla, torch), mib)
	return nil
}

func median(x []float64) float64 {
	x = slices.Clone(x)
	slices.Sort(x)
	return x[len(x)/2]
}

// products multiplies square matrices by XLA and, in another process, by PyTorch.
type products struct {
	sizes      []*tensors.Tensor
	exec       *graph.Exec
	peer       *exec.Cmd
	in         io.WriteCloser
	out        *bufio.Scanner
	xla, torch []float64 // GFLOP/s of each turn
}

const squares = `import sys, time, torch
torch.set_num_threads(int(sys.argv[1]))
a = {n: torch.rand(n, n) for n in (1024, 2048)}
for line in sys.stdin:
    best = 0
    for n in a:
        torch.mm(a[n], a[n])
        for _ in range(4):
            start = time.perf_counter()
            torch.mm(a[n], a[n])
            best = max(best, 2e-9 * n**3 / (time.perf_counter() - start))
    print(best, flush=True)`

func newProducts(be compute.Backend, threads int) (*products, error) {
	p := &products{peer: exec.Command("python3", "-c", squares, strconv.Itoa(threads))}
	for _, n := range []int{1024, 2048} {
		t, err := tensors.FromShapeForBackend(be, 0, shapes.Make(dtypes.Float32, n, n))
		if err != nil {
			return nil, err
		}
		err = tensors.MutableFlatData(t, func(flat []float32) {
			for i := range flat {
				flat[i] = rand.Float32() - 0.5
			}
		})
		if err != nil {
			return nil, err
		}
		p.sizes = append(p.sizes, t)
	}
	var err error
	if p.exec, err = graph.NewExec(be, func(x *graph.Node) *graph.Node { return graph.Dot(x, x).Product() }); err != nil {
		return nil, err
	}
	p.peer.Stderr = os.Stderr
	if p.in, err = p.peer.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.peer.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewScanner(out)
	if err := p.peer.Start(); err != nil {
		return nil, fmt.Errorf("the peer needs python3 with torch: %w", err)
	}
	return p, nil
}

// turn measures the best rate of a few products of either side.
func (p *products) turn() error {
	best := 0.0
	for _, x := range p.sizes {
		n := float64(x.Shape().Dim(0))
		for i := range 5 {
			start := time.Now()
			got, err := p.exec.Call(x)
			if err != nil {
				return err
			}
			if err := tensors.ConstFlatData(got[0], func([]float32) {}); err != nil {
				return err
			}
			if i > 0 {
				best = max(best, 2e-9*n*n*n/time.Since(start).Seconds())
			}
			_ = got[0].FinalizeAll()
		}
	}
	p.xla = append(p.xla, best)
	time.Sleep(pause)
	if _, err := fmt.Fprintln(p.in); err != nil {
		return err
	}
	if !p.out.Scan() {
		return fmt.Errorf("the peer stopped; it needs python3 with torch")
	}
	rate, err := strconv.ParseFloat(p.out.Text(), 64)
	p.torch = append(p.torch, rate)
	time.Sleep(pause)
	return err
}

func (p *products) close() {
	_ = p.in.Close()
	_ = p.peer.Wait()
	p.exec.Finalize()
}
