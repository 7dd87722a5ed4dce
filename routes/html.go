package routes

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"maps"
	"slices"

	"github.com/engram-go/engram/internal/result"
)

// Page is a graph as one HTML page that can be moved, zoomed, thinned by weight and asked for heads and tokens. It has
// everything in itself and asks nothing from the net.
type Page struct {
	Title   string
	Command string              // command line that makes the page again; "" leaves it out
	Facts   map[string]string   // what the numbers are from and how they are to be read
	Label   func(id int) string // a token as it may stand on a screen
}

//go:embed page.html
var pageText string

// graphJSON is what the page's script draws.
type graphJSON struct {
	*RoutesResult
	Labels map[int]string `json:"labels"`
}

// HTML writes the page. Two pages of the same graph are the same bytes.
func (r *RoutesResult) HTML(p Page) ([]byte, error) {
	data, err := json.Marshal(graphJSON{r, r.labels(p.Label)}) // escapes <, > and &: it cannot end the script
	if err != nil {
		return nil, fmt.Errorf("write a page of routes: %w", err)
	}
	t, err := template.New("routes").Parse(pageText)
	if err != nil {
		return nil, fmt.Errorf("write a page of routes: %w", err)
	}
	type fact struct{ Name, Value string }
	fill := struct {
		Title, Command string
		Facts          []fact
		Graph          template.JS
	}{p.Title, p.Command, nil, template.JS(result.Visible(data))}
	for _, name := range slices.Sorted(maps.Keys(p.Facts)) {
		fill.Facts = append(fill.Facts, fact{name, p.Facts[name]})
	}
	var b bytes.Buffer
	if err := t.Execute(&b, fill); err != nil {
		return nil, fmt.Errorf("write a page of routes: %w", err)
	}
	return b.Bytes(), nil
}

// labels are the texts of all tokens of a graph.
func (r *RoutesResult) labels(label func(id int) string) map[int]string {
	out := map[int]string{}
	add := func(t Tokens) {
		for _, v := range slices.Concat(t.Promotes, t.Suppresses) {
			out[v.ID] = label(v.ID)
		}
	}
	for _, t := range slices.Concat(r.Prompt, r.Contrast) {
		out[t.ID] = label(t.ID)
	}
	for i := range r.FFNs {
		for _, n := range r.FFNs[i].Neurons {
			add(n.Tokens)
		}
	}
	for i := range r.Nodes {
		add(r.Nodes[i].Tokens)
	}
	for i := range r.Edges {
		add(r.Edges[i].Tokens)
	}
	return out
}
