// Command bench times the engine beside eager PyTorch on the same checkpoint in one run and prints the ratios.
//
// Times on shared machines drift, so engram and the peer take turns, round by round, and the figure is the ratio of the
// medians. It needs python3 with torch and transformers; the checkpoint is a random one of GPT-2 small's shape, made on
// the first run.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

func main() {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	var o options
	flag.StringVar(&o.dir, "dir", filepath.Join(cache, "engram", "bench"), "folder for the checkpoints")
	flag.IntVar(&o.threads, "threads", 2, "threads of either side")
	flag.IntVar(&o.rounds, "rounds", 7, "turns of each side")
	flag.StringVar(&o.only, "only", "",
		"jobs whose name contains this; or loading: memory and start-up, index, triggers, routes, editing,\n"+
			"or \"editing WORDS\": its jobs whose name contains the words")
	flag.StringVar(&o.backend, "backend", backend.XLACPU, "backend")
	flag.StringVar(&o.rome, "rome", "", "checkout of kmeng01/rome, for editing")
	flag.StringVar(&o.facts, "facts", filepath.Join("..", "shared", "checkpoints", "facts-a"),
		"checkpoint that knows facts, with those that are traced and edited, for editing")
	flag.Parse()
	runtime.GOMAXPROCS(o.threads)
	if err := bench(&o); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	dir, only, backend, rome, facts string
	threads, rounds                 int
}

// job is one comparison.
type job struct {
	name  string
	bound float64 // the ratio to stay below
	peer  string  // line for the peer; empty: the first function is the peer
	ours  func(*transformer.Model) (func() error, error)
	other func(*transformer.Model) (func() error, error)
	same  func(*transformer.Model, *peer) error // compares results; nil where times are all
}

func jobs() []job {
	return []job{
		{name: "forward 10x64", bound: 1.1, peer: "forward 10 64", ours: forward(10, 64)},
		{name: "forward 1x64", bound: 1.2, peer: "forward 1 64", ours: forward(1, 64)},
		{name: "forward + VJP 10x32", bound: 1.2, peer: "gradient 10 32", ours: gradient(10, 32)},
		{name: "forward + VJP 1x64", bound: 1.3, peer: "gradient 1 64", ours: gradient(1, 64)},
		{
			name: "knowledge neurons behind 32 tokens", bound: 0.33, ours: knowledge, same: sameKnowledge,
			peer: fmt.Sprintf("knowledge %d %d", knowledgeTokens, knowledgeSteps),
		},
		{
			name: "EAP of 1x64, runs and gradient, against a forward of the pair", bound: 2.5, ours: eapRuns(64),
			other: forward(2, 64),
		},
		{
			name: "EAP of 1x64, all 32,491 edges, against a forward of the pair", bound: 3.5, ours: eap(64),
			other: forward(2, 64),
		},
		{name: "resume (L/2,T/2) of 10x64, against a full run", bound: 0.35, ours: resume(10, 64), other: forward(10, 64)},
	}
}

func bench(o *options) error {
	be, _, err := backend.Open(o.backend)
	if err != nil {
		return err
	}
	folder := filepath.Join(o.dir, "gpt2-small")
	switch o.only {
	case "loading":
		return loading(filepath.Join(o.dir, "gpt2-4gib"))
	case "routes":
		return routesFigures(be, folder, o.threads, o.rounds)
	case "index":
		return index(be, filepath.Join(o.dir, "gpt2-medium"), o.threads)
	case "triggers":
		return triggersBench(be, folder, o.threads, o.rounds)
	}
	if words, ok := strings.CutPrefix(o.only, "editing"); ok {
		return editingFigures(be, folder, strings.TrimSpace(words), o)
	}
	if err := compareAll(be, folder, &small, jobs(), o); err != nil {
		return err
	}
	stories := []job{{
		name: "200 greedy tokens of stories260K", bound: 1, peer: "generate 200 1 403 407 261 378", ours: generate(200),
	}}
	return compareAll(be, filepath.Join("loader", "embedded", "stories"), nil, stories, o)
}

// compareAll runs the jobs on one checkpoint.
func compareAll(be compute.Backend, dir string, shape *gpt2, list []job, o *options) error {
	list = slices.DeleteFunc(list, func(j job) bool { return !strings.Contains(j.name, o.only) })
	if len(list) == 0 {
		return nil
	}
	if shape != nil {
		if err := makeCheckpoint(dir, *shape); err != nil {
			return err
		}
	}
	m, err := loader.Open(context.Background(), dir, loader.Options{Backend: be})
	if err != nil {
		return err
	}
	var p *peer
	if slices.ContainsFunc(list, func(j job) bool { return j.peer != "" }) {
		if p, err = startPeer("peer.py", o.threads, dir); err != nil {
			return errors.Join(err, m.Close())
		}
	}
	for _, j := range list {
		err := compare(m, p, j, o.rounds)
		if err == nil && j.same != nil {
			err = j.same(m, p)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", j.name, err), p.stop(), m.Close())
		}
	}
	return errors.Join(p.stop(), m.Close())
}

// A turn begins when the other side's worker threads, which spin for a while after their work, are asleep: a pause, one
// call that is not counted, and the calls that are. A call that takes long is all of a turn.
const (
	pause   = 300 * time.Millisecond
	perTurn = 3
	long    = 1.0 // seconds
	warmUp  = 10 * time.Second
)

func turn(times []float64, call func() (float64, error)) ([]float64, error) {
	time.Sleep(pause)
	for i := range 1 + perTurn {
		t, err := call()
		if err != nil {
			return nil, err
		}
		if i > 0 || t > long {
			times = append(times, t)
		}
		if t > long {
			break
		}
	}
	return times, nil
}

// compare takes turns and prints one line.
func compare(m *transformer.Model, p *peer, j job, rounds int) error {
	ours, err := j.ours(m)
	if err != nil {
		return err
	}
	theirs := func() (float64, error) { return p.time(j.peer) }
	if j.other != nil {
		other, err := j.other(m)
		if err != nil {
			return err
		}
		theirs = func() (float64, error) { return seconds(other) }
	}
	first, err := seconds(ours) // compiles
	if err != nil {
		return err
	}
	if _, err := theirs(); err != nil {
		return err
	}
	for start := time.Now(); time.Since(start) < warmUp; { // programs for shapes that have proved worth it
		if err := ours(); err != nil {
			return err
		}
	}
	var a, b []float64
	for range rounds {
		if a, err = turn(a, func() (float64, error) { return seconds(ours) }); err != nil {
			return err
		}
		if b, err = turn(b, theirs); err != nil {
			return err
		}
	}
	slices.Sort(a)
	slices.Sort(b)
	ratio := a[len(a)/2] / b[len(b)/2]
	verdict := "ok"
	if ratio > j.bound {
		verdict = "over"
	}
	fmt.Printf("%-48s engram %8.1f ms  peer %8.1f ms  ratio %.2f (bound %.2f, %s)  least %.1f / %.1f  first call %.2f s\n",
		j.name, 1e3*a[len(a)/2], 1e3*b[len(b)/2], ratio, j.bound, verdict, 1e3*a[0], 1e3*b[0], first)
	return nil
}

func seconds(f func() error) (float64, error) {
	start := time.Now()
	err := f()
	return time.Since(start).Seconds(), err
}

func rows(m *transformer.Model, b, t int) [][]int {
	out := make([][]int, b)
	for r := range out {
		for i := range t {
			out[r] = append(out[r], (i*7919+r*104729)%m.Config.Vocab)
		}
	}
	return out
}

func forward(b, t int) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}
		return func() error {
			r, err := m.Run(context.Background(), rows(m, b, t), capture)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = r.Tensor(transformer.Logits, -1)
			return err
		}, nil
	}
}

func gradient(b, t int) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		return func() error {
			ctx := context.Background()
			r, err := m.Run(ctx, rows(m, b, t), transformer.Capture{Cuts: true})
			if err != nil {
				return err
			}
			defer r.Close()
			g, err := m.Gradient(ctx, r, transformer.LogitDiff(7, 11), transformer.GradientOptions{
				Sites: []transformer.Site{transformer.ResidPre}, Layers: []int{0},
			})
			if err != nil {
				return err
			}
			defer g.Close()
			_, err = g.Tensor(transformer.ResidPre, 0)
			return err
		}, nil
	}
}

func resume(b, t int) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		ctx := context.Background()
		base, err := m.Run(ctx, rows(m, b, t), transformer.Capture{Base: true})
		if err != nil {
			return nil, err
		}
		capture := transformer.Capture{Sites: []transformer.Site{transformer.Logits}, Positions: []int{-1}}
		return func() error {
			r, err := m.Resume(ctx, base, transformer.From{Layer: m.Config.Layers / 2, Position: t / 2}, capture)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = r.Tensor(transformer.Logits, -1)
			return err
		}, nil
	}
}

func generate(n int) func(*transformer.Model) (func() error, error) {
	return func(m *transformer.Model) (func() error, error) {
		return func() error {
			prompt := [][]int{{1, 403, 407, 261, 378}} // Once upon a time
			_, err := m.Generate(context.Background(), prompt, transformer.GenerateOptions{MaxTokens: n})
			return err
		}, nil
	}
}

// peer is a running peer.py.
type peer struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// startPeer starts a script of this folder. Its arguments are the folders and the number of threads.
func startPeer(script string, threads int, dirs ...string) (*peer, error) {
	args := append(append([]string{filepath.Join("bench", script)}, dirs...), strconv.Itoa(threads))
	cmd := exec.Command("python3", args...)
	cmd.Env = append(os.Environ(), fmt.Sprint("OMP_NUM_THREADS=", threads), fmt.Sprint("MKL_NUM_THREADS=", threads))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &peer{cmd, in, bufio.NewScanner(out)}
	if !p.out.Scan() {
		err := errors.New("the peer did not start; it needs python3 with torch and transformers")
		return nil, errors.Join(err, cmd.Wait())
	}
	fmt.Println("peer:", p.out.Text())
	return p, nil
}

func (p *peer) time(line string) (float64, error) {
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		return 0, err
	}
	if !p.out.Scan() {
		return 0, errors.New("the peer stopped")
	}
	return strconv.ParseFloat(p.out.Text(), 64)
}

func (p *peer) stop() error {
	if p == nil {
		return nil
	}
	return errors.Join(p.in.Close(), p.cmd.Wait())
}
