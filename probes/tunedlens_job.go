package probes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"strconv"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/safetensors"
)

// count is the number of tokens of rows.
func count(rows [][]int) int {
	n := 0
	for _, row := range rows {
		n += len(row)
	}
	return n
}

// batches cuts rows into groups of about so many tokens.
func batches(rows [][]int, tokens int) [][][]int {
	var out [][][]int
	from, n := 0, 0
	for i, row := range rows {
		if n += len(row); n >= tokens || i == len(rows)-1 {
			out = append(out, rows[from:i+1])
			from, n = i+1, 0
		}
	}
	return out
}

// shuffled gives rows in an order that a seed settles, round after round, each round in another one.
type shuffled struct {
	rows  [][]int
	seed  int64
	round uint64
	left  []int
}

// next are the next rows that hold at least so many tokens.
func (s *shuffled) next(tokens int) [][]int {
	var out [][]int
	for n := 0; n < tokens; {
		if len(s.left) == 0 {
			s.left = rand.New(rand.NewPCG(uint64(s.seed), s.round)).Perm(len(s.rows))
			s.round++
		}
		row := s.rows[s.left[0]]
		s.left = s.left[1:]
		out, n = append(out, row), n+len(row)
	}
	return out
}

// jobSchema is the schema of the file that keeps a training job.
const jobSchema = "engram.lens.job"

// keep writes the job's file.
func (t *tuning) keep(ctx context.Context) error {
	if t.opts.Checkpoint == "" || t.step == 0 {
		return nil
	}
	items := t.lens.items("")
	for i, v := range t.momentum {
		items = append(items, safetensors.Item{
			Name: "momentum." + strconv.Itoa(i), DType: safetensors.F32, Shape: []int{len(v)},
			WriteData: func(w io.Writer) error { return writeFloats(w, v) },
		})
	}
	meta := map[string]string{"schema": jobSchema, "job": t.identity, "step": strconv.Itoa(t.step)}
	fill := func(w io.Writer) error { return safetensors.Write(w, items, meta) }
	return atomicfile.Write(ctx, t.opts.Checkpoint, fill, atomicfile.Options{Replace: true})
}

// resume takes up the job where its file left it. Another job's file is an error, and stays.
func (t *tuning) resume() error {
	if t.opts.Checkpoint == "" {
		return nil
	}
	if _, err := os.Stat(t.opts.Checkpoint); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	f, err := safetensors.Open(t.opts.Checkpoint)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Metadata["schema"] != jobSchema || f.Metadata["job"] != t.identity {
		return fmt.Errorf("%w: %s keeps another job; remove it or finish that one", ErrLensJob, t.opts.Checkpoint)
	}
	step, err := strconv.Atoi(f.Metadata["step"])
	if err != nil || step < 0 || step > t.opts.Steps {
		return fmt.Errorf("%w: %s stands at step %q", ErrLens, t.opts.Checkpoint, f.Metadata["step"])
	}
	kept := &Translators{}
	if err := kept.read(f, "", t.m.Config.Width); err != nil {
		return err
	}
	if len(kept.Maps) != len(t.lens.Maps) {
		return fmt.Errorf("%w: %s has %d maps of %d", ErrLens, t.opts.Checkpoint, len(kept.Maps), len(t.lens.Maps))
	}
	for i := range t.lens.Maps {
		p := &t.lens.Maps[i]
		from := kept.of(p.Site, p.Layer)
		if from == nil {
			return fmt.Errorf("%w: %s has no map for %s of layer %d", ErrLens, t.opts.Checkpoint, p.Site, p.Layer)
		}
		p.Affine = from.Affine
		if t.momentum[i], err = readFloats(f, "momentum."+strconv.Itoa(i), len(t.momentum[i])); err != nil {
			return err
		}
	}
	t.step = step
	return nil
}

// ErrLensJob is wrapped when the file that should keep a training job keeps another one.
var ErrLensJob = errors.New("another job")
