package tui

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/charmbracelet/x/exp/golden"
	"github.com/muesli/termenv"

	"github.com/engram-go/engram/internal/picture"
)

// framePrompt is the prompt of the frames.
const framePrompt = "The Eiffel Tower is in"

// TestFrames compares every screen with its golden frame in text, in every size that has to look well.
func TestFrames(t *testing.T) {
	for _, size := range [][2]int{{60, 20}, {80, 24}, {120, 40}, {200, 50}} {
		d := withFakes(size[0], size[1], framePrompt, answers())
		for i, s := range d.app.screens {
			if size[0] == 60 && i > 0 {
				continue // refused, whatever the screen
			}
			d.run(d.app.goTo(i))
			t.Run(fmt.Sprintf("%s-%dx%d", s.Name(), size[0], size[1]), func(t *testing.T) { requireFrame(t, d) })
		}
	}
}

// TestColours compares every screen with its golden frame in every kind of colour, styles included.
func TestColours(t *testing.T) {
	for _, c := range []struct {
		name    string
		profile termenv.Profile
		dark    bool
	}{
		{"true", termenv.TrueColor, true},
		{"true-light", termenv.TrueColor, false},
		{"256", termenv.ANSI256, true},
		{"16", termenv.ANSI, true},
	} {
		d := withFakes(80, 24, framePrompt, answers())
		d.app.theme = newTheme(c.profile, c.dark)
		for i, s := range d.app.screens {
			d.run(d.app.goTo(i))
			t.Run(s.Name()+"-"+c.name, func(t *testing.T) {
				golden.RequireEqual(t, []byte(d.app.View()+"\n"))
			})
		}
	}
}

// TestPageFrame is the page of a memory, in text and in colour.
func TestPageFrame(t *testing.T) {
	d := withFakes(100, 36, framePrompt, answers())
	d.run(d.app.Run("label L1N15 French places"))
	d.run(d.app.Run("memory L1N15"))
	d.keys("]", "]")
	t.Run("text", func(t *testing.T) { requireFrame(t, d) })
	d.app.theme = newTheme(termenv.TrueColor, true)
	t.Run("colour", func(t *testing.T) { golden.RequireEqual(t, []byte(d.app.View()+"\n")) })
}

// TestPictures: the pictures of the guide are the golden frames in true colour.
func TestPictures(t *testing.T) {
	list := map[string]string{"memory": filepath.Join("TestPageFrame", "colour.golden")}
	for _, s := range New(Options{}).screens {
		list[s.Name()] = filepath.Join("TestColours", s.Name()+"-true.golden")
	}
	list["edit"] = filepath.Join("TestEditFrame", "colour.golden")
	for name, file := range list {
		frame, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("..", "docs", "guide", "browser-"+name+".svg")
		want := picture.Frame("engram tui: "+name, strings.ReplaceAll(string(frame), "\r\n", "\n"))
		if updating() {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(bytes.ReplaceAll(have, []byte("\r\n"), []byte("\n")), want) {
			t.Errorf("%s is not the frame (%v): go test ./tui -update draws it", path, err)
		}
	}
}
