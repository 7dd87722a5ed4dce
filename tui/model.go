package tui

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// modelScreen is the model itself: what it says about itself, its tensors, how long its keys and values are, the files
// at hand, what is running, and the log.
type modelScreen struct {
	base
	a *App

	part    int
	tables  [modelParts]*Table
	model   *transformer.Model // that info is of
	info    *loader.Info
	lengths *probes.LengthsResult
	open    map[int]bool // layers whose tensors are listed
	tensors []tensorRow
	shown   []*running // jobs in the order of the table
}

// The parts of the screen.
const (
	partAbout = iota
	partTensors
	partLengths
	partFiles
	partJobs
	partLog
	modelParts
)

func partNames() [modelParts]string {
	return [modelParts]string{"about", "tensors", "lengths", "files", "jobs", "log"}
}

// tensorRow is a tensor, or with tensor nil the heading of a layer's.
type tensorRow struct {
	layer  int // −1 outside the blocks
	count  int
	bytes  int64
	tensor *loader.TensorInfo
}

func newModelScreen(a *App) *modelScreen {
	s := &modelScreen{a: a, open: map[int]bool{}}
	s.tables = [modelParts]*Table{
		newTable("about", s.fact, Column{Title: "", Width: 14}, Column{Title: ""}),
		newTable("tensors", s.tensor, Column{Title: "tensor"}, Column{Title: "dtype", Width: 6},
			Column{Title: "shape", Width: 14}, Column{Title: "size", Width: 11, Right: true}, Column{Title: "use", Width: 16}),
		newTable("lengths", s.length, Column{Title: "layer", Width: 5, Right: true},
			Column{Title: "memories", Width: 8, Right: true}, Column{Title: "‖key‖", Width: 7, Right: true},
			Column{Title: "most", Width: 7, Right: true}, Column{Title: ""}, Column{Title: "‖value‖", Width: 7, Right: true},
			Column{Title: "most", Width: 7, Right: true}, Column{Title: ""}),
		newTable("files", s.file, Column{Title: "kind", Width: 17}, Column{Title: "file"}, Column{Title: "what"},
			Column{Title: "of model", Width: 13}),
		newTable("jobs", s.job, Column{Title: "job"}, Column{Title: "progress", Width: 24},
			Column{Title: "for", Width: 10, Right: true}),
		newTable("log", func(row, _ int) string { return a.log[row] }, Column{Title: "log"}),
	}
	return s
}

// Name is the word of the tab.
func (s *modelScreen) Name() string { return "model" }

// Keys are the screen's own.
func (s *modelScreen) Keys() []Binding {
	turn := func(n int) func() tea.Cmd {
		return func() tea.Cmd {
			s.part = (s.part + n + modelParts) % modelParts
			return nil
		}
	}
	list := []Binding{
		bind("the part before", turn(-1), "left"), short("next part", "the next part", turn(1), "right"),
		short("unfold", "list or fold a layer's tensors", s.unfold, "enter"),
		short("cancel", "cancel the job under the cursor", s.cancel, "x"),
		bind("measure the lengths of keys and values of a large model", s.measure, "n"),
	}
	table := func(n int) tea.Cmd { return s.tables[s.part].Move(n) }
	return append(list, moves("line", table, func() int { return s.tables[s.part].Page() })...)
}

// quickWeights is up to how many weights of keys and values are measured unasked.
const quickWeights = 3e8

// Refresh inspects the model, and measures it if that is quick.
func (s *modelScreen) Refresh() tea.Cmd {
	m := s.a.state.Model
	if m == nil || s.model == m {
		return nil
	}
	s.model = m
	name := s.a.opts.Model
	cmds := []tea.Cmd{start(s.a, work[*loader.Info]{
		slot: "inspect", title: "inspecting",
		run: func(ctx context.Context, _ Progress) (*loader.Info, error) {
			return loader.Inspect(ctx, name, loader.Options{})
		},
		done: func(i *loader.Info, err error) tea.Cmd {
			if err == nil {
				s.info = i
				s.fold()
			}
			return nil
		},
	})}
	if c := m.Config; 2*float64(c.Layers)*float64(c.Width)*float64(c.Memories(c.Layers-1)) < quickWeights {
		cmds = append(cmds, s.measure())
	}
	return tea.Batch(cmds...)
}

func (s *modelScreen) measure() tea.Cmd {
	m := s.a.state.Model
	return start(s.a, work[*probes.LengthsResult]{
		slot: "lengths", title: "measuring keys and values",
		run: func(ctx context.Context, p Progress) (*probes.LengthsResult, error) {
			return probes.Lengths(ctx, m, probes.LengthsOptions{Progress: func(done, total int) { p(done, total, nil) }})
		},
		done: func(r *probes.LengthsResult, err error) tea.Cmd {
			s.lengths = r
			return nil
		},
	})
}

// fold makes the rows of the tensors: a heading for each layer, and below it its tensors if it is open.
func (s *modelScreen) fold() {
	byLayer := map[int][]*loader.TensorInfo{}
	last := -1
	for i := range s.info.Tensors {
		t := &s.info.Tensors[i]
		layer := -1
		for _, use := range t.Use {
			if _, at, found := strings.Cut(use, "@"); found {
				if n, err := strconv.Atoi(at); err == nil {
					layer = n
				}
			}
		}
		byLayer[layer] = append(byLayer[layer], t)
		last = max(last, layer)
	}
	s.tensors = nil
	for layer := -1; layer <= last; layer++ {
		head := tensorRow{layer: layer, count: len(byLayer[layer])}
		for _, t := range byLayer[layer] {
			head.bytes += t.Bytes
		}
		s.tensors = append(s.tensors, head)
		if s.open[layer] {
			for _, t := range byLayer[layer] {
				s.tensors = append(s.tensors, tensorRow{layer: layer, tensor: t})
			}
		}
	}
}

func (s *modelScreen) unfold() tea.Cmd {
	row := s.tables[partTensors].Row()
	if s.part != partTensors || s.info == nil || row < 0 {
		return nil
	}
	layer := s.tensors[row].layer
	s.open[layer] = !s.open[layer]
	s.fold()
	for i, t := range s.tensors {
		if t.layer == layer {
			s.arrange()
			s.tables[partTensors].Seek(i)
			break
		}
	}
	return nil
}

func (s *modelScreen) cancel() tea.Cmd {
	row := s.tables[partJobs].Row()
	if s.part != partJobs || row < 0 || row >= len(s.shown) {
		return nil
	}
	j := s.shown[row]
	s.a.stop(j.slot)
	s.a.Say("stopped: %s", j.title)
	s.a.note("%s: stopped", j.title)
	return nil
}

// arrange says how many rows the tables have now.
func (s *modelScreen) arrange() {
	s.shown = nil
	for _, j := range s.a.jobs.list {
		if j.title != "" {
			s.shown = append(s.shown, j)
		}
	}
	rows := [modelParts]int{partFiles: len(s.a.files), partJobs: len(s.shown), partLog: len(s.a.log)}
	if s.info != nil {
		rows[partAbout] = len(s.info.Facts()) + 1
	}
	rows[partTensors] = len(s.tensors)
	if s.lengths != nil {
		rows[partLengths] = len(s.lengths.Layers)
	}
	for i, t := range s.tables {
		if end := t.cursor == t.n-1; t.n != rows[i] {
			at := t.cursor
			t.SetRows(rows[i])
			if t.cursor = min(at, max(0, rows[i]-1)); end && i == partLog {
				t.cursor = rows[i] - 1
			}
		}
	}
}

func (s *modelScreen) fact(row, column int) string {
	list := append(s.info.Facts(), loader.Fact{Name: "backend", Value: s.a.state.Backend})
	if column == 0 {
		return list[row].Name
	}
	return oneLine(list[row].Value)
}

func (s *modelScreen) tensor(row, column int) string {
	r := &s.tensors[row]
	if r.tensor == nil {
		name := "outside the layers"
		if r.layer >= 0 {
			name = fmt.Sprintf("layer %d", r.layer)
		}
		return []string{name, "", count(r.count, "tensor"), numfmt.Bytes(r.bytes), ""}[column]
	}
	var shape []string
	for _, d := range r.tensor.Shape {
		shape = append(shape, strconv.Itoa(d))
	}
	use := "not used"
	if len(r.tensor.Use) > 0 {
		use = strings.Join(r.tensor.Use, " ")
	}
	return []string{
		"  " + display.Safe(r.tensor.Name), r.tensor.DType, strings.Join(shape, "×"), numfmt.Bytes(r.tensor.Bytes), use,
	}[column]
}

func (s *modelScreen) length(row, column int) string {
	l := &s.lengths.Layers[row]
	most := 1e-9
	for _, o := range s.lengths.Layers {
		most = max(most, o.Keys.Mean, o.Values.Mean)
	}
	number := func(v float64) string { return fmt.Sprintf("%.3f", v) }
	switch column {
	case 0:
		return strconv.Itoa(l.Layer)
	case 1:
		return numfmt.Count(int64(l.Memories))
	case 2:
		return number(l.Keys.Mean)
	case 3:
		return number(l.Keys.Max)
	case 4:
		return bar(l.Keys.Mean/most, 18)
	case 5:
		return number(l.Values.Mean)
	case 6:
		return number(l.Values.Max)
	}
	return bar(l.Values.Mean/most, 18)
}

func (s *modelScreen) file(row, column int) string {
	f := &s.a.files[row]
	return []string{f.kind, oneLine(filepath.Base(f.path)), f.about, f.fingerprint[:min(12, len(f.fingerprint))]}[column]
}

func (s *modelScreen) job(row, column int) string {
	j := s.shown[row]
	switch column {
	case 0:
		return j.title
	case 1:
		if j.total == 0 {
			return "…"
		}
		return fmt.Sprintf("%-12s %d/%d", bar(float64(j.done)/float64(j.total), 12), j.done, j.total)
	}
	return numfmt.Duration(s.a.now().Sub(j.since))
}

// Render draws the part that is chosen.
func (s *modelScreen) Render(w, h int) []string {
	s.arrange()
	t := s.a.theme
	head := newLine(w)
	for i, name := range partNames() {
		style := t.Tab
		if i == s.part {
			style = t.TabOn
		}
		head.add(" ").put(style, name).add(" ")
	}
	out := []string{head.String(), ""}
	if s.tables[s.part].Len() > 0 {
		return append(out, s.tables[s.part].Render(t, w, h-2)...)
	}
	empty := [modelParts]string{
		partLengths: "not measured yet: n reads all keys and values",
		partFiles:   "none yet: :open FILE takes a projection index, a trigger index, a lens or statistics",
		partJobs:    "nothing is running",
	}
	return append(out, t.Faint.text(cut("  "+empty[s.part], w)))
}

// Plain is all parts but the log as linear text.
func (s *modelScreen) Plain() string {
	s.arrange()
	var b strings.Builder
	for i, name := range partNames() {
		if t := s.tables[i]; t.Len() > 0 && i != partLog {
			fmt.Fprintf(&b, "%s\n%s", name, t.plain(t.Len()))
		}
	}
	return b.String()
}

// Export is what the checkpoint says about itself.
func (s *modelScreen) Export() *Export {
	if s.info == nil {
		return nil
	}
	x := &Export{
		Schema: "inspect", Result: s.info, Command: []string{"inspect"}, Bare: true,
		Table: &plot.Table{Header: []string{"tensor", "dtype", "shape", ">bytes", "use"}},
	}
	for i := range s.info.Tensors {
		t := &s.info.Tensors[i]
		x.Table.Rows = append(x.Table.Rows, []string{
			t.Name, t.DType, fmt.Sprint(t.Shape), strconv.FormatInt(t.Bytes, 10), strings.Join(t.Use, " "),
		})
	}
	if s.lengths != nil {
		means := &plot.Lines{Title: "mean length", XLabel: "layer", Series: []plot.Series{{Name: "keys"}, {Name: "values"}}}
		for _, l := range s.lengths.Layers {
			means.Series[0].Y = append(means.Series[0].Y, l.Keys.Mean)
			means.Series[1].Y = append(means.Series[1].Y, l.Values.Mean)
		}
		x.Picture = means
	}
	return x
}

// Copy is the fingerprint, or the line of the log.
func (s *modelScreen) Copy() (text, what string) {
	if s.part == partLog && s.tables[partLog].Row() >= 0 {
		return s.a.log[s.tables[partLog].Row()], "the line"
	}
	if m := s.a.state.Model; m != nil {
		return m.Fingerprint, "the fingerprint"
	}
	return "", ""
}
