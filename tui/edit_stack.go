package tui

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/editing"
)

// sameEdit reports whether two places of stacks hold the same.
func sameEdit(x, y StackedEdit) bool {
	return x.On == y.On && x.File == y.File && slices.Equal(x.List, y.List)
}

// about is an edit in a few words.
func (e *StackedEdit) about() string {
	one := e.List[0]
	layers := make([]string, len(e.List))
	for i, l := range e.List {
		layers[i] = fmt.Sprint(l.Layer)
	}
	what := fmt.Sprintf("%s → %s", oneLine(one.Request.Subject), oneLine(one.Request.Target))
	if n := len(one.Batch); n > 1 {
		what = fmt.Sprintf("%d facts, %s", n, what)
	}
	return fmt.Sprintf("%s (%s, layer %s)", what, one.Method, strings.Join(layers, " "))
}

func (s *editScreen) move(by int) tea.Cmd {
	s.cursor = max(0, min(s.cursor+by, len(s.a.state.Edits)-1))
	return nil
}

// chosen is the place of the stack under the cursor, −1 without one.
func (s *editScreen) chosen() int {
	if s.cursor >= len(s.a.state.Edits) {
		return -1
	}
	return s.cursor
}

// put takes the edit under the cursor in force, or back.
func (s *editScreen) put(on bool) tea.Cmd {
	i := s.chosen()
	if i < 0 {
		s.a.Say("the stack is empty: enter makes an edit")
		return nil
	}
	list := slices.Clone(s.a.state.Edits)
	if list[i].On == on {
		s.a.Say("it is already so")
		return nil
	}
	list[i].On = on
	what := "reverted " + list[i].about()
	if on {
		what = "in force: " + list[i].about()
	}
	return s.a.SetEdits(what, list)
}

func (s *editScreen) drop() tea.Cmd {
	i := s.chosen()
	if i < 0 {
		return nil
	}
	list := slices.Clone(s.a.state.Edits)
	what := "dropped " + list[i].about()
	return s.a.SetEdits(what, slices.Delete(list, i, i+1))
}

// reorder moves the edit under the cursor in the stack.
func (s *editScreen) reorder(by int) tea.Cmd {
	i := s.chosen()
	j := i + by
	if i < 0 || j < 0 || j >= len(s.a.state.Edits) {
		return nil
	}
	list := slices.Clone(s.a.state.Edits)
	list[i], list[j] = list[j], list[i]
	s.cursor = j
	return s.a.SetEdits("another order", list)
}

// toSave are the places of the stack that are in force, or the one under the cursor if none is.
func (s *editScreen) toSave() []int {
	var out []int
	for i, e := range s.a.state.Edits {
		if e.On {
			out = append(out, i)
		}
	}
	if i := s.chosen(); out == nil && i >= 0 {
		out = []int{i}
	}
	return out
}

// file is some places of the stack as an edit file.
func (a *App) editFile(places []int) *editing.Edits {
	m := a.state.Model
	out := &editing.Edits{Model: m.Name, Fingerprint: m.Fingerprint}
	for _, i := range places {
		out.List = append(out.List, a.state.Edits[i].List...)
	}
	return out
}

func (s *editScreen) askSave() tea.Cmd {
	if len(s.toSave()) == 0 {
		s.a.Say("the stack is empty: enter makes an edit")
		return nil
	}
	return s.a.Ask(Question{
		Label: "save " + count(len(s.toSave()), "edit") + " to:", Text: "edits.safetensors", Done: s.save,
	})
}

// save writes an edit file; one that exists is not replaced.
func (s *editScreen) save(path string) tea.Cmd {
	places := s.toSave()
	if path == "" || len(places) == 0 {
		return nil
	}
	file := s.a.editFile(places)
	return start(s.a, work[bool]{
		slot: "save", title: "saving edits",
		run: func(ctx context.Context, _ Progress) (bool, error) { return true, file.Save(ctx, path, false) },
		done: func(_ bool, err error) tea.Cmd {
			if err != nil {
				return nil
			}
			list := slices.Clone(s.a.state.Edits)
			for _, i := range places {
				if i < len(list) {
					list[i].File = path
				}
			}
			s.a.state.Edits = list
			s.a.Say("wrote %s; engram takes it with --edit", path)
			return s.a.saveSession()
		},
	})
}

func (s *editScreen) askFolder() tea.Cmd {
	if len(s.toSave()) == 0 {
		s.a.Say("the stack is empty: enter makes an edit")
		return nil
	}
	return s.a.Ask(Question{
		Label: "folder for the checkpoint (peft:FOLDER for a LoRA adapter):", Text: "edited", Done: s.exportModel,
	})
}

// exportModel runs the program's edit export on the edits.
func (s *editScreen) exportModel(folder string) tea.Cmd {
	places := s.toSave()
	if folder == "" || len(places) == 0 {
		return nil
	}
	if s.a.opts.Command == nil {
		s.a.Fail(errors.New("there is no command line here to export with"))
		return nil
	}
	file, args := s.a.editFile(places), []string{"edit", "export", "", "--out", folder}
	if dir, ok := strings.CutPrefix(folder, "peft:"); ok {
		args = append(args[:4], dir, "--format", "peft")
	}
	return start(s.a, work[string]{
		slot: "export", title: "exporting to " + oneLine(folder), alone: true,
		run: func(ctx context.Context, _ Progress) (string, error) {
			dir, err := os.MkdirTemp("", "engram")
			if err != nil {
				return "", err
			}
			defer os.RemoveAll(dir)
			args[2] = filepath.Join(dir, "edits.safetensors")
			if err := file.Save(ctx, args[2], false); err != nil {
				return "", err
			}
			return s.a.opts.Command(ctx, args, Invocation{})
		},
		done: func(text string, err error) tea.Cmd {
			if err == nil {
				s.a.Show("export", text)
			}
			return nil
		},
	})
}

// pushEdits puts the edits of a file on the stack, in force.
func (a *App) pushEdits(f atHand) tea.Cmd {
	list := slices.Clone(a.state.Edits)
	for _, e := range f.edits.List {
		list = append(list, StackedEdit{List: []*editing.Edit{e}, On: true, File: f.path})
	}
	return a.SetEdits(fmt.Sprintf("in force: %s of %s", f.about, filepath.Base(f.path)), list)
}

// stackPath is the file beside the session that keeps the stack, "" for none.
func (a *App) stackPath() string {
	if a.opts.Session == "" {
		return ""
	}
	return strings.TrimSuffix(a.opts.Session, filepath.Ext(a.opts.Session)) + "-edits.safetensors"
}

// keepEdits writes the stack beside the session, so that it can be brought back.
func (a *App) keepEdits() tea.Cmd {
	path := a.stackPath()
	if path == "" || a.replaying || len(a.state.Edits) == 0 {
		return nil
	}
	places := make([]int, len(a.state.Edits))
	for i := range places {
		places[i] = i
	}
	file := a.editFile(places)
	return start(a, work[bool]{
		slot: "keep edits",
		run:  func(ctx context.Context, _ Progress) (bool, error) { return true, file.Save(ctx, path, true) },
		done: func(bool, error) tea.Cmd { return a.saveSession() },
	})
}

// stackLine is the line of the session that brings the stack back: for each place how many edits of the file it has,
// behind + where it is in force.
func (a *App) stackLine() []string {
	path := a.stackPath()
	if path == "" || len(a.state.Edits) == 0 {
		return nil
	}
	line := "stack"
	for _, e := range a.state.Edits {
		sign := "-"
		if e.On {
			sign = "+"
		}
		line += fmt.Sprintf(" %s%d", sign, len(e.List))
	}
	return []string{line + " " + path}
}

// openStack brings a stack back.
func (a *App) openStack(rest string) tea.Cmd {
	m := a.state.Model
	var signs []int
	for strings.HasPrefix(rest, "+") || strings.HasPrefix(rest, "-") {
		word, more, _ := strings.Cut(rest, " ")
		n, err := parseInt(word)
		if err != nil || n == 0 {
			a.Fail(fmt.Errorf("stack: %q is no number of edits", word))
			return nil
		}
		signs, rest = append(signs, n), strings.TrimSpace(more)
	}
	return start(a, work[[]StackedEdit]{
		slot: "stack", title: "opening edits", alone: true,
		run: func(context.Context, Progress) ([]StackedEdit, error) {
			list, err := readStack(rest, signs)
			if err != nil {
				return nil, err
			}
			if err := list.Check(m); err != nil {
				return nil, err
			}
			stack := stacked(list.List, signs)
			return stack, m.SetDeltas(deltas(stack))
		},
		done: func(list []StackedEdit, err error) tea.Cmd {
			if err != nil {
				return nil
			}
			a.state.Edits = list
			return a.changed()
		},
	})
}

// readStack reads a file that has as many edits as the places say.
func readStack(path string, signs []int) (*editing.Edits, error) {
	list, err := editing.LoadEdits(path)
	if err != nil {
		return nil, err
	}
	n := 0
	for _, s := range signs {
		n += max(s, -s)
	}
	if n != len(list.List) {
		return nil, fmt.Errorf("%w: %s has %d edits, the session's stack %d", editing.ErrEdit, filepath.Base(path),
			len(list.List), n)
	}
	return list, nil
}

// stacked puts edits into places.
func stacked(list []*editing.Edit, signs []int) []StackedEdit {
	var out []StackedEdit
	for _, s := range signs {
		n := max(s, -s)
		out = append(out, StackedEdit{List: list[:n:n], On: s > 0})
		list = list[n:]
	}
	return out
}
