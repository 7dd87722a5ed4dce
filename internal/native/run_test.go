package native

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
)

// TestMain lets the test binary play the programs that run starts.
func TestMain(m *testing.M) {
	switch os.Getenv("FAKE_TOOL") {
	case "":
		os.Exit(m.Run())
	case "fail":
		fmt.Println("resolving")
		fmt.Fprintln(os.Stderr, "ERROR: no matching distribution")
		fmt.Fprintln(os.Stderr, "bye")
		os.Exit(3)
	case "speak":
		fmt.Print("one\rtwo\r\nthree")
	case "full":
		fmt.Fprintln(os.Stderr, "error: failed to write x: No space left on device (os error 28)")
		os.Exit(101)
	case "mute":
		os.Exit(4)
	case "wait":
		stop := make(chan os.Signal, 1)
		signal.Notify(stop, os.Interrupt)
		fmt.Println("ready")
		<-stop
	}
}

func fakeTool(t *testing.T, mode string) Command {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("FAKE_TOOL", mode)
	return Command{Path: self, Dir: t.TempDir()}
}

func TestRunPassesLinesOn(t *testing.T) {
	c := fakeTool(t, "speak")
	var lines []string
	c.Line = func(line string) { lines = append(lines, line) }
	if err := run(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(lines, " "); got != "one two three" {
		t.Errorf("lines %q", got)
	}
}

func TestRunKeepsStdoutApart(t *testing.T) {
	c := fakeTool(t, "speak")
	var out bytes.Buffer
	c.Stdout = &out
	c.Line = func(line string) { t.Errorf("line %q", line) }
	if err := run(t.Context(), c); err != nil || out.String() != "one\rtwo\r\nthree" {
		t.Errorf("stdout %q, %v", out.String(), err)
	}
}

func TestRunTellsWhatTheProgramSaid(t *testing.T) {
	err := run(t.Context(), fakeTool(t, "fail"))
	if err == nil || !strings.HasSuffix(err.Error(), "exit status 3: ERROR: no matching distribution") {
		t.Errorf("got %v", err)
	}
	if err := run(t.Context(), fakeTool(t, "full")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a full disk that the program met: %v", err)
	}
	if err := run(t.Context(), fakeTool(t, "mute")); err == nil || !strings.Contains(err.Error(), "said nothing") {
		t.Errorf("got %v", err)
	}
	if err := run(t.Context(), Command{Path: "/nonexistent/tool"}); err == nil {
		t.Error("a missing program is no error")
	}
}

func TestRunStopsTheProgram(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := fakeTool(t, "wait")
	c.Line = func(string) { cancel() }
	if err := run(ctx, c); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestOutputWithoutLineEndsDoesNotPileUp(t *testing.T) {
	w := &lineWriter{}
	for range 100 {
		if _, err := w.Write(bytes.Repeat([]byte("x"), 1000)); err != nil {
			t.Fatal(err)
		}
		if len(w.rest) > maxLine+1000 {
			t.Fatalf("%d bytes kept", len(w.rest))
		}
	}
	if len(w.tail) == 0 || len(w.tail) > 20 {
		t.Errorf("%d lines kept", len(w.tail))
	}
}
