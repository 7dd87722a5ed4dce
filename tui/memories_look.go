package tui

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// looked is what was looked up about some memories.
type looked struct {
	values []probes.ValueProjection
	sheets []probes.TriggerSheet
}

// look looks up the tokens, and where there is an index the triggers, of the memories near the cursor.
func (s *memoriesScreen) look() tea.Cmd {
	if s.ranking == nil {
		return nil
	}
	m := s.a.state.Model
	var missing []transformer.Neuron
	for _, row := range s.table.around() {
		r := &s.ranking.Memories[row]
		if s.promoted[signed{r.Neuron(), r.Coef < 0}] == nil {
			missing = append(missing, r.Neuron())
		}
	}
	if len(missing) == 0 {
		return nil
	}
	at := s.a.file(func(f *atHand) bool { return f.triggers != nil })
	return start(s.a, work[looked]{
		slot: "look",
		run: func(ctx context.Context, _ Progress) (out looked, err error) {
			norms := []probes.Norm{probes.DefaultNorm(m.Config)}
			r, err := probes.Values(ctx, m, probes.ValuesOptions{Neurons: missing, Norms: norms, Top: promotedTokens})
			if err != nil {
				return out, err
			}
			out.values = r.Values
			if at != nil {
				sheets, err := probes.TriggerSheets(ctx, m, probes.TriggerSheetsOptions{
					Index: at.triggers, Neurons: missing, Top: 1, Context: prefixTokens, Tokens: 1,
				})
				if err != nil {
					return out, err
				}
				out.sheets = sheets.Sheets
			}
			return out, nil
		},
		done: func(l looked, err error) tea.Cmd {
			if err != nil {
				return nil
			}
			for i, n := range missing[:min(len(missing), len(l.values))] {
				s.promoted[signed{n, false}] = l.values[i].Projections[0].Top
				s.promoted[signed{n, true}] = l.values[i].Projections[0].Bottom
			}
			for i, n := range missing[:min(len(missing), len(l.sheets))] {
				s.triggers[n] = &l.sheets[i]
			}
			return nil
		},
	})
}

// searchIndexTop is how many tokens of each value an index has that is made for searching.
const searchIndexTop = 20

// search keeps the memories that promote a token, at either end. Without an index at hand one is made.
func (s *memoriesScreen) search(text string) tea.Cmd {
	m := s.a.state.Model
	if m.Tokenizer == nil {
		return nil
	}
	at := s.a.file(func(f *atHand) bool { return f.index != nil })
	if at == nil {
		return s.buildIndex(text)
	}
	x := at.index
	return start(s.a, work[*probes.SearchResult]{
		slot: "search", title: "searching",
		run: func(ctx context.Context, _ Progress) (*probes.SearchResult, error) {
			ids := probes.FindTokens(m.Tokenizer, text, probes.MatchWord)
			if len(ids) == 0 {
				ids = probes.FindTokens(m.Tokenizer, text, probes.MatchContains)
			}
			return probes.Search(ctx, x, probes.SearchOptions{
				Tokens: ids, Ends: []probes.End{probes.TopEnd, probes.BottomEnd}, Limit: 1 << 30, List: 1, Tokenizer: m.Tokenizer,
			})
		},
		done: func(r *probes.SearchResult, err error) tea.Cmd {
			if s.filter != text {
				return nil
			}
			s.found = map[transformer.Neuron]int{}
			if err == nil {
				for i, h := range r.Hits {
					if n, err := transformer.ParseNeuron(h.Neuron); err == nil {
						s.found[n] = i
					}
				}
				s.a.Say("%s promote %s", count(len(s.found), "memory end"), display.Text(text))
			}
			return s.keep()
		},
	})
}

// buildIndex projects all values, so that they can be searched.
func (s *memoriesScreen) buildIndex(text string) tea.Cmd {
	if s.a.busy("index") != nil {
		return nil // the text that is there when it is done is searched for
	}
	m := s.a.state.Model
	return start(s.a, work[*probes.Index]{
		slot: "index", title: "projecting all values",
		run: func(ctx context.Context, p Progress) (*probes.Index, error) {
			return probes.BuildIndex(ctx, m, probes.IndexOptions{
				Top: searchIndexTop, Progress: func(done, total int) { p(done, total, nil) },
			})
		},
		done: func(x *probes.Index, err error) tea.Cmd {
			if err != nil {
				return nil
			}
			s.a.files = append(s.a.files, atHand{
				path: "(made for searching)", kind: "projection index", fingerprint: x.Fingerprint, index: x,
				about: fmt.Sprintf("%d tokens of every value by %s", x.Top, x.Norm),
			})
			if s.filter == "" {
				return nil
			}
			return s.search(s.filter)
		},
	})
}

// open opens the page of the memory under the cursor.
func (s *memoriesScreen) open() tea.Cmd {
	n, ok := s.memory()
	if !ok {
		return nil
	}
	return s.openPage(n)
}

func (s *memoriesScreen) openPage(n transformer.Neuron) tea.Cmd {
	s.a.state.Neuron, s.a.state.Layer = n, n.Layer
	s.page = newMemoryPage(s, n)
	return s.page.refresh()
}

func (s *memoriesScreen) refreshPage() tea.Cmd {
	if s.page == nil {
		return nil
	}
	return s.page.refresh()
}

// change is an intervention on the memory at the chosen position; at the last one it goes on while text is generated.
func (s *memoriesScreen) change(mode probes.Mode, value float64) (probes.Change, bool) {
	n, ok := s.memory()
	st := &s.a.state
	c := probes.Change{Mode: mode, Site: transformer.Coef, Layer: n.Layer, Units: []int{n.Index}, Value: value}
	if st.Position != len(st.Tokens)-1 {
		c.At = probes.Where{Kind: probes.AtList, List: []int{st.Position}}
	}
	return c, ok
}

func (s *memoriesScreen) ablate() tea.Cmd {
	c, ok := s.change(probes.ModeAblate, 0)
	if !ok {
		return nil
	}
	return s.a.AddChanges(c)
}

func (s *memoriesScreen) askSet() tea.Cmd { return s.askValue(probes.ModeSet, "set coefficient of ") }

func (s *memoriesScreen) askScale() tea.Cmd {
	return s.askValue(probes.ModeScale, "scale coefficient of ")
}

func (s *memoriesScreen) askValue(mode probes.Mode, label string) tea.Cmd {
	n, ok := s.memory()
	if !ok {
		return nil
	}
	return s.a.Ask(Question{Label: label + n.String() + ":", Done: func(text string) tea.Cmd {
		v, err := strconv.ParseFloat(strings.TrimSpace(text), 64)
		if err != nil {
			s.a.Fail(fmt.Errorf("%q is not a number", text))
			return nil
		}
		c, _ := s.change(mode, v)
		return s.a.AddChanges(c)
	}})
}

func (s *memoriesScreen) askLabel() tea.Cmd {
	n, ok := s.memory()
	if !ok {
		return nil
	}
	return s.a.Ask(Question{Label: "label of " + n.String() + ":", Text: s.labels[n], Done: func(text string) tea.Cmd {
		s.label(n, text)
		return s.a.saveSession()
	}})
}

func (s *memoriesScreen) label(n transformer.Neuron, text string) {
	if text = display.Text(strings.TrimSpace(text)); text == "" {
		delete(s.labels, n)
	} else {
		s.labels[n] = text
	}
}

// Command labels a memory, "label L3N5 French places", or opens its page, "memory L3N5".
func (s *memoriesScreen) Command(name, rest string) (tea.Cmd, bool) {
	if name != "label" && name != "memory" {
		return nil, false
	}
	word, text, _ := strings.Cut(rest, " ")
	n, err := transformer.ParseNeuron(word)
	if err == nil && s.a.state.Model != nil {
		c := s.a.state.Model.Config
		if n.Layer >= c.Layers || n.Index >= c.Memories(n.Layer) {
			err = fmt.Errorf("%w: %s", probes.ErrNeuron, n)
		}
	}
	if err != nil {
		s.a.Fail(err)
		return nil, true
	}
	if name == "label" {
		s.label(n, text)
		return s.a.saveSession(), true
	}
	return tea.Batch(s.openPage(n), s.a.Open("memories")), true
}

// Session is the labels.
func (s *memoriesScreen) Session() []string {
	var out []string
	for n, text := range s.labels {
		out = append(out, fmt.Sprintf("label %s %s", n, text))
	}
	slices.Sort(out)
	return out
}
