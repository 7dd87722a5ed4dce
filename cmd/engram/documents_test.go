package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/backend"
	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/internal/picture"
)

var update = flag.Bool("update", false, "write what the command prints into the documents and the picture")

// TestDocuments: every output in the README and the guides is what the command prints. A block begins with ```console;
// each line with "$ " is a command, the lines up to the next are its output: on XLA, which users have, if it is tested
// here, and else on the Go backend, which prints the same but for its name.
func TestDocuments(t *testing.T) {
	backendtest.Long(t)
	root := filepath.Join("..", "..")
	paths, err := filepath.Glob(filepath.Join(root, "docs", "guide", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(paths, filepath.Join(root, "README.md")) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, commands := refresh(t, string(text))
			if commands == 0 {
				t.Error("no command in it")
			}
			check(t, path, text, []byte(got))
		})
	}
}

// check compares a document with what it should be, or updates it.
func check(t *testing.T, path string, have, want []byte) {
	t.Helper()
	old, now := strings.ReplaceAll(string(have), "\r\n", "\n"), string(want)
	line := sameText(old, now)
	if line == 0 {
		return
	}
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	a, b := strings.Split(old, "\n"), strings.Split(now, "\n")
	if line <= min(len(a), len(b)) {
		t.Errorf("%s line %d is %q, the command prints %q", path, line, a[line-1], b[line-1])
	}
	t.Errorf("%s is out of date; go test ./cmd/engram -run 'Documents|Picture' -update writes it", path)
}

// refresh gives a document with the outputs of its commands as they are now.
func refresh(t *testing.T, text string) (string, int) {
	t.Helper()
	dir := t.TempDir()
	for _, folder := range []string{filepath.Join("docs", "guide", "*.txt"), filepath.Join("testdata", "demo", "*")} {
		paths, err := filepath.Glob(filepath.Join("..", "..", folder))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, filepath.Base(path)), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	var out []string
	commands, inside := 0, false
	for _, line := range strings.Split(text, "\n") {
		line = strings.TrimSuffix(line, "\r")
		switch {
		case line == "```console":
			inside = true
		case inside && line == "```":
			inside = false
		case inside && strings.HasPrefix(line, "$ "):
			if !strings.HasSuffix(out[len(out)-1], "```console") {
				out = append(out, "")
			}
			out = append(out, line)
			out = append(out, strings.Split(strings.TrimSuffix(output(t, dir, line), "\n"), "\n")...)
			commands++
			continue
		case inside:
			continue // old output
		}
		out = append(out, line)
	}
	return strings.Join(out, "\n"), commands
}

// output runs a command line of a document.
func output(t *testing.T, dir, line string) string {
	t.Helper()
	words := split(strings.TrimPrefix(line, "$ "))
	if len(words) == 0 || words[0] != "engram" {
		t.Fatalf("%q does not run engram", line)
	}
	cmd := process(t, words[1:]...)
	cmd.Dir = dir
	if slices.Contains(backends(), backend.XLACPU) {
		cmd.Env = append(cmd.Env, "ENGRAM_BACKEND="+backend.XLACPU, backendtest.FlagsEnv+"="+backendtest.QuickFlags)
	}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	got, err := cmd.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%s: %v\n%s", line, err, stderr.String())
	}
	return strings.ReplaceAll(string(got), " · go\n", " · xla:cpu\n")
}

// split cuts a command line into words; double quotes hold blanks.
func split(line string) []string {
	var words []string
	var word strings.Builder
	quoted, some := false, false
	for _, r := range line + " " {
		switch {
		case r == '"':
			quoted, some = !quoted, true
		case r == ' ' && !quoted:
			if some {
				words = append(words, word.String())
			}
			word.Reset()
			some = false
		default:
			word.WriteRune(r)
			some = true
		}
	}
	return words
}

// TestPicture: the picture in the README is what engram demo prints, without the tokens and the long form of the lens.
func TestPicture(t *testing.T) {
	backendtest.Long(t)
	text := output(t, t.TempDir(), "$ engram demo")
	var parts []string
	for _, part := range strings.Split(text, "\n\n") {
		heading, _, _ := strings.Cut(part, "\n")
		for _, kept := range []string{" --top 6", " --grid ", " memories "} {
			if strings.Contains(heading, kept) {
				parts = append(parts, part)
			}
		}
	}
	if len(parts) != 3 {
		t.Fatalf("found %d of three parts", len(parts))
	}
	path := filepath.Join("..", "..", "docs", "demo.svg")
	have, err := os.ReadFile(path)
	if err != nil && !*update {
		t.Fatal(err)
	}
	check(t, path, have, picture.SVG("engram demo", strings.Join(parts, "\n\n")))
}

// TestRoutesPicture: the picture in the guide is what the command draws, but for widths and shades, whose last digits
// another processor may change.
func TestRoutesPicture(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "guide", "routes.svg")
	have, err := os.ReadFile(path)
	if err != nil && !*update {
		t.Fatal(err)
	}
	text := output(t, t.TempDir(), `$ engram routes --prompt "The capital of France is" --tau 0.06 --format svg`)
	fine := regexp.MustCompile(`stroke-width:[0-9.]+|fill:#[0-9A-F]{6}`)
	if same := fine.ReplaceAllString(string(have), ""); same != fine.ReplaceAllString(text+"\n", "") {
		check(t, path, have, []byte(text+"\n"))
	}
}

// TestGuidesNameNoUnknownCommand: every command that a document mentions in its text exists.
func TestGuidesNameNoUnknownCommand(t *testing.T) {
	known := map[string]bool{"help": true, "completion": true}
	for _, c := range newApp(nil, nil, nil).rootCommand().Commands() {
		known[c.Name()] = true
	}
	for _, name := range []string{
		"README.md", "docs/files.md", "docs/guide/first-steps.md", "docs/guide/activations.md", "docs/guide/memories.md",
		"docs/guide/diff.md",
	} {
		text, err := os.ReadFile(filepath.Join("..", "..", filepath.FromSlash(name)))
		if err != nil {
			t.Fatal(err)
		}
		for i, piece := range strings.Split(string(text), "`engram ") {
			word, _, _ := strings.Cut(strings.TrimSpace(piece), " ")
			word, _, _ = strings.Cut(word, "`")
			if i > 0 && !strings.HasPrefix(word, "-") && !known[word] {
				t.Errorf("%s mentions engram %s", name, word)
			}
		}
	}
}
