package tui

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	tea "github.com/charmbracelet/bubbletea"

	"github.com/engram-go/engram/probes"
)

// command is a line of ":" that the browser itself does.
type command struct {
	name, use, help string
}

// ownCommands are those of the browser; everything else is the program's or the screen's.
func ownCommands() []command {
	return []command{
		{"prompt", "prompt TEXT", "make TEXT the prompt"},
		{"ids", "ids 1,2,3", "make token ids the prompt"},
		{"position", "position N", "choose a position"},
		{"target", "target ID", "follow a token; none follows what the model predicts"},
		{"subject", "subject TEXT", "what the prompt is about, as it stands there, for traces and edits"},
		{"screen", "screen NAME", "show a screen"},
		{"clear", "clear", "take all interventions back"},
		{"undo", "undo", "take the last change back"},
		{"open", "open FILE", "have an index, a lens or statistics at hand; edits go onto the stack"},
		{"model", "model NAME", "open another model"},
		{"export", "export FILE", "write what is shown: .json .csv .svg .png .html"},
		{"session", "session FILE", "write the session as a script"},
		{"replay", "replay FILE", "run a script"},
		{"help", "help", "the keys"},
		{"quit", "quit", "leave"},
		{"set", "set L3N5=2 @all", "an intervention; so are " + modes()},
	}
}

func modes() string {
	var names []string
	for _, m := range probes.Modes() {
		if m != probes.ModeSet {
			names = append(names, string(m))
		}
	}
	return strings.Join(names, ", ")
}

// askCommand opens the command line.
func (a *App) askCommand(text string) tea.Cmd {
	return a.Ask(Question{
		Label: ":", Text: text, Earlier: a.lines, Words: a.words,
		Done: func(text string) tea.Cmd {
			if strings.TrimSpace(text) == "" {
				return nil
			}
			a.lines = append(a.lines, text)
			return a.Run(text)
		},
	})
}

// words are what may stand in the place of a command line's last word.
func (a *App) words(ctx context.Context, text string) ([]string, error) {
	args := strings.Fields(text)
	if len(args) == 0 || strings.HasSuffix(text, " ") {
		args = append(args, "")
	}
	last := args[len(args)-1]
	var out []string
	add := func(list ...string) {
		for _, w := range list {
			if strings.HasPrefix(w, last) {
				out = append(out, w)
			}
		}
	}
	switch {
	case len(args) == 1:
		for _, c := range ownCommands() {
			add(c.name)
		}
		for _, m := range probes.Modes()[1:] {
			add(string(m))
		}
	case len(args) == 2 && args[0] == "screen":
		for _, s := range a.screens {
			add(s.Name())
		}
		return out, nil
	}
	if a.opts.Complete != nil {
		more, err := a.opts.Complete(ctx, args)
		if err != nil {
			return out, err
		}
		add(more...)
	}
	return out, nil
}

// Run does a line of the command line, of a session or of a script.
func (a *App) Run(line string) tea.Cmd {
	name, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	rest = strings.TrimSpace(rest)
	cmd, known, err := a.ownCommand(name, rest)
	if !known {
		for _, s := range a.screens {
			if cmd, known = s.Command(name, rest); known {
				break
			}
		}
	}
	if !known {
		cmd, err = a.program(line)
	}
	if err != nil {
		a.Fail(err)
	}
	return cmd
}

// ownCommand does a line that the browser itself knows.
//
//lint:long a flat list of commands
func (a *App) ownCommand(name, rest string) (cmd tea.Cmd, known bool, err error) {
	known = true
	switch name {
	case "prompt":
		var text string
		if text, err = unquoteLine(rest); err == nil {
			cmd = a.SetPrompt(text)
		}
	case "ids":
		var ids []int
		if ids, err = parseInts(rest); err == nil {
			cmd = a.SetIDs(ids)
		}
	case "position":
		var n int
		if n, err = parseInt(rest); err == nil {
			if n < 0 {
				n += len(a.state.Tokens)
			}
			cmd = a.SetPosition(n)
		}
	case "target":
		cmd, err = a.runTarget(rest)
	case "subject":
		var text string
		if text, err = unquoteLine(rest); err == nil {
			cmd, err = a.SetSubject(text)
		}
	case "screen":
		i := a.screenNamed(strings.ToLower(rest))
		if i < 0 {
			return nil, true, fmt.Errorf("no screen %q", rest)
		}
		cmd = a.goTo(i)
	case "clear":
		cmd = a.SetChanges("no interventions", nil)
	case "undo":
		cmd = a.Undo()
	case "open":
		cmd = a.openFile(rest)
	case "model":
		cmd = a.openModel(rest)
	case "export":
		cmd = a.export(rest)
	case "session":
		cmd = a.writeSession(rest)
	case "replay":
		cmd, err = a.replayFile(rest)
	case "help":
		cmd = a.showHelp()
	case "quit", "q":
		cmd = a.quit()
	default:
		list, known, err := changeNamed(name, rest)
		if known && err == nil {
			cmd = a.AddChanges(list...)
		}
		return cmd, known, err
	}
	return cmd, known, err
}

// runTarget follows a token.
func (a *App) runTarget(rest string) (tea.Cmd, error) {
	id := -1
	if rest != "none" {
		n, err := parseInt(rest)
		if err != nil {
			return nil, err
		}
		if m := a.state.Model; m != nil && (n < 0 || n >= m.Config.Vocab) {
			return nil, fmt.Errorf("token %d: the vocabulary has %d", n, m.Config.Vocab)
		}
		id = n
	}
	a.state.Target = id
	return a.refresh(), nil
}

func parseInt(text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number", text)
	}
	return n, nil
}

func parseInts(text string) ([]int, error) {
	var out []int
	for _, part := range strings.Split(text, ",") {
		n, err := parseInt(strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		out = append(out, n)
	}
	return out, nil
}

// program runs a line of the program's commands in a job and shows what it prints.
func (a *App) program(line string) (tea.Cmd, error) {
	args, err := splitLine(line)
	if err != nil || len(args) == 0 {
		return nil, err
	}
	if a.opts.Command == nil {
		return nil, fmt.Errorf("no command %q; :help lists them", args[0])
	}
	iv := a.state.Interventions()
	at := Invocation{Prompt: a.state.Prompt, IDs: a.state.IDs(), Changes: iv.Strings()}
	return start(a, work[string]{
		slot: "command", title: oneLine(args[0]), alone: args[0] == "edit" || args[0] == "eval",
		run: func(ctx context.Context, _ Progress) (string, error) { return a.opts.Command(ctx, args, at) },
		done: func(text string, err error) tea.Cmd {
			if text != "" {
				a.Show("engram "+oneLine(line), text)
			}
			return nil
		},
	}), nil
}

// splitLine cuts a command line into words; quotes keep blanks, as a shell's do.
func splitLine(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	open := false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '\'' || r == '"':
			quote, open = r, true
		case r == ' ' || r == '\t':
			if open {
				words = append(words, word.String())
			}
			word.Reset()
			open = false
		default:
			word.WriteRune(r)
			open = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote is not closed")
	}
	if open {
		words = append(words, word.String())
	}
	return words, nil
}

// resume replays the session that was kept.
func (a *App) resume() tea.Cmd {
	text, err := os.ReadFile(a.opts.Session)
	if err != nil {
		a.Fail(fmt.Errorf("resume: %w", err))
		return nil
	}
	return a.replay(string(text))
}

func (a *App) replayFile(path string) (tea.Cmd, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return a.replay(string(text)), nil
}

// replay runs the lines of a script one after the other and refreshes the screen once, in the end. Empty lines and
// those that begin with # do nothing.
func (a *App) replay(text string) tea.Cmd {
	var cmds []tea.Cmd
	a.replaying = true
	for _, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			cmds = append(cmds, a.Run(line))
		}
	}
	a.replaying = false
	a.undo = nil
	return tea.Batch(append(cmds, a.changed())...)
}

func (a *App) writeSession(path string) tea.Cmd {
	text := a.session()
	return start(a, work[bool]{
		slot: "write", title: "writing " + oneLine(path),
		run: func(ctx context.Context, _ Progress) (bool, error) {
			return true, writeText(ctx, path, text)
		},
		done: func(_ bool, err error) tea.Cmd {
			if err == nil {
				a.Say("wrote %s", path)
			}
			return nil
		},
	})
}
