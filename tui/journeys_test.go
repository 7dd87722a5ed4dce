package tui

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestJourneys drives the browser on the demo model with recorded keys, and checks the state that they lead to. A script
// has one step a line: keys NAME…, type TEXT, run LINE, or expect WHAT VALUE.
func TestJourneys(t *testing.T) {
	scripts, err := filepath.Glob(filepath.Join("testdata", "journeys", "*.txt"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no journeys: %v", err)
	}
	for _, path := range scripts {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			onDemo(t, 120, 40, Options{}, func(t *testing.T, d *driver) {
				for i, line := range strings.Split(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n") {
					if line == "" || strings.HasPrefix(line, "#") {
						continue
					}
					if err := d.step(line); err != nil {
						t.Fatalf("line %d: %v\n%s", i+1, err, d.frame())
					}
					checkFrame(t, d)
				}
			})
		})
	}
}

// step does a line of a journey.
func (d *driver) step(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "keys":
		d.keys(strings.Fields(rest)...)
	case "type":
		d.typed(rest)
	case "run":
		d.run(d.app.Run(rest))
	case "expect":
		return d.expect(rest)
	default:
		return fmt.Errorf("unknown step %q", line)
	}
	return nil
}

func (d *driver) expect(text string) error {
	what, want, _ := strings.Cut(text, " ")
	s := &d.app.state
	got := map[string]string{
		"screen": d.app.screens[d.app.shown].Name(), "position": fmt.Sprint(s.Position), "prompt": s.Prompt,
		"changes": fmt.Sprint(len(s.Changes)), "edits": fmt.Sprint(s.inForce()), "stack": fmt.Sprint(len(s.Edits)),
	}
	switch what {
	case "shows":
		if !strings.Contains(d.frame(), want) {
			return fmt.Errorf("the screen does not show %q", want)
		}
	case "message":
		if !strings.Contains(d.app.message, want) {
			return fmt.Errorf("the message is %q, not %q", d.app.message, want)
		}
	case "top":
		if next := d.app.screens[0].(*promptScreen).next; next == nil || d.app.token(next.Next[0].ID) != want {
			return fmt.Errorf("the most probable token is not %s", want)
		}
	default:
		if value, known := got[what]; !known || value != want {
			return fmt.Errorf("%s is %q, not %q", what, value, want)
		}
	}
	return nil
}
