package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/engram-go/engram/loader/embedded"
)

// dirty is the first piece of text that a terminal would act on, or "".
func dirty(text string) string {
	for i, r := range text {
		if r == utf8.RuneError || r != '\n' && unicode.In(r, unicode.C, unicode.Zl, unicode.Zp) {
			return text[i:min(i+12, len(text))]
		}
	}
	return ""
}

// invoke runs the command in this process on the Go backend.
func invoke(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("ENGRAM_BACKEND", "go")
	var out, err bytes.Buffer
	code = run(args, strings.NewReader(stdin), &out, &err)
	return code, out.String(), err.String()
}

// badInput is a command line with how it ends.
type badInput struct {
	args string // split at blanks; "_" is an empty argument
	code int
	want string
}

// usageErrors are command lines that make no sense for any model.
func usageErrors(out string) []badInput {
	return []badInput{
		{"nonsense", exitUsage, `unknown command "nonsense"`},
		{"predikt", exitUsage, "did you mean predict"},
		{"predict", exitUsage, "no prompt"},
		{"predict --wrong", exitUsage, "unknown flag: --wrong"},
		{"predict extra --ids 1", exitUsage, `unknown command "extra"`},
		{"predict --prompt a --ids 1", exitUsage, "exclude each other"},
		{"predict --ids 1,x", exitUsage, `"x" is not a whole number`},
		{"predict --ids 1 --top 0", exitUsage, "--top: 0"},
		{"predict --ids 1 --backend tpu", exitUsage, "unknown backend"},
		{"lens --ids 1;2", exitUsage, "takes one prompt"},
		{"lens --ids 1 --position x", exitUsage, "--position"},
		{"lens --ids 1 --target x", exitUsage, "--target"},
		{"memories", exitUsage, "no prompt"},
		{"memories L0", exitUsage, `"L0" is not of the form`},
		{"memories L0N1 --ids 1 --position all", exitUsage, `not "all"`},
		{"memories --ids 1 --layers 3-1", exitUsage, "--layers"},
		{"memories --ids 1 --tokens 0", exitUsage, "--tokens"},
		{"activations --ids 1", exitUsage, `"out" not set`},
		{"activations --ids 1 --out _", exitUsage, "--out"},
		{"activations --ids 1 --grad 7 --out " + out, exitUsage, "--grad"},
		{"generate --ids 1 --tokens 0", exitUsage, "--tokens"},
		{"generate --ids 1 --top-k 3", exitUsage, "--top-k"},
		{"generate --ids 1 --temperature -1", exitUsage, "negative"},
		{"generate --ids 1 --stop x", exitUsage, "--stop"},
	}
}

// inputErrors make sense, but not for this model or prompt.
func inputErrors(out string) []badInput {
	long := strings.Repeat("1,", 512) + "1"
	return []badInput{
		{"predict --model stories --prompt _", exitInput, "empty prompt"},
		{"predict --model stories --ids _", exitInput, "empty prompt"},
		{"predict --model stories --ids 1;;2", exitInput, "row 1: empty prompt"},
		{"predict --model stories --ids 512", exitInput, "out of range: 512"},
		{"predict --model stories --ids -1", exitInput, "out of range: -1"},
		{"tokens --model stories --ids 512", exitInput, "out of range: 512"},
		{"predict --model stories --ids " + long, exitInput, "longer than the context: 513 tokens"},
		{"generate --model stories --ids " + long, exitInput, "longer than the context"},
		{"predict --model stories --ids 1 --position 5", exitInput, "no such position"},
		{"lens --model stories --ids 1 --position 5", exitInput, "no such position"},
		{"lens --model stories --ids 1 --target 512", exitInput, "out of range: 512"},
		{"activations --model stories --ids 1 --sites foo --out " + out, exitInput, `no such site: "foo"`},
		{"activations --model stories --ids 1 --sites pre --out " + out, exitInput, "llama has no pre"},
		{"activations --model stories --ids 1 --layers 0,5 --out " + out, exitInput, "no such layer: 5"},
		{"activations --model stories --ids 1 --grad 7-512 --out " + out, exitInput, "out of range: 512"},
		{"memories --model stories --ids 1 --layers 5", exitInput, "no such layer: 5"},
		{"memories --model stories L9N1", exitInput, "no such memory: L9N1"},
		{"memories --model stories L0N172", exitInput, "no such memory: L0N172"},
		{"memories --model stories L0N1 --norm foo", exitInput, `no such projection norm: "foo"`},
		{"predict --ids 1 --model nowhere", exitInput, "hint: a model is a folder"},
		{"inspect --model nowhere", exitInput, "no such folder"},
		{"tokens --prompt a --model nowhere", exitInput, "no such folder"},
	}
}

// refusals would lose a file, or write where nothing can be written.
func refusals(dir, there string) []badInput {
	return []badInput{
		{"activations --ids 1 --out " + there, exitRefused, "file already exists\nhint: --force replaces it"},
		{"activations --ids 1 --force --out " + dir, exitRefused, "not a regular file"},
		{"activations --ids 1 --out " + filepath.Join(dir, "no", "such"), exitFailed, "no such"},
	}
}

// TestBadInput: every kind of bad input has its exit code, one error line that names it, perhaps a hint, and nothing on
// standard output.
func TestBadInput(t *testing.T) {
	dir := t.TempDir()
	there := filepath.Join(dir, "there.safetensors")
	if err := os.WriteFile(there, []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "new.safetensors")
	for _, c := range slices.Concat(usageErrors(out), inputErrors(out), refusals(dir, there)) {
		t.Run(c.args[:min(len(c.args), 60)], func(t *testing.T) {
			args := strings.Split(c.args, " ")
			for i, a := range args {
				if a == "_" {
					args[i] = ""
				}
			}
			code, stdout, stderr := invoke(t, "", args...)
			if code != c.code || !strings.Contains(stderr, c.want) || stdout != "" {
				t.Errorf("exit code %d, want %d\nstderr %q, want %q\nstdout %q", code, c.code, stderr, c.want, stdout)
			}
			if !strings.HasPrefix(stderr, "error: ") || strings.Count(stderr, "\n") > 2 || dirty(stderr) != "" {
				t.Errorf("not an error line and a hint: %q", stderr)
			}
		})
	}
	if left, err := filepath.Glob(filepath.Join(dir, "*")); err != nil || len(left) != 1 {
		t.Errorf("files left behind: %v, %v", left, err)
	}
	if text, err := os.ReadFile(there); err != nil || string(text) != "mine" {
		t.Errorf("the file that was there holds %q, %v", text, err)
	}
}

// TestBadCheckpoints: a folder that is damaged is bad input, for every command that opens one.
func TestBadCheckpoints(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"truncated":  func(dir string) error { return os.Truncate(filepath.Join(dir, "model.safetensors"), 100_000) },
		"no weights": func(dir string) error { return os.Remove(filepath.Join(dir, "model.safetensors")) },
		"config is a list": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "config.json"), []byte("[]"), 0o644)
		},
		"unknown family": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"model_type":"\u001b[2Jmamba"}`), 0o644)
		},
		"header too long": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, "model.safetensors"), bytes.Repeat([]byte{0xff}, 64), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "model")
			copyStories(t, dir)
			if err := damage(dir); err != nil {
				t.Fatal(err)
			}
			for _, command := range []string{"inspect", "tokens", "predict", "lens", "memories", "generate"} {
				args := []string{command, "--model", dir, "--ids", "1"}
				if command == "inspect" {
					args = args[:3]
				}
				code, stdout, stderr := invoke(t, "", args...)
				if code != exitInput || stdout != "" || !strings.Contains(stderr, dir) || dirty(stderr) != "" {
					t.Errorf("%s: exit code %d, stdout %q, stderr %q", command, code, stdout, stderr)
				}
			}
		})
	}
}

func copyStories(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range embedded.Files("stories") {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCheckFindsNaN: with --check a NaN among the weights is found and named.
func TestCheckFindsNaN(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "model")
	copyStories(t, dir)
	path := filepath.Join(dir, "model.safetensors")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copy(data[len(data)-4:], []byte{0, 0, 0xc0, 0x7f})
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := invoke(t, "", "predict", "--model", dir, "--ids", "1", "--check")
	if code != exitInput || !strings.Contains(stderr, "NaN") {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
}

// process is the command as a process of its own.
func process(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Args = append([]string{"engram"}, args...)
	cmd.Env = append(os.Environ(), "ENGRAM_BACKEND=go")
	return cmd
}

// TestInterrupt: Ctrl-C ends a command that computes, and one that waits for input, with exit code 130.
func TestInterrupt(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a process cannot be interrupted there")
	}
	busy := []string{"generate", "--stop", "none", "--tokens", "500"}
	for range 40 {
		busy = append(busy, "--prompt", "Tom")
	}
	for name, args := range map[string][]string{"computing": busy, "waiting": {"predict", "--prompt", "-"}} {
		t.Run(name, func(t *testing.T) {
			cmd := process(t, args...)
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if name == "computing" {
				if _, err := stdout.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			} else if _, err := stdin.Write(bytes.Repeat([]byte("x"), 1<<17)); err != nil { // it reads, so it handles signals
				t.Fatal(err)
			}
			if err := cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
			err = cmd.Wait()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != exitInterrupted || stderr.String() != "error: interrupted\n" {
				t.Errorf("got %v, stderr %q", err, stderr.String())
			}
		})
	}
}

// TestPanicBecomesAnError: a bug in a command is one line and a hint.
func TestPanicBecomesAnError(t *testing.T) {
	var stderr bytes.Buffer
	code := guard(t.Context(), []string{"version"}, nil, panicking{}, &stderr)
	if code != exitFailed || !strings.HasPrefix(stderr.String(), "error: internal error: boom; \\x1b[2J\nhint: ") {
		t.Errorf("exit code %d, stderr %q", code, stderr.String())
	}
}

type panicking struct{}

func (panicking) Write([]byte) (int, error) { panic("boom\n\x1b[2J") }
