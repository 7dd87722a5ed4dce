package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/charmbracelet/x/ansi"
	"pgregory.net/rapid"

	"github.com/engram-go/engram/internal/backend"
	"github.com/engram-go/engram/internal/native"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

func TestParseIDs(t *testing.T) {
	got, err := parseIDs("1, 2,3;4,5")
	if err != nil || fmt.Sprint(got) != "[[1 2 3] [4 5]]" || idsText(got) != "1,2,3;4,5" {
		t.Errorf("got %v, %v", got, err)
	}
	for text, kind := range map[string]int{
		"": exitInput, " ": exitInput, "1;": exitInput, "1,": exitUsage, "1.5": exitUsage,
	} {
		if _, err := parseIDs(text); exitCode(t.Context(), err) != kind {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestParseRanges(t *testing.T) {
	for text, want := range map[string][]int{"": nil, "0": {0}, "0,2-4": {0, 2, 3, 4}, "3-3, 1": {3, 1}} {
		if got, err := parseRanges("--layers", text); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"x", "1-", "-1", "4-2", "0-99999999999", "1,,2"} {
		if got, err := parseRanges("--layers", text); !errors.As(err, &usageError{}) {
			t.Errorf("%q: got %v, %v", text, got, err)
		}
	}
}

func TestPromptsFromStandardInput(t *testing.T) {
	p := promptFlags{prompts: []string{"a", "-"}}
	if err := p.readStdin(strings.NewReader("two\nlines\r\n")); err != nil || p.prompts[1] != "two\nlines" {
		t.Errorf("got %q, %v", p.prompts, err)
	}
	p = promptFlags{prompts: []string{"-"}}
	if err := p.readStdin(strings.NewReader(strings.Repeat("x", maxPrompt+1))); !errors.As(err, &inputError{}) {
		t.Errorf("too much: got %v", err)
	}
	code, _, stderr := invoke(t, "", "predict", "--prompt", "-")
	if code != exitInput || !strings.Contains(stderr, "empty prompt") {
		t.Errorf("nothing on standard input: %d, %q", code, stderr)
	}
	code, _, stderr = invoke(t, "\xff", "predict", "--prompt", "-")
	if code != exitInput || dirty(stderr) != "" {
		t.Errorf("not UTF-8: %d, %q", code, stderr)
	}
}

// TestExitCodes: every kind of error has its code, however deep it is wrapped.
func TestExitCodes(t *testing.T) {
	for err, want := range map[error]int{
		nil:                        exitDone,
		errors.New("x"):            exitFailed,
		loader.ErrHub:              exitFailed,
		backend.ErrUnavailable:     exitFailed,
		backend.ErrUnknown:         exitUsage,
		loader.ErrCheckpoint:       exitInput,
		loader.ErrNoModel:          exitInput,
		loader.ErrText:             exitInput,
		transformer.ErrConfig:      exitInput,
		transformer.ErrEmptyPrompt: exitInput,
		transformer.ErrSite:        exitInput,
		probes.ErrNeuron:           exitInput,
		fs.ErrExist:                exitRefused,
		loader.ErrExists:           exitRefused,
		usagef("x"):                exitUsage,
	} {
		wrapped := err
		if err != nil {
			wrapped = fmt.Errorf("outer: %w", withHint(err, "hint"))
		}
		if got := exitCode(t.Context(), wrapped); got != want {
			t.Errorf("%v gives %d, want %d", err, got, want)
		}
	}
}

// TestMessagesAreHarmless: whatever a message holds, it is printed on one line without control characters.
func TestMessagesAreHarmless(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := string(rapid.SliceOf(rapid.Byte()).Draw(t, "text")) + rapid.String().Draw(t, "more")
		if got := oneLine(text); dirty(got) != "" || strings.Contains(got, "\n") {
			t.Fatalf("%q becomes %q", text, got)
		}
	})
	if got := oneLine(`C:\models → a b`); got != `C:\models → a b` {
		t.Errorf("a path becomes %q", got)
	}
}

// TestTableColumns: columns begin at the same cell in every line, wide characters or not, and lines fit the terminal.
func TestTableColumns(t *testing.T) {
	tab := &table{header: []string{"token", ">id", "rest"}}
	tab.add("日本", "1", "x")
	tab.add("a", "1234", "x")
	tab.add("·é", "12", "x")
	p := newPage(&bytes.Buffer{})
	p.table(tab)
	want := -1
	for _, line := range strings.Split(strings.TrimSpace(p.buf.String()), "\n")[1:] {
		at := ansi.StringWidth(line[:strings.LastIndexByte(line, 'x')])
		if want >= 0 && at != want {
			t.Errorf("the last column begins at %d, want %d:\n%s", at, want, p.buf.String())
		}
		want = at
	}
	for width := 1; width < 20; width++ {
		p := newPage(&bytes.Buffer{})
		p.width = width
		p.table(tab)
		for _, line := range strings.Split(p.buf.String(), "\n") {
			if ansi.StringWidth(line) > width {
				t.Errorf("%q does not fit %d columns", line, width)
			}
		}
	}
}

// TestColourOnlyOnATerminal: a page that is no terminal has neither colour nor a width.
func TestColourOnlyOnATerminal(t *testing.T) {
	p := newPage(&bytes.Buffer{})
	p.heading("title")
	if p.buf.String() != "title\n" || p.width != 0 {
		t.Errorf("got %q, width %d", p.buf.String(), p.width)
	}
	p = newPage(&bytes.Buffer{})
	p.color = true
	p.heading("title")
	if p.buf.String() != "\x1b[1mtitle\x1b[0m\n" {
		t.Errorf("with colour: %q", p.buf.String())
	}
}

func TestBar(t *testing.T) {
	for prob, want := range map[float64]int{0: 0, 0.5: 12, 1: 24} {
		if got := utf8.RuneCountInString(bar(prob, 24)); got != want {
			t.Errorf("%g is %d columns, want %d", prob, got, want)
		}
	}
}

// letters is a tokenizer whose tokens are single bytes.
type letters struct{ transformer.Tokenizer }

func (letters) Bytes(id int) []byte {
	if id > 255 {
		return nil
	}
	return []byte{byte(id)}
}

func (letters) Special() []transformer.SpecialToken {
	return []transformer.SpecialToken{{ID: 0, Text: "<s>"}}
}

// TestTextStream: text comes piece by piece with whole characters, and in the end all of it is there.
func TestTextStream(t *testing.T) {
	var out bytes.Buffer
	s := &textStream{m: &transformer.Model{Tokenizer: letters{}}, out: &out, prefix: "row 0: "}
	text := "é日\x1b[2J\nx\t\xff\xe6"
	s.token(0)
	for i := range len(text) {
		s.token(int(text[i]))
		if !utf8.ValidString(out.String()) || dirty(strings.ReplaceAll(out.String(), "\t", "")) != "" {
			t.Fatalf("after %d bytes: %q", i+1, out.String())
		}
	}
	s.end()
	if want := "row 0: é日\\x1b[2J\nx\t\\xff\\xe6\n"; out.String() != want || s.text != text {
		t.Errorf("got %q, want %q; text %q", out.String(), want, s.text)
	}
}

// TestPreferredBackend: what was measured to be faster on the Go backend goes there, the rest to auto.
func TestPreferredBackend(t *testing.T) {
	for _, c := range []struct {
		parameters, tokens int64
		want               string
	}{
		{260_000, 512, backend.Go},
		{4_400_000, 120, backend.Go},
		{124_000_000, 64, backend.Auto},
		{7_000_000_000, 1, backend.Auto},
	} {
		if got := preferred(c.parameters * c.tokens); got != c.want {
			t.Errorf("%d parameters, %d tokens: %s", c.parameters, c.tokens, got)
		}
	}
	c, err := loader.OpenCheckpoint(t.Context(), "stories", loader.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n := parameters(c.Config); n < 250_000 || n > 265_000 {
		t.Errorf("stories counts as %d parameters", n)
	}
}

// TestGridKeepsTheLastPositions: where a terminal is narrow, the positions nearest to the prediction stay.
func TestGridKeepsTheLastPositions(t *testing.T) {
	r := &probes.LensResult{}
	for p := range 20 {
		r.Prompt = append(r.Prompt, probes.Token{ID: 'a' + p})
		r.Positions = append(r.Positions, probes.LensPosition{Position: p, States: []probes.LensState{{
			Site: transformer.ResidPost, Top: []probes.TokenScore{{ID: 'a' + p}}, Targets: []probes.TargetScore{{}},
		}}})
	}
	p := newPage(&bytes.Buffer{})
	p.tokens, p.width = letters{}, 60 // 42 for positions of three columns
	writeLensGrid(p, r)
	if text := p.buf.String(); !strings.Contains(text, " t  prob\n") || strings.Contains(text, " a ") {
		t.Errorf("got\n%s", text)
	}
	for _, line := range strings.Split(p.buf.String(), "\n") {
		if strings.Contains(line, "…") {
			t.Errorf("%q is cut", line)
		}
	}
	if len(r.Positions) != 20 {
		t.Error("printing changed the result")
	}
}

// TestSetupFindsWhatIsThere: where XLA is installed, setup says where and does nothing.
func TestSetupFindsWhatIsThere(t *testing.T) {
	path, ok := native.Find(native.XLACPU)
	if !ok {
		t.Skip("XLA is not installed, and a test does not install it")
	}
	code, stdout, stderr := invoke(t, "", "setup")
	if code != exitDone || stdout != "xla-cpu: "+path+"\n" || stderr != "" {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if code, stdout, _ = invoke(t, "", "setup", "--json"); code != exitDone || !strings.Contains(stdout, `"xla-cpu"`) {
		t.Errorf("exit code %d, stdout %q", code, stdout)
	}
}

// TestSetupWithoutACache: a cache folder that cannot be made is an error with advice, before anything is downloaded.
func TestSetupWithoutACache(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv(native.CacheEnv, filepath.Join(file, "cache"))
	code, stdout, stderr := invoke(t, "", "setup")
	if code != exitFailed || stdout != "" || !strings.HasPrefix(stderr, "error: install xla-cpu: ") {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
}
