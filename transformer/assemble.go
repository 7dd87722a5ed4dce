package transformer

import (
	"encoding/binary"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"

	"github.com/gomlx/compute/dtypes"
	"github.com/gomlx/compute/shapes"
	"github.com/gomlx/gomlx/core/tensors"

	"github.com/engram-go/engram/internal/half"
)

// send joins a weight's parts on the host, widened to float32, straight into device memory where the backend shares
// it. Widening happens here, in parallel, because inside an XLA CPU program it runs at 1 GB/s.
func (w *weightStore) send(wt weight, layer int, back bool) (*tensors.Tensor, error) {
	dims := []int{wt.out}
	switch {
	case wt.kind == stacked:
		dims = []int{w.cfg.FFN.Experts, wt.in, wt.out}
	case wt.kind == matrix && back:
		dims = []int{wt.out, wt.in}
	case wt.kind == matrix:
		dims = []int{wt.in, wt.out}
	}
	t, err := tensors.FromShapeForBackend(w.be, 0, shapes.Make(dtypes.Float32, dims...))
	if err != nil {
		return nil, fmt.Errorf("layer %d: no device memory for %s %v: %w", layer, wt.name, dims, err)
	}
	var failed error
	err = tensors.MutableFlatData(t, func(flat []float32) { failed = w.fill(flat, wt, layer, back) })
	if err == nil && failed == nil {
		err = t.ToDevice(w.be, 0)
	}
	if failed != nil {
		err = failed
	}
	if err != nil {
		free(t)
		return nil, fmt.Errorf("layer %d: %s: %w", layer, wt.name, err)
	}
	return t, nil
}

// fill writes a weight's values.
func (w *weightStore) fill(dst []float32, wt weight, layer int, back bool) error {
	offset := 0
	for i, s := range wt.slots {
		for e, p := range wt.parts(w.bind[Place{s, layer}]) {
			raw, err := w.src.Tensor(p.Tensor)
			if err != nil {
				return err
			}
			if !slices.Equal(raw.Shape, p.Shape) {
				return fmt.Errorf("tensor %q: want shape %v, got %v", p.Tensor, p.Shape, raw.Shape)
			}
			c := copier{raw: raw, part: p}
			switch wt.kind {
			case vector:
				c.vector(dst[offset:])
			case stacked:
				c.matrix(dst[e*wt.in*wt.out:(e+1)*wt.in*wt.out], wt.in, wt.out, 0)
			case matrix:
				if back {
					c.transposed(dst, wt.in, offset)
				} else {
					c.matrix(dst, wt.in, wt.out, offset)
				}
			}
			if w.stream {
				w.src.Release(p.Tensor)
			}
			if wt.kind != stacked {
				offset += p.outs()
			}
		}
		if len(w.bind[Place{s, layer}]) == 0 { // an absent bias beside present ones is zero
			offset += wt.outs[i]
		}
	}
	if wt.kind == matrix && wt.slots[0] == SlotDown {
		w.change(dst, layer, wt.in, wt.out, back)
	}
	return nil
}

// copier moves one part of a stored tensor into float32 memory.
type copier struct {
	raw  RawTensor
	part Part
}

// outRanges are the output features taken.
func (c *copier) outRanges() []Range {
	if c.part.Out != nil {
		return c.part.Out
	}
	return []Range{{0, c.part.outs()}}
}

func (c *copier) vector(dst []float32) {
	for _, r := range c.outRanges() {
		widenTo(dst[:r.To-r.From], c.raw, r.From)
		dst = dst[r.To-r.From:]
	}
}

// matrix writes the part as columns offset… of dst [in,width].
func (c *copier) matrix(dst []float32, in, width, offset int) {
	if c.part.InOut {
		c.columns(dst, in, width, offset)
		return
	}
	c.eachBlock(func(row []float32, from, at int) {
		// Rows of the file are columns of dst: go through them in tiles that stay in the cache.
		n := len(row) / in
		for i := range in {
			line := dst[i*width+offset+at : i*width+offset+at+n]
			for o := range line {
				line[o] = row[o*in+i]
			}
		}
	}, in)
}

// columns copies an [in,out] tensor whose rows are already in order.
func (c *copier) columns(dst []float32, in, width, offset int) {
	total := c.part.Shape[1]
	parallel(in, func(from, to int) {
		for i := from; i < to; i++ {
			at := i*width + offset
			for _, r := range c.outRanges() {
				widenTo(dst[at:at+r.To-r.From], c.raw, i*total+r.From)
				at += r.To - r.From
			}
		}
	})
}

// transposed writes the part as rows offset… of dst [out,in].
func (c *copier) transposed(dst []float32, in, offset int) {
	if !c.part.InOut {
		c.eachBlock(func(row []float32, from, at int) { copy(dst[(offset+at)*in:], row) }, in)
		return
	}
	total := c.part.Shape[1]
	parallel(in, func(from, to int) {
		row := make([]float32, total)
		for i := from; i < to; i++ {
			widenTo(row, c.raw, i*total)
			at := offset
			for _, r := range c.outRanges() {
				for o := r.From; o < r.To; o++ {
					dst[at*in+i] = row[o]
					at++
				}
			}
		}
	})
}

// eachBlock widens an [out,in] tensor a few rows at a time, in parallel; at is the output feature the rows begin at.
func (c *copier) eachBlock(do func(rows []float32, from, at int), in int) {
	const tile = 16
	type job struct{ from, to, at int }
	var jobs []job
	at := 0
	for _, r := range c.outRanges() {
		for from := r.From; from < r.To; from += tile {
			to := min(from+tile, r.To)
			jobs = append(jobs, job{from, to, at})
			at += to - from
		}
	}
	parallel(len(jobs), func(from, to int) {
		buf := make([]float32, tile*in)
		for _, j := range jobs[from:to] {
			rows := buf[:(j.to-j.from)*in]
			widenTo(rows, c.raw, j.from*in)
			do(rows, j.from, j.at)
		}
	})
}

// parallel splits [0,n) over the processors. A panic of one part is the caller's, and so is a fault: a mapped file may
// have become shorter since it was opened.
func parallel(n int, do func(from, to int)) {
	workers := min(runtime.GOMAXPROCS(0), n)
	failures := make([]any, workers)
	var wg sync.WaitGroup
	for i := range workers {
		wg.Go(func() {
			defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
			defer func() { failures[i] = recover() }()
			do(i*n/workers, (i+1)*n/workers)
		})
	}
	wg.Wait()
	for _, p := range failures {
		if p != nil {
			panic(p)
		}
	}
}

// widenTo converts len(dst) stored values from the element offset on.
func widenTo(dst []float32, raw RawTensor, offset int) {
	switch raw.DType {
	case dtypes.Float32:
		src := raw.Data[4*offset:]
		for i := range dst {
			dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
		}
	case dtypes.BFloat16:
		src := raw.Data[2*offset:]
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(binary.LittleEndian.Uint16(src[2*i:])) << 16)
		}
	default:
		src := raw.Data[2*offset:]
		for i := range dst {
			dst[i] = half.ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))
		}
	}
}
