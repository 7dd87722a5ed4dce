package tui

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/plot"
	"github.com/engram-go/engram/routes"
)

// routesScreen is the graph of what the chosen position's state is made of.
type routesScreen struct {
	base
	a *App

	weigh routes.Weighting
	mode  routes.Mode
	tau   float64
	top   int
	mass  float64
	root  string // "" means the chosen position's last state
	held  *heldParts
	seen  routesAsked
	graph *routes.RoutesResult
	none  string // why there is no graph
	drawn map[int]*routes.Drawing

	node   string // under the cursor
	part   int    // of the parts that flow into it
	trail  []string
	page   *nodePage
	scroll int
}

// routesAsked is what a graph depends on.
type routesAsked struct {
	version, position, target int
	weigh                     routes.Weighting
	mode                      routes.Mode
	tau, mass                 float64
	top                       int
	root                      string
}

// routesTokens is how many tokens are listed for a node.
const routesTokens = 6

func newRoutesScreen(a *App) *routesScreen {
	return &routesScreen{a: a, mode: routes.Renormalise, tau: routes.DefaultTau, top: 5, mass: 0.9, held: &heldParts{}}
}

// Name is the word of the tab.
func (s *routesScreen) Name() string { return "routes" }

// Keys are the screen's own.
func (s *routesScreen) Keys() []Binding {
	if s.page != nil {
		return s.page.keys(s)
	}
	return []Binding{
		bind("down along the chosen part, to where it comes from", s.down, "down", "j"),
		bind("up to where the node's state goes, or back the way you came", s.up, "up", "k"),
		bind("previous part of the node", func() tea.Cmd { return s.choose(-1) }, "left"),
		bind("next part of the node", func() tea.Cmd { return s.choose(1) }, "right"),
		bind("the root", s.toRoot, "home"),
		short("node", "the node's page: heads, neurons, tokens", s.openPage, "enter"),
		short("threshold", "raise the threshold: fewer edges", func() tea.Cmd { return s.threshold(1) }, "+", "="),
		bind("lower the threshold: more edges", func() tea.Cmd { return s.threshold(-1) }, "-"),
		bind("next mode of the threshold", s.nextMode, "m"),
		short("weighting", "weigh parts by share, or by their effect on the target's logit: directly, or by gradient",
			s.weighting, "w"),
		short("verify", "ablate what the graph leaves out and see whether the prediction stands", s.verify, "v"),
		bind("make the node the root", s.setRoot, "r"),
	}
}

// Refresh draws the graph of the chosen position.
func (s *routesScreen) Refresh() tea.Cmd {
	if !s.a.state.ready() {
		return nil
	}
	if s.seen.version != s.a.state.Version || s.seen.position != s.a.state.Position {
		s.root, s.page = "", nil
	}
	now := routesAsked{
		s.a.state.Version, s.a.state.Position, s.a.state.Target, s.weigh, s.mode, s.tau, s.mass, s.top, s.root,
	}
	if s.seen == now {
		return nil
	}
	s.seen = now
	return s.run()
}

// cut is the threshold as the analysis takes it.
func (s *routesScreen) cut() routes.Threshold {
	t := routes.Threshold{Mode: s.mode}
	switch s.mode {
	case routes.TopK:
		t.K = s.top
	case routes.Mass:
		t.Mass = s.mass
	default:
		tau := s.tau
		t.Tau = &tau
	}
	return t
}

// run makes the graph.
func (s *routesScreen) run() tea.Cmd {
	st := &s.a.state
	m, job := st.Model, s.job()
	opts := routes.RoutesOptions{Threshold: s.cut(), Tokens: routesTokens}
	root := routes.Node{Kind: routes.BlockNode, Layer: m.Config.Layers - 1, Position: st.Position}
	if s.root != "" {
		var err error
		if root, err = routes.ParseNode(s.root); err != nil {
			s.a.Fail(err)
			return nil
		}
	}
	opts.Roots = []routes.Node{root}
	return start(s.a, work[*routes.RoutesResult]{
		slot: "routes", title: "finding routes",
		run: func(ctx context.Context, _ Progress) (out *routes.RoutesResult, err error) {
			err = job.with(ctx, func(p *routes.Parts) error {
				opts.Parts = p
				out, err = routes.Routes(ctx, m, opts)
				return err
			})
			return out, err
		},
		done: func(r *routes.RoutesResult, err error) tea.Cmd {
			s.graph, s.none, s.drawn = nil, "", map[int]*routes.Drawing{}
			if err != nil {
				s.none = display.Safe(err.Error())
				return nil
			}
			s.graph = r
			if s.at(s.node) == nil {
				s.node, s.part, s.trail = r.Roots[0], 0, nil
			}
			s.part = max(0, min(s.part, len(s.into(s.node))-1))
			return nil
		},
	})
}

// at is a node of the graph, nil if it is not in it.
func (s *routesScreen) at(name string) *routes.GraphNode {
	if s.graph == nil {
		return nil
	}
	for i := range s.graph.Nodes {
		if s.graph.Nodes[i].Node == name {
			return &s.graph.Nodes[i]
		}
	}
	return nil
}

// into are the parts that flow into a node, those that weigh most first.
func (s *routesScreen) into(name string) []*routes.Edge {
	var out []*routes.Edge
	if s.graph == nil {
		return nil
	}
	for i := range s.graph.Edges {
		if e := &s.graph.Edges[i]; e.To == name {
			out = append(out, e)
		}
	}
	slices.SortStableFunc(out, func(x, y *routes.Edge) int { return cmp.Compare(math.Abs(y.Weight), math.Abs(x.Weight)) })
	return out
}

func (s *routesScreen) choose(by int) tea.Cmd {
	s.part = max(0, min(s.part+by, len(s.into(s.node))-1))
	return nil
}

// down follows the chosen part.
func (s *routesScreen) down() tea.Cmd {
	list := s.into(s.node)
	if s.part >= len(list) {
		s.a.Say("%s has no parts: it is a token", s.node)
		return nil
	}
	s.trail = append(s.trail, s.node)
	return s.goNode(list[s.part].From)
}

// up goes back the way that was come, or to the node that takes most of this one.
func (s *routesScreen) up() tea.Cmd {
	if n := len(s.trail); n > 0 {
		back, from := s.trail[n-1], s.node
		s.trail = s.trail[:n-1]
		cmd := s.goNode(back)
		s.part = max(0, slices.IndexFunc(s.into(back), func(e *routes.Edge) bool { return e.From == from }))
		return cmd
	}
	var best *routes.Edge
	if s.graph != nil {
		for i := range s.graph.Edges {
			if e := &s.graph.Edges[i]; e.From == s.node && (best == nil || e.Weight > best.Weight) {
				best = e
			}
		}
	}
	if best == nil {
		s.a.Say("%s is the root", s.node)
		return nil
	}
	return s.goNode(best.To)
}

// goNode puts the cursor on a node.
func (s *routesScreen) goNode(name string) tea.Cmd {
	s.node, s.part = name, 0
	if n := s.at(name); n != nil && n.Kind != "X" {
		s.a.state.Layer = n.Layer
	}
	return nil
}

func (s *routesScreen) toRoot() tea.Cmd {
	if s.graph == nil {
		return nil
	}
	s.trail = nil
	return s.goNode(s.graph.Roots[0])
}

// taus are the thresholds that + and - go through.
func taus() []float64 {
	return []float64{0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5}
}

// threshold makes the graph thinner or denser.
func (s *routesScreen) threshold(by int) tea.Cmd {
	switch s.mode {
	case routes.TopK:
		s.top = max(1, s.top-by)
	case routes.Mass:
		s.mass = max(0.05, min(1, float64(int(s.mass*20+0.5)-by)/20))
	default:
		list := taus()
		i := max(0, slices.IndexFunc(list, func(t float64) bool { return t >= s.tau }))
		s.tau = list[max(0, min(i+by, len(list)-1))]
	}
	return s.Refresh()
}

func (s *routesScreen) nextMode() tea.Cmd {
	list := routes.Modes()
	s.mode = list[(slices.Index(list, s.mode)+1)%len(list)]
	return tea.Batch(s.Refresh(), s.a.saveSession())
}

// setRoot starts the graph at the node under the cursor.
func (s *routesScreen) setRoot() tea.Cmd {
	n := s.at(s.node)
	if n == nil {
		return nil
	}
	s.root, s.trail = s.node, nil
	return s.Refresh()
}

// Back closes the node's page, or goes back to the usual root.
func (s *routesScreen) Back() bool {
	switch {
	case s.page != nil:
		s.page = nil
	case s.root != "":
		s.root = ""
		s.node = ""
	default:
		return false
	}
	return true
}

// weighting takes the next weighting.
func (s *routesScreen) weighting() tea.Cmd {
	list := weightings()
	s.weigh = list[(slices.Index(list, s.weigh)+1)%len(list)]
	return tea.Batch(s.Refresh(), s.a.saveSession())
}

func weightings() []routes.Weighting {
	return []routes.Weighting{routes.ByProximity, routes.ByLogit, routes.ByGradient}
}

// weighName is a weighting as the command calls it.
func weighName(w routes.Weighting) string {
	if w == routes.ByProximity {
		return "proximity"
	}
	return string(w)
}

// verify ablates what the graph leaves out.
func (s *routesScreen) verify() tea.Cmd {
	if s.graph == nil {
		return nil
	}
	job, graph := s.job(), s.graph
	opts := routes.VerifyOptions{Graph: graph}
	if target := s.a.state.Target; target >= 0 {
		opts.Target = &target
	}
	return start(s.a, work[*routes.VerifyResult]{
		slot: "verify", title: "ablating what the graph leaves out",
		run: func(ctx context.Context, _ Progress) (out *routes.VerifyResult, err error) {
			err = job.with(ctx, func(p *routes.Parts) error {
				opts.Parts = p
				out, err = routes.Verify(ctx, opts)
				return err
			})
			return out, err
		},
		done: func(r *routes.VerifyResult, err error) tea.Cmd {
			if err == nil && s.graph == graph {
				graph.Verified = r
			}
			return nil
		},
	})
}

// Command sets threshold and root.
func (s *routesScreen) Command(name, rest string) (tea.Cmd, bool) {
	switch name {
	case "tau":
		v, err := strconv.ParseFloat(rest, 64)
		if err != nil || !(v >= 0 && v < 1) {
			s.a.Fail(fmt.Errorf("%w: tau is %q, want at least 0 and less than 1", routes.ErrThreshold, rest))
			return nil, true
		}
		s.tau = v
	case "mode":
		if !slices.Contains(routes.Modes(), routes.Mode(rest)) {
			s.a.Fail(fmt.Errorf("%w: mode %q is none of %v", routes.ErrThreshold, rest, routes.Modes()))
			return nil, true
		}
		s.mode = routes.Mode(rest)
	case "weighting":
		i := slices.IndexFunc(weightings(), func(w routes.Weighting) bool { return weighName(w) == rest })
		if i < 0 {
			s.a.Fail(fmt.Errorf("%w: %q is none of proximity, logit, gradient", routes.ErrWeighting, rest))
			return nil, true
		}
		s.weigh = weightings()[i]
	case "root":
		if _, err := routes.ParseNode(rest); err != nil {
			s.a.Fail(err)
			return nil, true
		}
		s.root, s.node = rest, ""
	default:
		return nil, false
	}
	return s.a.refresh(), true
}

// Session is the threshold where it is not the usual one.
func (s *routesScreen) Session() []string {
	var out []string
	if s.weigh != routes.ByProximity {
		out = append(out, "weighting "+weighName(s.weigh))
	}
	if s.mode != routes.Renormalise {
		out = append(out, "mode "+string(s.mode))
	}
	if s.tau != routes.DefaultTau {
		out = append(out, fmt.Sprintf("tau %g", s.tau))
	}
	return out
}

// Export is the graph.
func (s *routesScreen) Export() *Export {
	if s.graph == nil {
		return nil
	}
	r := s.graph
	table := &plot.Table{Header: []string{
		"from", "to", "kind", ">layer", ">head", ">src", ">dst", ">weight", ">proximity",
	}}
	for _, e := range r.Edges {
		table.Rows = append(table.Rows, []string{
			e.From, e.To, string(e.Kind), strconv.Itoa(e.Layer), strconv.Itoa(e.Head), strconv.Itoa(e.Src),
			strconv.Itoa(e.Dst), exact(e.Weight), exact(e.Proximity),
		})
	}
	words := []string{"routes", "--root", strings.Join(r.Roots, ","), "--mode", string(s.mode)}
	switch s.mode {
	case routes.TopK:
		words = append(words, "--top", strconv.Itoa(s.top))
	case routes.Mass:
		words = append(words, "--mass", exact(s.mass))
	default:
		words = append(words, "--tau", exact(s.tau))
	}
	if s.weigh != routes.ByProximity {
		words = append(words, "--weighting", weighName(s.weigh))
	}
	if r.Verified != nil {
		words = append(words, "--verify")
	}
	if target := s.a.state.Target; target >= 0 && (r.Verified != nil || s.weigh != routes.ByProximity) {
		words = append(words, "--target", strconv.Itoa(target))
	}
	return &Export{
		Schema: "routes", Result: r, Table: table, Picture: RoutesPicture(r, s.a.token),
		Command: append(words, "--tokens", strconv.Itoa(routesTokens)),
		HTML: func(title, command, engram string) ([]byte, error) {
			facts := map[string]string{"engram": engram, "model": s.a.about(), "threshold": r.Threshold.Text()}
			return r.HTML(routes.Page{Title: title, Command: command, Facts: facts, Label: s.a.token})
		},
	}
}
