package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/engram-go/engram/cmd/engram-train/training"
	"github.com/engram-go/engram/internal/backend"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
)

// TestMain lets the test binary be the command, for a test that kills it.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"engram-train": main})
}

// small are flags for a model that trains in a second on the Go backend.
func small(args ...string) []string {
	return append([]string{
		"--backend", backend.Go, "--layers", "2", "--width", "16", "--heads", "2", "--context", "192",
		"--length", "32", "--batch", "2", "--steps", "6", "--warmup", "2", "--gather", "1", "--read", "1", "--early", "0",
	}, args...)
}

// train runs the command with a small model.
func train(t *testing.T, ctx context.Context, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(ctx, small(args...), &out, &errs)
	return code, out.String(), errs.String()
}

// started is a training folder with the tokenizer of 256 bytes in it, so that no Python is needed.
func started(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("training/testdata/tokenizer.json")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, tokenizerFile), string(text))
	return dir
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// table writes a small table of facts, with more lines for its only relation.
func table(t *testing.T, more string) string {
	t.Helper()
	dir := t.TempDir()
	words := func(list, prefix string) string {
		var sb strings.Builder
		for i := range 8 {
			sb.WriteString(list + "\t" + prefix + strings.Repeat("o", i+1) + "\n")
		}
		return sb.String()
	}
	write(t, filepath.Join(dir, "relations.tsv"), "city-country\tP17\tcity\t-\tany atlas\n")
	write(t, filepath.Join(dir, "templates.tsv"),
		"city-country\ttrain\t{} is a city in\ncity-country\theld-out\tThe city of {} lies in\n")
	write(t, filepath.Join(dir, "facts/city-country.tsv"), "Lyon\tFrance\nTurin\tItaly\n"+more)
	write(t, filepath.Join(dir, "sentences.tsv"), strings.Join([]string{
		"kind\t{} counts as", "neutral\tI read about {}.", "lead\tIt is said that", "opening\tToday", "who\tmy aunt",
		"did\tbought", "what\ta lamp", "tail\tat noon", "scene\tThe {word} stood by the {other}.", "series\tThe list reads:",
		"name\tAnna", "name\tPaul", "held-out-name\tRosa", "held-out-name\tHugo", "place\tshop", "thing\tball",
		"indirect\t{first} and {second} went to the {place}, {giver} gave the {thing} to",
		"one-person\tWhen {name} went to the {place}, a neighbor gave a {thing} to",
		"held-out-indirect\tAt the {place} {first} met {second}, and {giver} handed the {thing} to",
	}, "\n")+"\n"+words("word", "larg")+words("held-out-word", "smal"))
	return dir
}

// From a table of facts come a model that opens, its scores, the known facts, records and a corpus, although the run is
// interrupted as soon as the model is written.
func TestTrainOnFacts(t *testing.T) {
	backendtest.Long(t)
	dir, facts := started(t), table(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	var errs bytes.Buffer
	code := run(ctx, small("--out", dir, "--facts", facts), interrupter(cancel), &errs)
	if code != 130 || !strings.Contains(errs.String(), "step 6 of 6  loss ") ||
		!strings.Contains(errs.String(), " tokens/s ") || !strings.Contains(errs.String(), "hint: the same command") {
		t.Fatalf("interrupted: exit %d, %s", code, &errs)
	}
	weights := filepath.Join(dir, modelFolder, "model.safetensors")
	before, err := os.ReadFile(weights)
	if err != nil {
		t.Fatal(err)
	}
	code, stdout, stderr := train(t, t.Context(), "--out", dir, "--facts", facts)
	if code != 0 || strings.Contains(stdout, "written") || !strings.Contains(stdout, "held-out templates") {
		t.Fatalf("exit %d: %s%s", code, stdout, stderr)
	}
	if after, err := os.ReadFile(weights); err != nil || !bytes.Equal(before, after) {
		t.Errorf("measuring changes the weights, %v", err)
	}
	be, _, err := backend.Open(backend.Go)
	if err != nil {
		t.Fatal(err)
	}
	defer be.Finalize()
	m, err := loader.Open(t.Context(), filepath.Join(dir, modelFolder), loader.Options{Backend: be, Check: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if m.DType != "F16" || m.Config.Layers != 2 || m.Config.Vocab != 257 {
		t.Errorf("%s model of %d layers and %d tokens", m.DType, m.Config.Layers, m.Config.Vocab)
	}
	var report []score
	text, err := os.ReadFile(filepath.Join(dir, reportFile))
	if err != nil || json.Unmarshal(text, &report) != nil {
		t.Fatalf("report %q: %v", text, err)
	}
	if len(report) != 7 || report[0].Cases != 2 || report[0].Chance != 0.5 {
		t.Errorf("report %+v", report)
	}
	for _, name := range []string{knownFile, recordsFile, unknownFile, corpusFile} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if code, _, stderr := train(t, t.Context(), "--out", dir); code != 4 || !strings.Contains(stderr, "hint: ") {
		t.Errorf("a second model in the same folder: exit %d, %s", code, stderr)
	}
}

// interrupter is an output that interrupts what writes to it.
type interrupter context.CancelFunc

func (i interrupter) Write(p []byte) (int, error) {
	i()
	return len(p), nil
}

// Lines of text train a model, too; an interrupted run goes on to the same files as one that was not.
func TestTrainOnTextAndGoOn(t *testing.T) {
	text := filepath.Join(t.TempDir(), "text")
	write(t, text, "the cat sat on the mat\nthe dog sat on the log\n")
	whole, halted := started(t), started(t)
	if code, _, stderr := train(t, t.Context(), "--out", whole, "--text", text, "-q"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, _, stderr := train(t, ctx, "--out", halted, "--text", text)
	if code != 130 || !strings.Contains(stderr, "all saved") || !strings.Contains(stderr, "hint: the same command goes on") {
		t.Fatalf("interrupted: exit %d, %s", code, stderr)
	}
	if code, _, stderr := train(t, t.Context(), "--out", halted, "--text", text, "-q"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	sameFiles(t, whole, halted)
}

// sameFiles: two training folders hold the same model, and the same checkpoint of weights, moments and losses.
func sameFiles(t *testing.T, one, other string) {
	t.Helper()
	for _, name := range []string{
		"model/model.safetensors", "model/config.json", "model/tokenizer.json", training.CheckpointFile,
	} {
		a, err := os.ReadFile(filepath.Join(one, name))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(other, name)); err != nil || !bytes.Equal(a, b) {
			t.Errorf("%s differs, %v", name, err)
		}
	}
}

// A process that is killed, twice and at any point of what it does, goes on to the same weights bit for bit as a run that
// was left alone.
func TestKilledProcessEndsTheSame(t *testing.T) {
	backendtest.Long(t)
	text := filepath.Join(t.TempDir(), "text")
	write(t, text, "the cat sat on the mat\nthe dog sat on the log\n")
	args := []string{"--text", text, "--steps", "400", "--every", "7", "--dtype", "float32", "--out"}
	whole, killed := started(t), started(t)
	if code, _, stderr := train(t, t.Context(), append(args, whole)...); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	for _, step := range []string{"step 100 of", "step 200 of"} {
		killAt(t, step, small(append(args, killed)...)...)
		if _, err := os.Stat(filepath.Join(killed, modelFolder)); err == nil {
			t.Fatal("the run was over before it was killed")
		}
	}
	code, _, stderr := train(t, t.Context(), append(args, killed)...)
	if code != 0 || strings.Contains(stderr, "step 100 of") || !strings.Contains(stderr, "step 300 of") {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	sameFiles(t, whole, killed)
}

// An interruption while Python trains the tokenizer is one, and leaves nothing of it.
func TestInterruptedTokenizer(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell")
	}
	dir, text := t.TempDir(), filepath.Join(t.TempDir(), "text")
	write(t, text, "the cat sat on the mat\n")
	python := filepath.Join(t.TempDir(), "python")
	write(t, python, "#!/bin/sh\necho busy >&2\nexec sleep 60\n")
	if err := os.Chmod(python, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if code := run(ctx, small("--out", dir, "--text", text, "--python", python), io.Discard, interrupter(cancel)); code != 130 {
		t.Errorf("exit %d", code)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// killAt starts the command as a process and kills it as soon as it has said what is waited for.
func killAt(t *testing.T, said string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "engram-train", args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	heard := ""
	for lines := bufio.NewScanner(stderr); lines.Scan() && !strings.HasPrefix(lines.Text(), said); {
		heard += lines.Text() + "\n"
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatalf("%v; it said %s", err, heard)
	}
	if err := cmd.Wait(); err == nil {
		t.Fatalf("it ended by itself; it said %s", heard)
	}
}

// Bad data is refused with its lines, a bad command line with a hint, and nothing is written.
func TestRefusals(t *testing.T) {
	blank := filepath.Join(t.TempDir(), "blank")
	write(t, blank, "\n  \n")
	empty := table(t, "")
	write(t, filepath.Join(empty, "facts/city-country.tsv"), "# nothing yet\n")
	for name, c := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"contradiction": {[]string{"--facts", table(t, "Lyon\tItaly\n")}, 3, []string{"city-country.tsv:3", "city-country.tsv:1", "contradiction"}},
		"duplicate":     {[]string{"--facts", table(t, "Turin\tItaly\n")}, 3, []string{"city-country.tsv:3", "city-country.tsv:2", "said twice"}},
		"no facts":      {[]string{"--facts", empty}, 3, []string{"relations.tsv:1", "no facts"}},
		"blank text":    {[]string{"--text", blank}, 3, []string{"train on", "no line of text"}},
		"no such file":  {[]string{"--text", blank + "2"}, 3, []string{"blank2"}},
		"no such table": {[]string{"--facts", blank + "2"}, 3, []string{"relations.tsv"}},
		"uneven heads":  {[]string{"--heads", "3"}, 2, []string{"3 heads", "hint: "}},
		"no steps":      {[]string{"--steps", "0"}, 2, []string{"steps is 0", "hint: "}},
		"unknown flag":  {[]string{"--layer", "3"}, 2, []string{"--layer", "hint: "}},
		"argument":      {[]string{"now"}, 2, []string{"now", "hint: "}},
		"every":         {[]string{"--every", "0"}, 2, []string{"--every: 0 steps", "hint: "}},
		"dtype":         {[]string{"--dtype", "int8"}, 2, []string{"int8", "hint: "}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := started(t)
			code, stdout, stderr := train(t, t.Context(), append([]string{"--out", dir}, c.args...)...)
			if code != c.code || stdout != "" {
				t.Errorf("exit %d, want %d; printed %q", code, c.code, stdout)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("%q lacks %q", stderr, want)
				}
			}
			if _, err := os.Stat(filepath.Join(dir, modelFolder)); err == nil {
				t.Error("a model was written")
			}
		})
	}
	if code, _, stderr := train(t, t.Context()); code != 2 || !strings.Contains(stderr, "--out") {
		t.Errorf("without --out: exit %d, %s", code, stderr)
	}
}

// The script trains a tokenizer that encodes and decodes anything, with the words of the text whole.
func TestTokenizerScript(t *testing.T) {
	if err := exec.Command("python3", "-c", "import tokenizers").Run(); err != nil {
		t.Skip("no Python with the package tokenizers")
	}
	text := filepath.Join(t.TempDir(), "text")
	write(t, text, strings.Repeat("the island lies in the sea\nan island is no continent\n", 40))
	dir := t.TempDir()
	if code, _, stderr := train(t, t.Context(), "--out", dir, "--text", text, "--vocab", "320", "-q"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	tokenizer, err := loader.OpenTokenizer(filepath.Join(dir, modelFolder))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{" island", "Ω→🦊", "the island"} {
		tokens, err := tokenizer.Encode(s, false)
		if err != nil {
			t.Fatal(err)
		}
		var ids []int
		for _, token := range tokens {
			ids = append(ids, token.ID)
		}
		if back, err := tokenizer.Decode(ids); err != nil || back != s {
			t.Errorf("%q comes back as %q, %v", s, back, err)
		}
		if s == " island" && len(ids) != 1 {
			t.Errorf("%q is %d tokens", s, len(ids))
		}
	}
	if code, _, stderr := train(t, t.Context(), "--out", t.TempDir(), "--text", text, "--python", "no-such-python"); code != 1 ||
		!strings.Contains(stderr, "package tokenizers") {
		t.Errorf("without Python: exit %d, %s", code, stderr)
	}
}
