package tui

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	tea "github.com/charmbracelet/bubbletea"
	"github.com/muesli/termenv"

	"github.com/engram-go/engram/probes"
)

// hostilePrompt has tokens that would clear the screen, set the title and turn the line around.
const hostilePrompt = "The Eiffel Tower is in\x1b[2J\x1b]0;gotcha\x07\u202e\n"

// TestHostileTokensNeverReachTheTerminal: on every screen and in every size tokens are escaped.
func TestHostileTokensNeverReachTheTerminal(t *testing.T) {
	d := withFakes(100, 30, hostilePrompt, map[string]any{"predict": predicted()})
	contains(t, d, `\x1b[2J`, `\u{202e}`, "↵")
	for i := range d.app.screens {
		d.run(d.app.goTo(i))
		checkFrame(t, d)
		for _, r := range d.app.screens[i].Plain() {
			if r < ' ' && r != '\n' || r == '\u202e' {
				t.Errorf("plain text of screen %d holds %q", i, r)
			}
		}
	}
}

// TestEverySize: frames fit into any terminal, one of a single cell included, also in a storm of resizes.
func TestEverySize(t *testing.T) {
	d := withFakes(100, 30, "The Eiffel Tower", map[string]any{"predict": predicted()})
	for i := range d.app.screens {
		d.run(d.app.goTo(i))
		for w := 1; w < 220; w += 7 {
			for _, h := range []int{1, 2, 23, 24, 25, 60} {
				d.message(tea.WindowSizeMsg{Width: w, Height: h})
				checkFrame(t, d)
			}
		}
	}
}

// TestAPanicOfAnAnalysisIsShown, and the browser goes on.
func TestAPanicOfAnAnalysisIsShown(t *testing.T) {
	d := withFakes(100, 30, "The Eiffel Tower", nil)
	d.app.fake = func(string) (any, error) { panic("shape [3] is not [4]") }
	d.run(d.app.SetPrompt("The"))
	contains(t, d, "internal error: shape [3] is not [4]")
	d.app.fake = func(string) (any, error) { return predicted(), nil }
	d.run(d.app.SetPrompt("The Eiffel"))
	contains(t, d, "> ·Paris")
}

// TestAJobIsReplacedByTheNextOfItsSlot: only the last one's result counts, and Esc stops what runs.
func TestAJobIsReplacedByTheNextOfItsSlot(t *testing.T) {
	a := quietApp(Options{})
	var got []int
	job := func(n int) tea.Cmd {
		return start(a, work[int]{
			slot: "s", title: "job",
			run: func(ctx context.Context, _ Progress) (int, error) { return n, ctx.Err() },
			done: func(n int, err error) tea.Cmd {
				if err == nil {
					got = append(got, n)
				}
				return nil
			},
		})
	}
	first, second := job(1), job(2)
	for _, cmd := range []tea.Cmd{first, second} {
		a.Update(cmd())
	}
	if len(got) != 1 || got[0] != 2 {
		t.Errorf("results %v", got)
	}
	third := job(3)
	if a.busy("s") == nil {
		t.Error("a job that was started is not running")
	}
	a.back()
	a.Update(third())
	if len(got) != 1 || len(a.jobs.list) != 0 || !strings.Contains(a.message, "stopped") {
		t.Errorf("results %v after esc, message %q", got, a.message)
	}
}

// TestAModelThatCannotBeOpened is said on the screen, and q still leaves.
func TestAModelThatCannotBeOpened(t *testing.T) {
	a := quietApp(Options{
		Model: "nowhere", Hint: func(error) string { return "look elsewhere" },
		Open: func(context.Context, string, func(string)) (*Opened, error) { return nil, errors.New("no such model") },
	})
	d := newDriver(a, 90, 24)
	contains(t, d, "could not be opened: no such model", "look elsewhere")
	d.keys("q")
	if !d.quit {
		t.Error("q does not leave")
	}
}

// TestSessionsReplay: the script brings prompt, position, interventions and screen back.
func TestSessionsReplay(t *testing.T) {
	answers := map[string]any{"predict": predicted()}
	d := withFakes(100, 30, hostilePrompt, answers)
	for _, line := range []string{"position 2", "ablate L1N3 @all", "set L2N5=2.5"} {
		d.run(d.app.Run(line))
	}
	script := d.app.session()
	other := withFakes(100, 30, "The", answers)
	other.run(other.app.replay(script))
	if got := other.app.session(); got != script {
		t.Errorf("replayed, the session is\n%s\nnot\n%s", got, script)
	}
	if other.app.state.Position != 2 || len(other.app.state.Changes) != 2 {
		t.Errorf("state %+v", other.app.state)
	}
}

// TestListsOfTokens are cut and counted.
func TestListsOfTokens(t *testing.T) {
	a := withFakes(100, 30, "The", map[string]any{"predict": predicted()}).app
	scores := []probes.TokenScore{{ID: 4, Prob: 0.93}, {ID: 5, Prob: 0.02}}
	if got := a.tokens(scores, 1); got != "·Paris 0.930" {
		t.Errorf("tokens %q", got)
	}
	if got := a.vectors([]probes.VectorToken{{ID: 4}, {ID: 1}, {ID: 99}}, 3); got != `·Paris \xe2\x82 <id 99>` {
		t.Errorf("vectors %q", got)
	}
}

// TestTheEnvironmentIsTheUsers: what keeps Bubble Tea from asking the terminal is gone when the package is initialised.
func TestTheEnvironmentIsTheUsers(t *testing.T) {
	if os.Getenv("CI") == "engram" {
		t.Error("the variable that package quiet sets is left")
	}
}

// TestThemes: the environment says how many colours there are, and a name or the terminal what the background is.
func TestThemes(t *testing.T) {
	for env, want := range map[string]termenv.Profile{
		"NO_COLOR=1 TERM=xterm-256color": termenv.Ascii, "TERM=dumb": termenv.Ascii, "": termenv.Ascii,
		"TERM=xterm COLORTERM=truecolor": termenv.TrueColor, "TERM=xterm-256color": termenv.ANSI256,
		"TERM=screen": termenv.ANSI256, "TERM=linux": termenv.ANSI,
	} {
		if got := profileOf(environ(env)); got != want {
			t.Errorf("%q has profile %v, want %v", env, got, want)
		}
	}
	for _, c := range []struct {
		name, env string
		want      bool
	}{
		{"", "", true},
		{"", "COLORFGBG=0;15", false},
		{"", "COLORFGBG=15;0", true},
		{"light", "COLORFGBG=15;0", false},
		{"dark", "COLORFGBG=0;15", true},
	} {
		if got := isDark(c.name, environ(c.env)); got != c.want {
			t.Errorf("%+v: dark is %v", c, got)
		}
	}
}

// environ is an environment written as NAME=VALUE pairs.
func environ(text string) func(string) string {
	return func(name string) string {
		for _, pair := range strings.Fields(text) {
			if n, v, _ := strings.Cut(pair, "="); n == name {
				return v
			}
		}
		return ""
	}
}
