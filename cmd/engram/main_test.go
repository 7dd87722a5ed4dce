package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader/embedded"
)

// TestMain lets the test binary be the command, for scripts and for tests that need a process.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"engram": main})
}

// backends are those that scripts run on; "" in ENGRAM_TEST_BACKENDS means the Go backend, which is everywhere.
func backends() []string {
	if list := os.Getenv("ENGRAM_TEST_BACKENDS"); list != "" {
		return strings.Split(list, ",")
	}
	return []string{"go"}
}

func TestScripts(t *testing.T) {
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		t.Fatal(err)
	}
	for _, be := range backends() {
		t.Run(be, func(t *testing.T) {
			testscript.Run(t, testscript.Params{
				Files: scripts(t),
				Setup: func(env *testscript.Env) error {
					env.Setenv("ENGRAM_BACKEND", be)
					env.Setenv("ROOT", root)
					if name := filepath.Base(env.WorkDir); !slices.Contains(ownFlags, strings.TrimPrefix(name, "script-")) {
						env.Setenv(backendtest.FlagsEnv, backendtest.QuickFlags)
					}
					if cache, err := os.UserCacheDir(); err == nil {
						env.Setenv("ENGRAM_CACHE", filepath.Join(cache, "engram"))
					}
					if cache := os.Getenv("ENGRAM_CACHE"); cache != "" {
						env.Setenv("ENGRAM_CACHE", cache)
					}
					if err := writeEdited(filepath.Join(env.WorkDir, "edited")); err != nil {
						return err
					}
					return writeHostile(filepath.Join(env.WorkDir, "hostile"))
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){
					"field": fieldCommand, "shape": shapeCommand, "clean": cleanCommand, "same": sameCommand,
				},
				// [xla]: the script runs on XLA. [both]: it runs on the Go backend and on XLA, which is for what depends on
				// it; what takes long stops on one of them.
				Condition: func(name string) (bool, error) {
					switch name {
					case "xla":
						return strings.HasPrefix(be, "xla"), nil
					case "both":
						return len(backends()) > 1, nil
					}
					return false, fmt.Errorf("unknown condition %q", name)
				},
				RequireExplicitExec: true,
			})
		})
	}
}

// short are the scripts that run under the race detector and without cgo, too: one of each kind of command.
var short = []string{"tokens", "predict", "generate", "memories", "triggers", "edit_files", "trace_bad", "hostile", "other"}

// ownFlags are the scripts that run with XLA's own flags: a forward, its captures, and a search with gradients.
var ownFlags = []string{"predict", "memories", "edit"}

// scripts are the files of the scripts to run.
func scripts(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "script", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(files, func(path string) bool {
		return testing.Short() && !slices.Contains(short, strings.TrimSuffix(filepath.Base(path), ".txtar"))
	})
}

// writeEdited makes a checkpoint that differs from the embedded one in one memory: the value of L3N12 is three times as
// long and turned around.
func writeEdited(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range embedded.Files("stories") {
		if name == "model.safetensors" {
			f, err := safetensors.New(name, data)
			if err != nil {
				return err
			}
			e, ok := f.Lookup("model.layers.3.mlp.down_proj.weight") // [d,D]
			if !ok {
				return fmt.Errorf("%s has no values", name)
			}
			data = bytes.Clone(data)
			for i := range e.Shape[0] {
				at := data[int(f.DataStart)+int(e.Begin)+4*(i*e.Shape[1]+12):]
				x := math.Float32frombits(binary.LittleEndian.Uint32(at))
				binary.LittleEndian.PutUint32(at, math.Float32bits(-3*x))
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// writeHostile makes a checkpoint whose tokens hold control sequences: the embedded one with other texts.
func writeHostile(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range embedded.Files("stories") {
		if name == "tokenizer.json" {
			var tree map[string]any
			if err := json.Unmarshal(data, &tree); err != nil {
				return err
			}
			model := tree["model"].(map[string]any)
			vocab := model["vocab"].(map[string]any)
			vocab["▁\x1b[2J\x1b]0;gone\x07"] = vocab["▁Lily"]
			delete(vocab, "▁Lily")
			vocab["▁\u202e\u200bevil"] = vocab["▁was"]
			delete(vocab, "▁was")
			model["merges"] = []any{}
			var err error
			if data, err = json.Marshal(tree); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// fieldCommand is "field PATH WANT": a value of the JSON on the last command's output. PATH is keys and indices joined
// by dots, "len" at its end the number of elements; WANT is a JSON value, "~0.93" a number to within 0.001, or "*".
func fieldCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: field PATH WANT")
	}
	var value any
	if err := json.Unmarshal([]byte(ts.ReadFile("stdout")), &value); err != nil {
		ts.Fatalf("the output is not one JSON value: %v", err)
	}
	for _, key := range strings.Split(args[0], ".") {
		value = step(ts, value, key, neg)
	}
	if ok := matches(value, args[1]); ok == neg {
		ts.Fatalf("%s is %v, want %s (negated: %t)", args[0], value, args[1], neg)
	}
}

func step(ts *testscript.TestScript, value any, key string, neg bool) any {
	switch v := value.(type) {
	case map[string]any:
		x, ok := v[key]
		if !ok && !neg {
			ts.Fatalf("no field %q", key)
		}
		return x
	case []any:
		if key == "len" {
			return float64(len(v))
		}
		i, err := strconv.Atoi(key)
		if err != nil || i >= len(v) {
			ts.Fatalf("no element %q of %d", key, len(v))
		}
		return v[i]
	}
	return nil
}

func matches(value any, want string) bool {
	if want == "*" {
		return value != nil
	}
	if about, ok := strings.CutPrefix(want, "~"); ok {
		x, err := strconv.ParseFloat(about, 64)
		got, isNumber := value.(float64)
		return err == nil && isNumber && math.Abs(got-x) < 1e-3*math.Max(1, math.Abs(x))
	}
	var x any
	if err := json.Unmarshal([]byte(want), &x); err != nil {
		x = want
	}
	a, _ := json.Marshal(value)
	b, _ := json.Marshal(x)
	return bytes.Equal(a, b)
}

// shapeCommand is "shape FILE TENSOR WANT": the dtype and shape of a tensor, as "F32[2,3]".
func shapeCommand(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 3 {
		ts.Fatalf("usage: shape FILE TENSOR WANT")
	}
	f, err := safetensors.Open(ts.MkAbs(args[0]))
	ts.Check(err)
	defer f.Close()
	e, ok := f.Lookup(args[1])
	if !ok {
		if neg {
			return
		}
		ts.Fatalf("%s has no %s", args[0], args[1])
	}
	got := fmt.Sprintf("%s%s", e.DType, strings.ReplaceAll(fmt.Sprint(e.Shape), " ", ","))
	if (got == args[2]) == neg {
		ts.Fatalf("%s is %s, want %s (negated: %t)", args[1], got, args[2], neg)
	}
}

// cleanCommand checks that the last output, or the files named, have no control character but the newline, and no
// hidden one. Files may be indented with tabs.
func cleanCommand(ts *testscript.TestScript, _ bool, args []string) {
	names := args
	if len(args) == 0 {
		names = []string{"stdout", "stderr"}
	}
	for _, name := range names {
		text := ts.ReadFile(name)
		if len(args) > 0 {
			text = strings.ReplaceAll(text, "\t", " ")
		}
		if i := dirty(text); i != "" {
			ts.Fatalf("%s holds %q", name, i)
		}
	}
}
