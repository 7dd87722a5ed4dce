package tui

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"errors"
	"image/png"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestExports: every screen writes every form that it has, as files that programs read, with the line that makes the view
// again; a file that exists is left alone.
func TestExports(t *testing.T) {
	dir := t.TempDir()
	for _, screen := range []string{"prompt", "lens", "memories", "model"} {
		d := withFakes(100, 30, framePrompt, answers())
		d.run(d.app.Open(screen))
		d.run(d.app.Run("ablate L1N3 @all"))
		all := answers()
		d.app.fake = func(slot string) (any, error) {
			if slot == "export" {
				return nil, nil
			}
			return all[slot], nil
		}
		for _, ext := range []string{".json", ".csv", ".svg", ".png", ".html"} {
			path := filepath.Join(dir, screen+ext)
			d.run(d.app.Run("export " + path))
			data, err := os.ReadFile(path)
			if err != nil {
				t.Errorf("%s%s: %v (%s)", screen, ext, err, d.app.message)
				continue
			}
			if err := wellFormed(ext, data); err != nil {
				t.Errorf("%s%s: %v", screen, ext, err)
			}
			if bytes.ContainsRune(data, '\x1b') && ext != ".png" {
				t.Errorf("%s%s holds an escape", screen, ext)
			}
			if ext == ".html" && !strings.Contains(string(data), "engram ") {
				t.Errorf("%s does not say how it is made", path)
			}
			d.run(d.app.Run("export " + path))
			if !d.app.failed {
				t.Errorf("%s was replaced", path)
			}
		}
		d.run(d.app.Run("export " + filepath.Join(dir, "x.docx")))
		if !strings.Contains(d.app.message, "ends in .json") {
			t.Errorf("a .docx: %s", d.app.message)
		}
	}
}

// wellFormed reads a file as its ending says.
func wellFormed(ext string, data []byte) error {
	switch ext {
	case ".json":
		var e struct {
			Schema string          `json:"schema"`
			Result json.RawMessage `json:"result"`
		}
		if err := json.Unmarshal(data, &e); err != nil {
			return err
		}
		if !strings.HasPrefix(e.Schema, "engram.") || len(e.Result) < 10 {
			return errors.New("no result")
		}
	case ".csv":
		rows, err := csv.NewReader(bytes.NewReader(data)).ReadAll()
		if err != nil || len(rows) < 2 {
			return errors.Join(err, errors.New("no rows"))
		}
	case ".png":
		_, err := png.Decode(bytes.NewReader(data))
		return err
	case ".svg":
		for d := xml.NewDecoder(bytes.NewReader(data)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	return nil
}

// TestTheLineThatMakesTheView names model, prompt and what is in force.
func TestTheLineThatMakesTheView(t *testing.T) {
	d := withFakes(100, 30, framePrompt, answers())
	d.keys("2")
	d.run(d.app.Run("ablate L1N3 @all"))
	d.keys("e")
	want := "engram lens --position all --top 5 --model fake --prompt 'The Eiffel Tower is in' --change 'ablate L1N3 @all'"
	if d.app.message != want {
		t.Errorf("the line is\n%s\nwant\n%s", d.app.message, want)
	}
	d.keys("esc")
	if got := d.app.reproduce(&Export{Command: []string{"inspect"}, Bare: true}); got != "engram inspect --model fake" {
		t.Errorf("a bare line is %q", got)
	}
	d.run(d.app.SetIDs([]int{7, 8}))
	if got := d.app.reproduce(&Export{Command: []string{"lens"}}); !strings.Contains(got, "--ids 7,8 ") {
		t.Errorf("for ids the line is %q", got)
	}
}

// TestCopyTellsWhat is on the clipboard.
func TestCopyTellsWhat(t *testing.T) {
	d := withFakes(100, 30, framePrompt, answers())
	d.keys("y")
	contains(t, d, "no terminal to copy to")
	var clip string
	d.app.fake = nil
	d.app.clip = func(text string) error {
		clip = text
		return nil
	}
	d.keys("y")
	contains(t, d, "copied the prompt")
	if clip != framePrompt {
		t.Errorf("copied %q", clip)
	}
	d.app.clip = func(string) error { return fs.ErrClosed }
	d.keys("y")
	contains(t, d, "error: file already closed")
}
