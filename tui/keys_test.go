package tui

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/charmbracelet/x/ansi"
)

// TestKeysAreBoundOnce: within a screen, and its keys do not hide those that every screen needs.
func TestKeysAreBoundOnce(t *testing.T) {
	a := withFakes(100, 30, framePrompt, answers()).app
	needed := []string{"?", ":", "q", "esc", "1", "7", "u", "e", "y", "tab", "ctrl+c"}
	for _, s := range a.screens {
		seen := map[string]bool{}
		for _, b := range s.Keys() {
			if b.Help().Desc == "" || b.Do == nil {
				t.Errorf("%s: key %s says or does nothing", s.Name(), b.Help().Key)
			}
			for _, k := range b.Binding.Keys() {
				if seen[k] || slices.Contains(needed, k) {
					t.Errorf("%s: key %s is taken", s.Name(), k)
				}
				seen[k] = true
			}
		}
	}
	seen := map[string]bool{}
	for _, b := range a.globalKeys() {
		for _, k := range b.Binding.Keys() {
			if seen[k] {
				t.Errorf("key %s has two meanings", k)
			}
			seen[k] = true
		}
	}
}

// TestKeySheetIsInTheGuide: the page has the keys that the bindings have.
func TestKeySheetIsInTheGuide(t *testing.T) {
	path := filepath.Join("..", "docs", "guide", "browser.md")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- keys -->\n", "<!-- end of keys -->\n"
	from, to := strings.Index(string(text), begin), strings.Index(string(text), end)
	if from < 0 || to < from {
		t.Fatalf("%s has no place for the keys", path)
	}
	from += len(begin)
	if updating() {
		page := string(text[:from]) + KeySheet() + string(text[to:])
		if err := os.WriteFile(path, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got := string(text[from:to]); got != KeySheet() {
		t.Errorf("the keys of %s are old: go test ./tui -update writes them", path)
	}
}

// TestEveryKeyOfEveryScreen: nothing that a key does breaks the frame, whatever is shown.
func TestEveryKeyOfEveryScreen(t *testing.T) {
	for i := range New(Options{}).screens {
		d := withFakes(90, 26, framePrompt, answers())
		d.run(d.app.goTo(i))
		for range 2 {
			for _, b := range slices.Concat(d.app.screens[i].Keys(), d.app.globalKeys()) {
				k := b.Binding.Keys()[0]
				if k == "q" {
					continue
				}
				d.keys(k)
				checkFrame(t, d)
				d.keys("esc")
				if d.app.shown != i {
					d.app.history = nil
					d.run(d.app.goTo(i))
				}
			}
		}
		if strings.Contains(d.frame(), "internal error") {
			t.Errorf("screen %d:\n%s", i, d.frame())
		}
	}
}

// TestHelpListsTheKeys of the screen and of all screens.
func TestHelpListsTheKeys(t *testing.T) {
	d := withFakes(100, 40, framePrompt, answers())
	d.keys("3", "?")
	contains(t, d, "Keys of memories", "sort by the next column")
	d.keys("end")
	contains(t, d, "Any other line is a command of the program")
	d.keys("?")
	if d.app.pager != nil {
		t.Error("the key that opens the help does not close it")
	}
}

// TestMouse: off until asked for; the wheel moves, a click on a tab shows it.
func TestMouse(t *testing.T) {
	d := withFakes(100, 30, framePrompt, answers())
	d.keys("M")
	if !d.app.mouse {
		t.Error("M does not take the mouse")
	}
	at := strings.Index(ansi.Strip(d.app.tabLine()), "3 Memories")
	x := ansi.StringWidth(ansi.Strip(d.app.tabLine())[:at])
	d.message(tea.MouseMsg{X: x + 2, Y: 0, Button: tea.MouseButtonLeft, Action: tea.MouseActionPress})
	if d.app.shown != 2 {
		t.Errorf("a click on the third tab shows %d", d.app.shown)
	}
	m := d.app.screens[2].(*memoriesScreen)
	d.message(tea.MouseMsg{Button: tea.MouseButtonWheelDown, Action: tea.MouseActionPress})
	d.message(tea.MouseMsg{Button: tea.MouseButtonWheelDown, Action: tea.MouseActionPress})
	d.message(tea.MouseMsg{Button: tea.MouseButtonWheelUp, Action: tea.MouseActionPress})
	if m.table.cursor != 1 {
		t.Errorf("the wheel moves to row %d", m.table.cursor)
	}
	d.keys("M")
	if d.app.mouse {
		t.Error("M does not give the mouse back")
	}
}

// TestKeysThatComeTogether are taken one by one, and what is pasted becomes the prompt that is being written.
func TestKeysThatComeTogether(t *testing.T) {
	d := withFakes(100, 30, framePrompt, answers())
	d.message(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("123")})
	if d.app.shown != 2 {
		t.Errorf("123 shows screen %d", d.app.shown)
	}
	d.message(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("2"), Alt: true}) // Esc, which goes back, and 2
	if d.app.shown != 1 || len(d.app.history) != 1 {
		t.Errorf("esc and 2 show screen %d behind %v", d.app.shown, d.app.history)
	}
	d.message(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("The Eiffel"), Paste: true})
	if d.app.entry == nil {
		t.Fatal("a paste opens nothing")
	}
	d.keys("enter")
	if d.app.state.Prompt != "The Eiffel" {
		t.Errorf("the prompt is %q", d.app.state.Prompt)
	}
}

// TestEntry: typing, moving, earlier texts, pasted control characters, and a text longer than the row.
func TestEntry(t *testing.T) {
	d := withFakes(80, 24, "The", answers())
	d.run(d.app.SetPrompt("The Eiffel"))
	d.keys("p", "up", "up", "down", "enter")
	if d.app.state.Prompt != "The Eiffel" && d.app.state.Prompt != "The" {
		t.Errorf("recalled %q", d.app.state.Prompt)
	}
	d.keys("p")
	d.message(tea.KeyMsg{Type: tea.KeyRunes, Runes: []rune("x\x1b[2J" + strings.Repeat("日本", 200)), Paste: true})
	checkFrame(t, d)
	d.keys("left", "left", "home")
	checkFrame(t, d)
	d.keys("esc")
	if d.app.entry != nil {
		t.Error("esc does not leave the entry")
	}
}
