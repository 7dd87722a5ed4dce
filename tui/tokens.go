package tui

import (
	"strings"

	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/probes"
)

// tokenColumns is how wide a token is in a list.
const tokenColumns = 16

// token shows a token, whole.
func (a *App) token(id int) string {
	if s, ok := a.shownTokens[id]; ok {
		return s
	}
	s := display.ID(id)
	if m := a.state.Model; m != nil && m.Tokenizer != nil {
		if b := m.Tokenizer.Bytes(id); len(b) > 0 {
			s = display.Token(b)
		}
	}
	a.shownTokens[id] = s
	return s
}

// tokenCut shows a token in at most some columns.
func (a *App) tokenCut(id, width int) string {
	s := a.token(id)
	if columns(s) <= width {
		return s
	}
	return display.Cut(s, width)
}

// tokens shows a list of tokens on one row, best first.
func (a *App) tokens(list []probes.TokenScore, n int) string {
	var parts []string
	for _, t := range list[:min(n, len(list))] {
		parts = append(parts, a.tokenCut(t.ID, tokenColumns)+" "+prob(t.Prob))
	}
	return strings.Join(parts, "  ")
}

// vectors shows the tokens that a vector stands for on one row.
func (a *App) vectors(list []probes.VectorToken, n int) string {
	var parts []string
	for _, t := range list[:min(n, len(list))] {
		parts = append(parts, a.tokenCut(t.ID, tokenColumns))
	}
	return strings.Join(parts, " ")
}
