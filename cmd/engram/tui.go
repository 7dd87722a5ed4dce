package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/engram-go/engram/internal/native"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
	"github.com/engram-go/engram/tui"
)

// browserFlags are those of the browser.
type browserFlags struct {
	prompt, screen, theme, session string
	with                           []string
	plain, resume, mouse           bool
}

func (a *app) tuiCommand() *cobra.Command {
	var f browserFlags
	cmd := a.command("tui [flags]", "browse a model in the terminal",
		"tui shows a model on seven screens that look at the same prompt and position: what comes next, the lens, the\n"+
			"memories, routes, causal traces, edits, and the model itself. ? lists the keys, : takes every command of this\n"+
			"program, e exports what is shown. engram alone does the same on a terminal. --plain prints the screens as text,\n"+
			"for screen readers and logs.",
		cobra.NoArgs, func(cmd *cobra.Command, _ []string) error { return a.runBrowser(cmd.Context(), &f) })
	l := cmd.Flags()
	l.StringVarP(&f.prompt, "prompt", "p", "", "prompt to begin with")
	l.StringVar(&f.screen, "screen", "",
		"screen to begin with, with --plain the only one: "+strings.Join(tui.ScreenNames(), ", "))
	l.StringVar(&f.theme, "theme", "", "dark or light; the terminal's own unless given")
	l.StringArrayVar(&f.with, "with", nil,
		"projection index, trigger index, lens or statistics to have at hand; again for more")
	l.BoolVar(&f.plain, "plain", false, "print the screens as linear text and end")
	l.BoolVar(&f.resume, "resume", false, "go on with the last session")
	l.StringVar(&f.session, "session", "", "file that keeps the session (default in the cache folder)")
	l.BoolVar(&f.mouse, "mouse", false, "take the mouse: the wheel moves, a click on a tab shows it")
	_ = cmd.RegisterFlagCompletionFunc("screen",
		cobra.FixedCompletions(tui.ScreenNames(), cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.RegisterFlagCompletionFunc("theme",
		cobra.FixedCompletions([]string{"dark", "light"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (f *browserFlags) check() error {
	if f.theme != "" && f.theme != "dark" && f.theme != "light" {
		return usagef("--theme: %q is neither dark nor light", f.theme)
	}
	if f.screen != "" && !slices.Contains(tui.ScreenNames(), f.screen) {
		return usagef("--screen: %q is none of %s", f.screen, strings.Join(tui.ScreenNames(), ", "))
	}
	for _, path := range f.with {
		if err := readable(path); err != nil {
			return err
		}
	}
	if f.resume && f.session != "" {
		return readable(f.session)
	}
	return nil
}

func (a *app) runBrowser(ctx context.Context, f *browserFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	if len(a.flags.edits) > 0 {
		return withHint(usagef("the browser has its own stack of edits"), "open the file there, with :open FILE")
	}
	opts := tui.Options{
		Model: a.flags.model, Prompt: f.prompt, Screen: f.screen, Open: a.openForBrowser, Hint: advice, Files: f.with,
		Resume: f.resume, Theme: f.theme, Mouse: f.mouse, Version: versionText(), Session: f.session,
	}
	if opts.Model == "" {
		opts.Model = "demo"
	}
	if opts.Prompt == "" && opts.Model == "demo" && !f.resume {
		opts.Prompt = demoPrompt
	}
	if f.plain {
		err := tui.Plain(ctx, opts, a.stdout)
		if errors.Is(err, tui.ErrScreen) {
			err = usageError{err}
		}
		return err
	}
	if !tui.Interactive(a.stdin, a.stdout) {
		return withHint(usagef("the browser needs a terminal"), "engram tui --plain prints the screens as text")
	}
	if err := keepSession(&opts); err != nil {
		return err
	}
	opts.Command, opts.Complete = a.commandIn, completions
	return tui.Run(ctx, opts, a.stdin.(*os.File), a.stdout.(*os.File))
}

// keepSession names the files of the session and the log in the cache folder.
func keepSession(opts *tui.Options) error {
	dir, err := native.CacheDir()
	if err != nil {
		return nil //nolint:nilerr // a system without a cache folder keeps no session
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	opts.Log = filepath.Join(dir, "tui.log")
	if opts.Session == "" {
		opts.Session = filepath.Join(dir, "session.txt")
	}
	return nil
}

// advice is the hint that goes with an error.
func advice(err error) string {
	if hint := loader.Hint(err); hint != "" {
		return hint
	}
	return usualHint(err)
}

// browsing is about how many tokens a browser runs, so that the backend suits traces and edits.
const browsing = 20_000

// openForBrowser opens a model that stays open.
func (a *app) openForBrowser(ctx context.Context, name string, note func(string)) (*tui.Opened, error) {
	b := newApp(nil, &bytes.Buffer{}, &bytes.Buffer{})
	b.flags = a.flags
	b.flags.model = name
	b.tell = func(format string, args ...any) { note(fmt.Sprintf(format, args...)) }
	m, err := b.open(ctx, browsing)
	if err != nil {
		return nil, errors.Join(err, b.close())
	}
	out := &tui.Opened{Model: m, Backend: b.session.info.Name, Close: b.session.close}
	if b.session.info.Fallback != "" {
		out.Notes = append(out.Notes, "running on the Go backend, which is slower: "+b.session.info.Fallback)
	}
	a.browsed = &lent{session: *b.session, name: name}
	return out, nil
}

// lent is a session whose model belongs to a browser.
type lent struct {
	session
	name string
}

// borrow makes the browser's model the command's.
func (a *app) borrow() (*transformer.Model, error) {
	if len(a.flags.edits) > 0 {
		return nil, withHint(usagef("--edit: the browser's stack of edits is in force"), "open the file with :open FILE")
	}
	s := a.lent.session
	a.session = &s
	return s.model, nil
}

// commandIn runs a command on the browser's model and gives what it prints.
func (a *app) commandIn(ctx context.Context, args []string, at tui.Invocation) (string, error) {
	var out, notes bytes.Buffer
	b := newApp(strings.NewReader(""), &out, &notes)
	b.lent = a.browsed
	root := b.rootCommand()
	cmd, _, err := root.Find(args)
	if err != nil || cmd == root {
		return "", unknownCommand(root, args[0])
	}
	if cmd.Name() == "tui" {
		return "", errors.New("the browser is already open")
	}
	given := func(flags ...string) bool {
		return slices.ContainsFunc(args, func(arg string) bool {
			name, _, _ := strings.Cut(arg, "=")
			return slices.Contains(flags, name)
		})
	}
	if !given("--model", "-m") {
		args = append(slices.Clone(args), "--model", b.lent.name)
	}
	if cmd.Flags().Lookup("ids") != nil && !given("--prompt", "-p", "--ids") {
		if at.Prompt != "" {
			args = append(args, "--prompt", at.Prompt)
		} else {
			args = append(args, "--ids", joinInts(at.IDs))
		}
	}
	if cmd.Flags().Lookup("change") != nil {
		for _, line := range at.Changes {
			args = append(args, "--change", line)
		}
	}
	b.args = args
	root.SetArgs(args)
	err = root.ExecuteContext(ctx)
	if closed := b.close(); err == nil {
		err = closed
	}
	return notes.String() + out.String(), err
}

func joinInts(list []int) string {
	words := make([]string, len(list))
	for i, n := range list {
		words[i] = strconv.Itoa(n)
	}
	return strings.Join(words, ",")
}

// completions are the words that may stand in the place of the last one.
func completions(ctx context.Context, args []string) ([]string, error) {
	var out bytes.Buffer
	root := newApp(strings.NewReader(""), &out, &bytes.Buffer{}).rootCommand()
	root.SetArgs(append([]string{cobra.ShellCompNoDescRequestCmd}, args...))
	if err := root.ExecuteContext(ctx); err != nil {
		return nil, err
	}
	var words []string
	for _, line := range strings.Split(out.String(), "\n") {
		if line != "" && !strings.HasPrefix(line, ":") {
			words = append(words, line)
		}
	}
	return words, nil
}
