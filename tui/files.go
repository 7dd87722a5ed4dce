package tui

import (
	"context"
	"fmt"
	"path/filepath"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// atHand is a file that analyses may use.
type atHand struct {
	path, kind  string
	fingerprint string // of the model that it is of
	about       string

	index      *probes.Index
	triggers   *probes.TriggerIndex
	lens       *probes.Translators
	statistics *editing.Statistics
	edits      *editing.Edits
}

// openFile reads a file of any kind in a job.
func (a *App) openFile(path string) tea.Cmd {
	m := a.state.Model
	if m == nil {
		return nil
	}
	return start(a, work[atHand]{
		slot: "file " + path, title: "opening " + oneLine(filepath.Base(path)),
		run: func(context.Context, Progress) (atHand, error) { return readAtHand(path, m) },
		done: func(f atHand, err error) tea.Cmd {
			if err != nil {
				return nil
			}
			if f.edits != nil {
				return a.pushEdits(f)
			}
			a.files = append(a.files, f)
			a.Say("%s: %s", filepath.Base(path), f.about)
			return a.changed()
		},
	})
}

// readAtHand reads a file by what its metadata say it is, and refuses one of another model.
func readAtHand(path string, m *transformer.Model) (atHand, error) {
	f := atHand{path: path, fingerprint: m.Fingerprint}
	file, err := safetensors.Open(path)
	if err != nil {
		return f, err
	}
	schema := file.Metadata["schema"]
	if err := file.Close(); err != nil {
		return f, err
	}
	switch schema {
	case "engram.index":
		f.kind = "projection index"
		if f.index, err = probes.ReadIndex(path); err != nil {
			return f, err
		}
		f.about = fmt.Sprintf("%d tokens of every value by %s", f.index.Top, f.index.Norm)
		if f.index.Fingerprint != m.Fingerprint {
			err = fmt.Errorf("%w: %s is of %s", probes.ErrOtherModel, filepath.Base(path), f.index.Model)
		}
	case "engram.triggers":
		f.kind = "trigger index"
		if f.triggers, err = probes.OpenTriggers(path); err != nil {
			return f, err
		}
		f.about = fmt.Sprintf("%d examples of each memory from %d tokens", f.triggers.Top, f.triggers.Tokens)
		err = f.triggers.CheckModel(m.Name, m.Fingerprint)
	case "engram.lens":
		f.kind = "lens"
		f.lens, err = probes.LoadTranslators(path, m)
		if err == nil {
			f.about = f.lens.Kind + " lens"
		}
	case "engram.statistics":
		f.kind = "statistics"
		if f.statistics, err = editing.LoadStatistics(path); err != nil {
			return f, err
		}
		f.about = fmt.Sprintf("keys of layer %d over %d tokens", f.statistics.Layer, f.statistics.Count)
		err = f.statistics.Check(m, f.statistics.Layer)
	case "engram.edit":
		f.kind = "edits"
		if f.edits, err = editing.LoadEdits(path); err != nil {
			return f, err
		}
		f.about = count(len(f.edits.List), "edit")
		err = f.edits.Check(m)
	default:
		err = fmt.Errorf("%s: schema %q is no index, lens, statistics or edit file", filepath.Base(path), oneLine(schema))
	}
	return f, err
}

// file is the newest file at hand that has what is wanted, or nil.
func (a *App) file(has func(*atHand) bool) *atHand {
	for i := len(a.files) - 1; i >= 0; i-- {
		if has(&a.files[i]) {
			return &a.files[i]
		}
	}
	return nil
}

// openModel opens another model in place of this one.
func (a *App) openModel(name string) tea.Cmd {
	prompt := a.state.Prompt
	old := a.opened
	for len(a.jobs.list) > 0 {
		a.stop(a.jobs.list[0].slot)
	}
	a.opts.Model, a.opts.Prompt, a.opts.Resume, a.opts.Files = name, prompt, false, nil
	a.state, a.opened, a.failure, a.files, a.undo = State{Target: -1, Version: a.state.Version}, nil, nil, nil, nil
	a.shownTokens = map[int]string{}
	a.screens = newScreens(a)
	closing := func() tea.Msg { return nil }
	if old != nil && old.Close != nil {
		closing = start(a, work[bool]{
			slot: "close", alone: true,
			run:  func(context.Context, Progress) (bool, error) { return true, old.Close() },
			done: func(bool, error) tea.Cmd { return nil },
		})
	}
	return tea.Batch(closing, a.Init())
}
