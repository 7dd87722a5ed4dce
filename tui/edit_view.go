package tui

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/engram-go/engram/editing"
	"github.com/engram-go/engram/internal/display"
	"github.com/engram-go/engram/internal/numfmt"
	"github.com/engram-go/engram/internal/plot"
)

// Render draws the request, the search, what became of prompts, and the stack.
func (s *editScreen) Render(w, h int) []string {
	if !s.a.state.ready() {
		return nil
	}
	out := append(s.requestLines(w), s.searchLines(w)...)
	stack := s.stackLines(w, max(2, h/4))
	room := h - len(out) - len(stack) - 1
	middle := s.testLines(w)
	if s.refused != nil {
		middle = s.refusedLines(w)
	} else if s.made == nil {
		middle = s.adviceLines(w)
	}
	if len(middle) > room {
		middle = append(middle[:max(0, room-1)], s.a.theme.Faint.text("    …"))
	}
	out = append(out, fit(middle, max(0, room))...)
	return append(append(out, ""), stack...)
}

// requestLines are the request and how it is made.
func (s *editScreen) requestLines(w int) []string {
	st, t := &s.a.state, s.a.theme
	l := newLine(w).put(t.Head, "  request   ")
	if at := strings.Index(st.Prompt, st.Subject); st.Subject != "" && at >= 0 {
		l.add(display.Text(st.Prompt[:at])).put(t.Mark, "*"+display.Text(st.Subject)+"*")
		l.add(display.Text(st.Prompt[at+len(st.Subject):]))
	} else {
		l.add(display.Text(st.Prompt)).put(t.Bad, "  no subject: s chooses it")
	}
	target := "… t says what is to follow"
	if s.target != "" {
		target = display.Text(s.target)
	}
	l.put(t.Faint, " → ").put(t.Mark, target)
	if f := s.a.fact(); f != nil {
		l.put(t.Faint, "  (known: "+oneLine(f.Object)+")")
	}
	second := newLine(w).put(t.Head, "  method    ").put(t.Mark, string(s.method)).put(t.Faint, "   layer ").
		put(t.Mark, strconv.Itoa(s.theLayer()))
	if clamp := s.theClamp(); clamp > 0 {
		second.put(t.Faint, "   clamp ").put(t.Mark, exact(clamp))
	}
	second.put(t.Faint, "   statistics ").add(s.statisticsText())
	return []string{l.String(), second.String()}
}

// statisticsText says against what the edit will be measured.
func (s *editScreen) statisticsText() string {
	layer := s.theLayer()
	if !s.method.NeedsStatistics() {
		return "not needed"
	}
	if s.identity {
		return "identity: other subjects change too (S)"
	}
	for i := len(s.a.files) - 1; i >= 0; i-- {
		if c := s.a.files[i].statistics; c != nil && c.Layer == layer {
			return fmt.Sprintf("%s, %s tokens", oneLine(c.Corpus), numfmt.Count(c.Count))
		}
	}
	if c := s.known[layer]; c != nil {
		return fmt.Sprintf("%s, %s tokens", c.Corpus, numfmt.Count(c.Count))
	}
	n := int64(10 * s.a.state.Model.Config.FFN.Hidden)
	return fmt.Sprintf("the program's facts, %s tokens, to be collected", numfmt.Count(n))
}

// searchLines are the losses of the search.
func (s *editScreen) searchLines(w int) []string {
	t := s.a.theme
	l := newLine(w).put(t.Head, "  search    ")
	if len(s.losses) == 0 {
		text := "not run: enter makes the edit, nothing is in force before a"
		if s.phase != "" {
			text = s.phase + " …"
		}
		return []string{l.put(t.Faint, text).String(), ""}
	}
	last := s.losses[len(s.losses)-1]
	steps := 20
	if w < 100 {
		steps = 8
	}
	l.add(fmt.Sprintf("%2d ", len(s.losses))).put(t.Mark, fmt.Sprintf("P(target) %.2f ", math.Exp(-last.NLL)))
	l.put(t.Bar, sparkline(s.losses, steps))
	l.add(fmt.Sprintf(" loss %.2f = nll %.2f + kl %.2f + decay %.2f", last.Total, last.NLL, last.KL, last.Decay))
	second := ""
	if s.made != nil {
		e := s.made.edits[0]
		second = fmt.Sprintf("            |ΔW|/|W| %.2f", e.NormRatio)
		if e.DivisorRatio != 0 {
			second += fmt.Sprintf("   divisor ratio %.2f", e.DivisorRatio)
		}
		second += fmt.Sprintf("   P(target) %.3f → %.3f", e.TargetProbBefore, e.TargetProbAfter)
	} else if s.phase != "" {
		second = "            " + s.phase + " …"
	}
	return []string{l.String(), t.Faint.text(cut(second, w))}
}

// sparkline is the target's probability by evaluation, the last ones.
func sparkline(list []editing.Loss, n int) string {
	steps := []rune("▁▂▃▄▅▆▇█")
	var b strings.Builder
	for _, l := range list[max(0, len(list)-n):] {
		i := int(math.Exp(-l.NLL) * float64(len(steps)))
		b.WriteRune(steps[max(0, min(i, len(steps)-1))])
	}
	return b.String()
}

// adviceLines tell what to do next.
func (s *editScreen) adviceLines(w int) []string {
	text := "t says what is to follow the prompt instead, enter searches the change of weights and tests it, a puts " +
		"it in force, u takes it back. m, + and - choose method and layer, c how long the change may be, n adds a prompt " +
		"to test with."
	if s.phase != "" {
		text = "Weights change for a moment while an edit is made and tested; other screens wait. esc stops."
	}
	out := []string{""}
	for _, l := range wrap(text, w-4) {
		out = append(out, "  "+s.a.theme.Faint.text(l))
	}
	return out
}

// refusedLines say why there is no edit.
func (s *editScreen) refusedLines(w int) []string {
	t := s.a.theme
	out := []string{""}
	for _, l := range wrap("refused: "+oneLine(s.refused.Error()), w-4) {
		out = append(out, "  "+t.Bad.text(l))
	}
	var hinted interface{ Hint() string }
	hint := ""
	if errors.As(s.refused, &hinted) {
		hint = hinted.Hint()
	} else if s.a.opts.Hint != nil {
		hint = s.a.opts.Hint(s.refused)
	}
	for _, l := range wrap(oneLine(hint), w-4) {
		out = append(out, "  "+l)
	}
	return out
}

// verdict says whether a prompt's answer is as it should be after the edit.
func (m *madeEdit) verdict(i int) (text string, good bool) {
	p := &m.replies.Prompts[i]
	switch m.roles[i] {
	case roleRewrite, roleParaphrase:
		if p.After.Exact {
			return "ok", true
		}
		return "missed", false
	}
	if p.Kept() {
		return "kept", true
	}
	return "changed", false
}

// testLines are the prompts before and after.
func (s *editScreen) testLines(w int) []string {
	if s.made == nil || s.made.replies == nil {
		return nil
	}
	t := s.a.theme
	const reply, words, verdict = 19, 11, 8
	room := max(10, w-4-words-2*reply-verdict-4)
	head := newLine(w).add("  ").cell(t.Head, "prompt", words+1+room, false).add(" ").
		cell(t.Head, "before", reply, false).add(" ").cell(t.Head, "after", reply, false)
	out := []string{head.String()}
	for i := range s.made.replies.Prompts {
		p := &s.made.replies.Prompts[i]
		text, good := s.made.verdict(i)
		style := t.Good
		if !good {
			style = t.Bad
		}
		l := newLine(w).add("  ").cell(t.Faint, s.made.roles[i], words, false).add(" ")
		l.cell(Style{}, cutLeft(display.Text(p.Prompt), room), room, false).add(" ")
		l.cell(Style{}, s.reply(&p.Before), reply, false).add(" ").cell(Style{}, s.reply(&p.After), reply, false).add(" ")
		out = append(out, l.put(style, text).String())
	}
	impact := newLine(w).add("  ").cell(t.Faint, "impact", words, false).add(" ")
	if r := s.made.impact; r != nil {
		impact.add(impactText(r))
	} else {
		impact.put(t.Faint, "i looks for contexts of the program's text that change")
	}
	out = append(out, impact.String())
	for _, e := range s.made.edits {
		for _, warning := range e.Warnings {
			for _, l := range wrap("warning: "+oneLine(warning), w-4) {
				out = append(out, "  "+t.Mark.text(l))
			}
		}
	}
	return out
}

func (s *editScreen) reply(p *editing.PromptReply) string { return s.answer(p.Top, p.TopProb) }

// answer is a token with its probability.
func (s *editScreen) answer(token int, prob float64) string {
	return fmt.Sprintf("%s %s", s.a.tokenCut(token, 14), decimal(prob))
}

// cutLeft shortens text to its end, which tells prompts apart.
func cutLeft(text string, width int) string {
	if columns(text) <= width {
		return text
	}
	runes := []rune(text)
	for columns(string(runes)) > max(0, width-1) {
		runes = runes[1:]
	}
	return "…" + string(runes)
}

// stackLines are the edits around the cursor.
func (s *editScreen) stackLines(w, rows int) []string {
	t, list := s.a.theme, s.a.state.Edits
	if len(list) == 0 {
		return []string{newLine(w).put(t.Head, "  stack     ").put(t.Faint, "empty").String()}
	}
	out := []string{newLine(w).put(t.Head, "  stack").
		put(t.Faint, fmt.Sprintf("     %s, %d in force", count(len(list), "edit"), s.a.state.inForce())).String()}
	first := max(0, min(s.cursor-rows/2, len(list)-rows))
	for i := first; i < min(len(list), first+rows); i++ {
		e, l := &list[i], newLine(w)
		mark, state := "  ", "not in force"
		if i == s.cursor {
			mark = "> "
		}
		if e.On {
			state = "in force"
		}
		l.add(fmt.Sprintf("%s%d %s   ", mark, i+1, e.about())).put(t.Mark, state)
		if e.File != "" {
			l.put(t.Faint, "   "+oneLine(e.File))
		}
		if i == s.cursor {
			out = append(out, l.selected(t))
			continue
		}
		out = append(out, l.String())
	}
	return out
}

// Plain is the screen as linear text.
func (s *editScreen) Plain() string {
	var b strings.Builder
	if !s.a.state.ready() {
		return ""
	}
	subject, target := "none chosen", "none"
	if s.a.state.Subject != "" {
		subject = oneLine(s.a.state.Subject)
	}
	if s.target != "" {
		target = display.Text(s.target)
	}
	fmt.Fprintf(&b, "subject: %s\ntarget: %s\nmethod: %s, layer %d, ", subject, target, s.method, s.theLayer())
	if clamp := s.theClamp(); clamp > 0 {
		fmt.Fprintf(&b, "clamp %s, ", exact(clamp))
	}
	fmt.Fprintf(&b, "statistics: %s\n", s.statisticsText())
	if n := len(s.losses); n > 0 {
		fmt.Fprintf(&b, "search: %d evaluations, last loss %.2f, target %.2f\n", n, s.losses[n-1].Total,
			math.Exp(-s.losses[n-1].NLL))
	}
	if s.refused != nil {
		fmt.Fprintf(&b, "refused: %s\n", oneLine(s.refused.Error()))
	}
	if s.made != nil && s.made.replies != nil {
		for i := range s.made.replies.Prompts {
			p := &s.made.replies.Prompts[i]
			text, _ := s.made.verdict(i)
			fmt.Fprintf(&b, "%s: %s: before %s, after %s, %s\n", s.made.roles[i], display.Text(p.Prompt),
				s.reply(&p.Before), s.reply(&p.After), text)
		}
	}
	if s.made != nil && s.made.impact != nil {
		fmt.Fprintf(&b, "impact: %s\n", impactText(s.made.impact))
	}
	for i := range s.a.state.Edits {
		e := &s.a.state.Edits[i]
		state := "not in force"
		if e.On {
			state = "in force"
		}
		fmt.Fprintf(&b, "stack %d: %s, %s\n", i+1, e.about(), state)
	}
	return b.String()
}

// exact is a number with all its digits.
func exact(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

// Copy is what became of the prompts.
func (s *editScreen) Copy() (text, what string) {
	if s.made == nil {
		return "", ""
	}
	return s.Plain(), "the edit"
}

// Export is the stack as edit commands print it, and the tests of the last edit as a table.
func (s *editScreen) Export() *Export {
	if s.made == nil || s.made.replies == nil {
		return nil
	}
	m := s.a.state.Model
	table := &plot.Table{Header: []string{"role", "prompt", "before", ">p before", "after", ">p after", "verdict"}}
	for i := range s.made.replies.Prompts {
		p := &s.made.replies.Prompts[i]
		text, _ := s.made.verdict(i)
		table.Rows = append(table.Rows, []string{
			s.made.roles[i], display.Text(p.Prompt), s.a.token(p.Before.Top), exact(p.Before.TopProb),
			s.a.token(p.After.Top), exact(p.After.TopProb), text,
		})
	}
	return &Export{
		Schema: "edit", Table: table, Command: s.command(), AsItIs: true,
		Result: &editing.Edits{Model: m.Name, Fingerprint: m.Fingerprint, List: s.made.edits},
	}
}

// command is the words that make the edit again.
func (s *editScreen) command() []string {
	name := string(s.made.edits[0].Method)
	words := []string{"edit", name}
	switch editing.Method(name) {
	case editing.MethodRROME, editing.MethodROME, editing.MethodPROME:
		words = []string{"edit", "rome", "--method", name}
	case editing.MethodFT, editing.MethodFTL, editing.MethodFTM:
		words = []string{"edit", "ft", "--method", name}
	}
	words = append(words, "--subject", s.made.request.Subject, "--target", s.made.request.Target)
	e := s.made.edits[0]
	switch {
	case !e.Method.NeedsStatistics():
		words = append(words, "--layer", strconv.Itoa(e.Layer))
	case e.Statistics.Count == 0:
		words = append(words, "--layer", strconv.Itoa(e.Layer), "--stats", "identity")
	default:
		words = append(words, "--stats", "FILE") // as stats collect writes it
	}
	if clamp := e.Settings.Clamp; clamp > 0 {
		words = append(words, "--clamp", exact(clamp))
	}
	return append(words, "--out", "FILE")
}
