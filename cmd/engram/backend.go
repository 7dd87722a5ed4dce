package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/backend"
	"github.com/engram-go/engram/internal/native"
)

// backendResult is what multiplies on this machine.
type backendResult struct {
	Backends []backend.Status    `json:"backends"`
	Used     string              `json:"used"` // what --backend, or the environment, opens
	Check    backend.CheckResult `json:"check"`
	Rule     string              `json:"rule"`
}

// smallWork is the number of multiply-adds, tokens × parameters, up to which auto takes the Go backend although XLA is
// there: XLA has to load its plugin and to compile before it computes anything. Whole commands on 2 cores, in seconds:
//
//	model, parameters    tokens    work     XLA    Go with SIMD    Go without
//	stories, 0.26 M          14    4e6     0.28            0.04          0.03
//	stories, 0.26 M         500    1e8     0.53            0.27          0.30
//	facts-a, 4.4 M          120    5e8     0.35            0.20          0.22
//	GPT-2 shape, 17 M        32    6e8     0.35            0.15          0.22
//	GPT-2 small, 124 M        8    1e9     0.72            0.52          0.77
//	GPT-2 shape, 17 M       120    2e9     0.40            0.18          0.45
//	GPT-2 small, 124 M      120    1e10    1.36            1.33          4.14
//
// The bound is where the build without SIMD, which go install gives, begins to lose.
const smallWork = 1e9

// preferred names the backend that auto opens for work of that size.
func preferred(work int64) string {
	if work <= smallWork {
		return backend.Go
	}
	return backend.Auto
}

func (a *app) backendCommand() *cobra.Command {
	return a.command("backend [flags]", "what can multiply on this machine, and whether it does so rightly",
		"backend opens every backend for a moment, says which one would be used, and compares a matrix product on it with\n"+
			"one in plain Go.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			out := &backendResult{Backends: backend.List(), Rule: backendRule()}
			be, info, err := backend.Open(a.flags.backend)
			if err != nil {
				return err
			}
			defer be.Finalize()
			a.announce(info)
			out.Used = info.Name
			if out.Check, err = backend.Check(cmd.Context(), be); err != nil {
				return err
			}
			conventions := map[string]string{"check": "product of two square float32 matrices against one in float64"}
			return a.print("backend", out, conventions, func(p *page) { writeBackends(p, out) })
		})
}

func writeBackends(p *page, out *backendResult) {
	t := &table{header: []string{"backend", "", ""}}
	for _, s := range out.Backends {
		switch {
		case s.Available:
			t.add(s.Name, "available", fmt.Sprintf("%s, %s", safe(s.Description), safe(strings.Join(s.Devices, "; "))))
		default:
			t.add(s.Name, "not here", oneLine(s.Reason)+" ("+oneLine(s.Hint)+")")
		}
	}
	p.table(t)
	p.printf("\nused: %s\n", out.Used)
	p.printf("rule: %s\n", out.Rule)
	p.printf("check: product of two %d×%d matrices in %d runs, %.0f GFLOP/s, largest error %.1e\n",
		out.Check.Size, out.Check.Size, out.Check.Runs, out.Check.GFLOPS, out.Check.MaxError)
}

func (a *app) setupCommand() *cobra.Command {
	var cuda bool
	cmd := a.command("setup [flags]", "install XLA, which makes everything faster",
		"setup puts XLA's CPU plugin, with --cuda also the one for NVIDIA GPUs, into the user's cache folder\n"+
			"($ENGRAM_CACHE moves it). A second run finds it there and does nothing.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error {
			parts := []native.Part{native.XLACPU}
			if cuda {
				parts = append(parts, native.XLACUDA)
			}
			var out struct {
				Installed map[string]string `json:"installed"`
			}
			out.Installed = map[string]string{}
			for _, part := range parts {
				path, err := native.Ensure(cmd.Context(), part, native.Options{Progress: a.progress()})
				if err != nil {
					return err
				}
				out.Installed[part.String()] = path
			}
			return a.print("setup", out, nil, func(p *page) {
				for _, part := range parts {
					p.printf("%s: %s\n", part, safe(out.Installed[part.String()]))
				}
			})
		})
	cmd.Flags().BoolVar(&cuda, "cuda", false, "install the CUDA plugin too")
	return cmd
}

// backendRule says in words what preferred does.
func backendRule() string {
	return fmt.Sprintf("auto takes the Go backend up to %.0e tokens × parameters, else the first that opens of %s",
		float64(smallWork), strings.Join(backend.Names(), ", "))
}
