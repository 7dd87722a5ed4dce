// Package tui is the terminal browser: seven screens over one model, one prompt and one chosen position.
//
// Nothing is computed here. A screen calls a function of probes, routes or editing and shows its result struct, so that
// its numbers are those of the commands.
//
// # How it is built
//
// App is the only Bubble Tea model. It owns the state that all screens look at (State), the running jobs, the text
// entry and the overlays, and draws the frame around the screen: tabs, prompt, a rule, the screen, messages, keys. A
// screen is a plain struct with the methods of Screen, holds a pointer to the App, and embeds base, which has a
// default for every method but Name, Render and Plain. newScreens lists them.
//
//	Name() string                     word of the tab, of ":screen NAME" and of --screen
//	Keys() []Binding                  keys with help and what they do; help, key sheet and dispatch come from here
//	Refresh() tea.Cmd                 called when the screen is shown and when the state has changed while it is: start
//	                                  the jobs whose inputs changed (see viewed), nil where nothing has to be done
//	Update(tea.Msg) tea.Cmd           messages that nobody else took; rarely needed
//	Render(w, h int) []string         at most h lines of at most w columns; never computes, never blocks
//	Plain() string                    the same as linear text without cells or colours
//	Export() *Export                  what "e" writes; nil where there is nothing to export yet
//	Copy() (text, what string)        what "y" copies
//	Filter(text string) tea.Cmd       what "/" does; live, called on every key
//	Back() bool                       Esc: close what is open inside the screen, false if nothing was
//	Command(name, rest string) (cmd tea.Cmd, known bool)   lines of ":" that are the screen's own
//	Session() []string                lines for the session script that bring the screen's part of the state back;
//	                                  other screens' Command sees them too
//
// # Rules
//
//   - Update never blocks: work goes through start, which runs it in a command with a context, progress, and a guard
//     that turns a panic into an error on the screen. A job has a slot; starting another one in the slot cancels the
//     first. Its done function runs in Update, and only if the job is still the one of its slot.
//   - Jobs that change weights, also for a moment, are alone: analyses wait for their end, and those that can go on
//     later (traces) are stopped for them.
//   - The state is changed by the methods of App (SetPrompt, SetPosition, SetChanges, SetEdits), which note the undo,
//     count Version up and refresh the shown screen. Results that depend on the state keep the Version they are of.
//   - Text entry is asked for with App.Ask; long text is shown with App.Show; messages go to App.Say and App.Fail.
//   - Lines are built with line (width-aware, plain text plus Style); token text comes from App.token; tables of any
//     length are Table; grids are Heatmap.
//   - Keys of all screens are in App.globalKeys; a screen's own keys come first.
//   - Tests set App.fake to answer jobs by slot with fixed result structs, and drive the App without a terminal with a
//     driver (see driver.go and helper_test.go).
package tui
