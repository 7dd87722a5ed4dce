package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/editing"
)

// settingsResult is the result of edit settings.
type settingsResult struct {
	Settings []editing.Published `json:"settings"`
}

func (a *app) editSettingsCommand() *cobra.Command {
	return a.command("settings", "layers and numbers that papers give for models",
		"settings lists what is published. A model of one of these shapes takes what stands here unless flags say\n"+
			"otherwise; for others, edit tune finds a layer and a clamp. It needs no model.",
		cobra.NoArgs, func(*cobra.Command, []string) error {
			r := &settingsResult{editing.PublishedSettings()}
			return a.print("settings", r, nil, func(p *page) {
				t := &table{header: []string{"model", "methods", "layers", ">steps", ">clamp", ">decay", ">lambda", ">bound"}}
				for _, s := range r.Settings {
					var names []string
					for _, m := range s.Methods {
						names = append(names, string(m))
					}
					t.add(s.Model, strings.Join(names, ", "), span(s.Layers), number(float64(s.Steps)), number(s.Clamp),
						number(s.Decay), number(s.Lambda), number(s.Bound))
				}
				p.table(t)
				p.line("-: the method's own, as the help of its command tells")
			})
		})
}

// span writes layers that follow each other.
func span(layers []int) string {
	first, last := layers[0], layers[len(layers)-1]
	if first == last {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d-%d", first, last)
}

// number writes a number, or - where there is none.
func number(v float64) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%g", v)
}
