package progress

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"
)

// clock is a time that only moves when told to.
type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

func newTestLine() (*Line, *bytes.Buffer, *clock) {
	var out bytes.Buffer
	c := &clock{at: time.Unix(1, 0)}
	l := New(&out)
	l.now = c.now
	return l, &out, c
}

func TestLineIsRewrittenInPlace(t *testing.T) {
	l, out, c := newTestLine()
	l.Printf("layer %d", 1)
	c.at = c.at.Add(time.Second)
	l.Printf("layer %d", 2)
	l.Clear()
	want := eraseLine + "layer 1" + eraseLine + "layer 2" + eraseLine
	if out.String() != want {
		t.Errorf("wrote %q, want %q", out.String(), want)
	}
}

func TestLineIsThrottled(t *testing.T) {
	l, out, c := newTestLine()
	for range 1000 {
		l.Printf("x")
		c.at = c.at.Add(time.Millisecond)
	}
	if n := strings.Count(out.String(), "x"); n != 10 {
		t.Errorf("%d changes in one second, want 10", n)
	}
}

func TestClearedLineWritesNothing(t *testing.T) {
	l, out, _ := newTestLine()
	l.Clear()
	l.Printf("a")
	l.Clear()
	l.Clear()
	if want := eraseLine + "a" + eraseLine; out.String() != want {
		t.Errorf("wrote %q, want %q", out.String(), want)
	}
}

func TestControlCharactersCannotMoveTheCursor(t *testing.T) {
	l, out, _ := newTestLine()
	l.Printf("a\nb\x1b[2Jc\u009bd\x7f")
	got := strings.TrimPrefix(out.String(), eraseLine)
	if want := "a b [2Jc d "; got != want {
		t.Errorf("wrote %q, want %q", got, want)
	}
}

func TestLineStaysInsideTheTerminal(t *testing.T) {
	for _, width := range []int{0, 1, 2, 10, 80} {
		l, out, _ := newTestLine()
		l.width = func() int { return width }
		l.Printf("%s", strings.Repeat("é", 100))
		got := utf8.RuneCountInString(strings.TrimPrefix(out.String(), eraseLine))
		if got > max(width-1, 0) {
			t.Errorf("width %d: wrote %d columns", width, got)
		}
	}
}

func TestNoTerminalNoLine(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l := ForFile(f)
	l.Printf("hidden")
	if _, err := io.ReadAll(l.Reader(strings.NewReader("abc"), "read", 3)); err != nil {
		t.Fatal(err)
	}
	l.Clear()
	if info, _ := f.Stat(); l != nil || info.Size() != 0 {
		t.Errorf("a file got a progress line of %d bytes", info.Size())
	}
}

func TestDumbTerminalGetsNoLine(t *testing.T) {
	t.Setenv("TERM", "dumb")
	if ForFile(os.Stderr) != nil {
		t.Error("TERM=dumb got a line that is rewritten in place")
	}
}

func TestReaderCounts(t *testing.T) {
	l, out, _ := newTestLine()
	data := make([]byte, 3_000_000)
	got, err := io.ReadAll(io.LimitReader(l.Reader(bytes.NewReader(data), "fetch", 3_000_000), 4_000_000))
	if err != nil || len(got) != len(data) {
		t.Fatalf("read %d bytes, %v", len(got), err)
	}
	if !strings.Contains(out.String(), "fetch: 0 of 3 MB") {
		t.Errorf("wrote %q", out.String())
	}
	l.Clear()
	out.Reset()
	if _, err := io.ReadAll(l.Reader(strings.NewReader("x"), "fetch", 0)); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "fetch: 0 MB") {
		t.Errorf("without a total wrote %q", out.String())
	}
}

func TestManyGoroutines(t *testing.T) {
	l := New(io.Discard)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 100 {
				l.Printf("%d", i)
				l.Clear()
			}
		})
	}
	wg.Wait()
}
