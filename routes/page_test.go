package routes_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/backend/backendtest"
	"github.com/engram-go/engram/routes"
)

func pageOf(t *testing.T, label func(int) string) (*routes.RoutesResult, []byte) {
	t.Helper()
	m := open(t, backendtest.Open(t, "go"), "stories")
	r, err := routes.Routes(t.Context(), m, routes.RoutesOptions{IDs: []int{1, 403, 407, 261, 378}, Tokens: 3, Threshold: threshold(routes.Filter, 0.02)})
	if err != nil {
		t.Fatal(err)
	}
	data, err := r.HTML(routes.Page{Title: "routes <1>", Command: "engram routes", Facts: map[string]string{"model": "<b>"}, Label: label})
	if err != nil {
		t.Fatal(err)
	}
	return r, data
}

// TestPageHoldsWhatTokensHold: a token cannot end the script or become markup, and the page names nothing on the net.
func TestPageHoldsWhatTokensHold(t *testing.T) {
	_, data := pageOf(t, func(int) string { return "</script><img src=\"http://evil/x\"> \u2028\u202e" })
	for _, bad := range []string{"</script><img", "<b>", "\u2028", "\u202e", "routes <1>"} {
		if bytes.Contains(data, []byte(bad)) {
			t.Errorf("the page holds %q", bad)
		}
	}
	if n := bytes.Count(data, []byte("</script>")); n != 1 {
		t.Errorf("%d scripts end", n)
	}
	outside := regexp.MustCompile(`(?:src|href|url|import|fetch)\s*[=(]`).FindAll(data, -1)
	for _, x := range outside {
		if !strings.HasPrefix(string(x), "src") { // inside the label above, as text
			t.Errorf("the page has %s", x)
		}
	}
}

// TestPageInBrowser: in Chromium the page loads without an error, the slider's value changes which edges are drawn as
// the formula says, and no request leaves.
func TestPageInBrowser(t *testing.T) {
	backendtest.Long(t)
	r, data := pageOf(t, strconv.Itoa)
	log := filepath.Join(t.TempDir(), "net.json")
	for _, tau := range []float64{0, 0.1, 0.5} {
		page := browse(t, data, tau, log)
		want := fmt.Sprintf(`data-edges="%d"`, reachable(r, tau))
		if !bytes.Contains(page, []byte(want)) {
			t.Errorf("above %g the page has %s, want %s", tau, regexp.MustCompile(`data-edges="\d*"`).Find(page), want)
		}
	}
	checkNoRequests(t, log)
}

// TestPageOfAContrast: edges of a contrast are drawn by their size alone, as they need not lead to a root.
func TestPageOfAContrast(t *testing.T) {
	m := open(t, backendtest.Open(t, "go"), "stories")
	with := openParts(t, m, routes.PartsOptions{IDs: []int{1, 300, 407, 261, 378}})
	parts := openParts(t, m, routes.PartsOptions{IDs: []int{1, 403, 407, 261, 378}})
	r, err := routes.Routes(t.Context(), m, routes.RoutesOptions{Parts: parts, Contrast: with, Threshold: threshold(routes.Filter, 0.01)})
	if err != nil {
		t.Fatal(err)
	}
	data, err := r.HTML(routes.Page{Label: strconv.Itoa})
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, e := range r.Edges {
		if math.Abs(e.Weight) > 0.05 {
			want++
		}
	}
	if page := browse(t, data, 0.05, ""); want == 0 || !bytes.Contains(page, fmt.Appendf(nil, `data-edges="%d"`, want)) {
		t.Errorf("the page has not %d edges", want)
	}
}

// browse gives a page as Chromium has it with the slider at a value; the test is skipped where there is none. log takes
// what the browser's network stack did, unless it is "".
func browse(t *testing.T, page []byte, tau float64, log string) []byte {
	t.Helper()
	browser := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			browser = path
			break
		}
	}
	if browser == "" {
		t.Skip("no Chromium on this machine")
	}
	path := filepath.Join(t.TempDir(), "routes.html")
	if err := os.WriteFile(path, page, 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{
		"--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir=" + t.TempDir(), "--disable-background-networking",
		"--disable-component-update", "--no-first-run", "--dump-dom", fmt.Sprintf("file://%s#tau=%g", path, tau),
	}
	if log != "" {
		args = append([]string{"--log-net-log=" + log}, args...)
	}
	out, err := exec.CommandContext(t.Context(), browser, args...).Output()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

// reachable counts the edges above a weight that lead to the root.
func reachable(r *routes.RoutesResult, tau float64) int {
	n := 0
	seen := map[string]bool{r.Roots[0]: true}
	for _, node := range r.Nodes { // from the top down
		for _, e := range r.Edges {
			if e.To == node.Node && seen[e.To] && (e.Weight > tau || tau == 0) {
				n++
				seen[e.From] = true
			}
		}
	}
	return n
}

// checkNoRequests reads the browser's log of its network stack.
func checkNoRequests(t *testing.T, path string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var log struct {
		Events []struct {
			Params struct {
				URL       string `json:"url"`
				Initiator string `json:"initiator"`
			} `json:"params"`
		} `json:"events"`
	}
	if err := json.Unmarshal(raw, &log); err != nil {
		t.Fatalf("the browser's log: %v", err)
	}
	for _, e := range log.Events {
		if strings.HasPrefix(e.Params.URL, "http") && e.Params.Initiator != "not an origin" && e.Params.Initiator != "" {
			t.Errorf("the page asked for %s", e.Params.URL)
		}
	}
}

// TestDOT: every edge between two nodes is there once, heads together, and odd tokens stay inside their quotes.
func TestDOT(t *testing.T) {
	r, _ := pageOf(t, strconv.Itoa)
	text := string(r.DOT(func(int) string { return `a"b\n` }))
	if n := strings.Count(text, " -> "); n != len(r.Lines()) {
		t.Errorf("%d lines, want %d", n, len(r.Lines()))
	}
	if !strings.Contains(text, `X0_0 [label="0 a\"b\\n", shape=plaintext];`) {
		t.Error("the first token is not quoted")
	}
	heads := 0
	for _, l := range r.Lines() {
		heads += len(l.Heads)
	}
	want := 0
	for _, e := range r.Edges {
		if e.Kind == routes.Attn {
			want++
		}
	}
	if heads != want {
		t.Errorf("%d heads in the lines, want %d", heads, want)
	}
}
