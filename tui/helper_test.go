package tui

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/exp/golden"
	"github.com/gomlx/compute"
	"github.com/muesli/termenv"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// eiffel is a prompt whose answer the demo model knows well.
const eiffel = "Eiffel Tower stands in the city of"

// quiet is an App in known surroundings: no colours, a clock that stands still.
func quietApp(opts Options) *App {
	a := New(opts)
	a.theme = newTheme(termenv.Ascii, true)
	a.now = func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
	return a
}

// demos are the demo model on every backend: programs are compiled once for all tests. Tests put its weights back.
type demos struct {
	mu   sync.Mutex
	open map[compute.Backend]*transformer.Model
}

var shared demos

func (s *demos) model(ctx context.Context, be compute.Backend) (*transformer.Model, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m := s.open[be]; m != nil {
		return m, m.SetDeltas(nil)
	}
	m, err := loader.Open(context.WithoutCancel(ctx), "demo", loader.Options{Backend: be})
	if err != nil {
		return nil, err
	}
	if s.open == nil {
		s.open = map[compute.Backend]*transformer.Model{}
	}
	s.open[be] = m
	return m, nil
}

// onDemo runs a test with a browser on the demo model, without a terminal, on every backend.
func onDemo(t *testing.T, w, h int, opts Options, test func(t *testing.T, d *driver)) {
	backendtest.Each(t, func(t *testing.T, be compute.Backend) {
		opts := opts
		opts.Model = "demo"
		if opts.Prompt == "" && !opts.Resume {
			opts.Prompt = eiffel
		}
		opts.Open = func(ctx context.Context, name string, _ func(string)) (*Opened, error) {
			m, err := shared.model(ctx, be)
			if err != nil {
				return nil, err
			}
			if name != "demo" {
				return nil, loader.ErrNoModel
			}
			return &Opened{Model: m, Backend: "test"}, nil
		}
		a := quietApp(opts)
		t.Cleanup(func() {
			if err := a.Close(); err != nil {
				t.Error(err)
			}
		})
		test(t, newDriver(a, w, h))
	})
}

// fakeTokenizer knows words, and gives every one a token.
type fakeTokenizer struct{ words []string }

// fakeWords begin with tokens that no terminal should see as they are.
func fakeWords() []string {
	return []string{
		"\x1b[2J\x1b]0;gotcha\x07", "\xe2\x82", "\u202e", "日本", " Paris", " Rome", " Lyon", "The", " Eiffel", " Tower", " is",
		" in", " London", " Louvre", " Seine", " tower", "\n", "\t", " French", " city",
	}
}

func (f fakeTokenizer) Encode(text string, _ bool) ([]transformer.Token, error) {
	var out []transformer.Token
	at := 0
next:
	for at < len(text) {
		for id, w := range f.words {
			if strings.HasPrefix(text[at:], w) {
				out = append(out, transformer.Token{ID: id, Start: at, End: at + len(w)})
				at += len(w)
				continue next
			}
		}
		return nil, fmt.Errorf("no token for %q", text[at:])
	}
	return out, nil
}

func (f fakeTokenizer) Decode(ids []int) (string, error) {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(f.words[id])
	}
	return b.String(), nil
}

func (f fakeTokenizer) VocabSize() int { return len(f.words) }

func (f fakeTokenizer) Bytes(id int) []byte {
	if id < 0 || id >= len(f.words) {
		return nil
	}
	return []byte(f.words[id])
}

func (f fakeTokenizer) Special() []transformer.SpecialToken { return nil }

// fakeModel has an architecture and a tokenizer, and nothing that could compute.
func fakeModel() *transformer.Model {
	words := fakeWords()
	return &transformer.Model{
		Name: "fake", Fingerprint: strings.Repeat("0123456789abcdef", 4), DType: "F32", Tokenizer: fakeTokenizer{words},
		Config: &transformer.Config{
			Family: "gpt2", Layers: 4, Width: 8, Vocab: len(words), Context: 64,
			Attention: transformer.Attention{Heads: 2, KVHeads: 2, HeadSize: 4},
			FFN:       transformer.FFN{Kind: transformer.PlainFFN, Hidden: 16},
			FinalNorm: true, Tied: true, Position: transformer.Learned,
		},
	}
}

// withFakes is a browser whose jobs are answered by slot; a slot that is not there would need a model and fails.
func withFakes(w, h int, prompt string, answers map[string]any) *driver {
	a := quietApp(Options{Model: "fake", Prompt: prompt, Open: func(context.Context, string, func(string)) (*Opened, error) {
		return &Opened{Model: fakeModel(), Backend: "none"}, nil
	}})
	a.fake = func(slot string) (any, error) { return answers[slot], nil }
	return newDriver(a, w, h)
}

// frame is what the terminal would show, without styles.
func (d *driver) frame() string { return ansi.Strip(d.app.View()) }

// requireFrame compares a frame with its golden file, and checks what holds of any frame.
func requireFrame(t *testing.T, d *driver) {
	t.Helper()
	checkFrame(t, d)
	if strings.Contains(d.frame(), "error: ") {
		t.Error("the frame has an error")
	}
	golden.RequireEqual(t, []byte(d.frame()+"\n"))
}

// checkFrame checks that a frame has the size of the terminal and no control characters but those of its own styles.
func checkFrame(t *testing.T, d *driver) {
	t.Helper()
	frame := d.app.View()
	lines := strings.Split(frame, "\n")
	if len(lines) > d.app.height {
		t.Errorf("a frame of %d rows in a terminal of %d", len(lines), d.app.height)
	}
	for i, l := range lines {
		if w := ansi.StringWidth(l); w > d.app.width {
			t.Errorf("row %d has %d columns in a terminal of %d:\n%s", i, w, d.app.width, ansi.Strip(l))
		}
	}
	for _, r := range ansi.Strip(frame) {
		if r < ' ' && r != '\n' || r == 0x7f || r == '\u202e' {
			t.Errorf("the frame holds %q", r)
		}
	}
}

// contains fails unless the frame shows each of the texts.
func contains(t *testing.T, d *driver, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(d.frame(), text) {
			t.Fatalf("the frame does not show %q:\n%s", text, d.frame())
		}
	}
}

// updating reports whether golden files are written anew; the flag is that of package golden.
func updating() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

// commandThat is the program's command line in tests.
func commandThat(do func(words []string) (string, error)) func(context.Context, []string, Invocation) (string, error) {
	return func(_ context.Context, words []string, _ Invocation) (string, error) { return do(words) }
}
