package loader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// fakeHub serves one repository as the hub does to go-huggingface: the list of files at a revision, and each file at a
// commit with its ETag.
type fakeHub struct {
	*httptest.Server
	files     map[string][]byte
	revisions map[string]string // revision → commit
	token     string            // asked for if not empty
	fault     func(w http.ResponseWriter, r *http.Request, file string) bool

	mu       sync.Mutex
	requests []string
}

const (
	commitA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	commitB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
)

// newFakeHub starts a hub and points the environment to it and to an empty cache.
func newFakeHub(t *testing.T, files map[string][]byte) *fakeHub {
	t.Helper()
	h := &fakeHub{files: files, revisions: map[string]string{"main": commitA, commitA: commitA}}
	h.Server = httptest.NewServer(h)
	t.Cleanup(h.Close)
	for _, name := range []string{"HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"} {
		t.Setenv(name, "")
	}
	t.Setenv("HF_HOME", t.TempDir())
	t.Setenv("HF_ENDPOINT", h.URL+"/")
	return h
}

func (h *fakeHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, r.Method+" "+r.URL.Path)
	if h.token != "" && r.Header.Get("Authorization") != "Bearer "+h.token {
		http.Error(w, `{"error":"Invalid credentials"}`, http.StatusUnauthorized)
		return
	}
	if revision, ok := strings.CutPrefix(r.URL.Path, "/api/models/some-owner/some.model/revision/"); ok {
		if h.fault == nil || !h.fault(w, r, "info") {
			h.info(w, revision)
		}
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/some-owner/some.model/resolve/")
	commit, file, _ := strings.Cut(rest, "/")
	data, exists := h.files[file]
	if !ok || !exists || !slices.Contains(slices.Collect(maps.Values(h.revisions)), commit) {
		http.Error(w, `{"error":"Repository not found"}`, http.StatusNotFound)
		return
	}
	sum := sha256.Sum256(data)
	w.Header().Set("X-Repo-Commit", commit)
	w.Header().Set("ETag", strconv.Quote(hex.EncodeToString(sum[:])))
	if h.fault != nil && r.Method == http.MethodGet && h.fault(w, r, file) {
		return
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(data)
	}
}

func (h *fakeHub) info(w http.ResponseWriter, revision string) {
	commit, ok := h.revisions[revision]
	if !ok {
		http.Error(w, `{"error":"Invalid rev id: `+revision+`"}`, http.StatusNotFound)
		return
	}
	type sibling struct {
		Name string `json:"rfilename"`
		Size int    `json:"size"`
	}
	answer := struct {
		ID       string    `json:"id"`
		Commit   string    `json:"sha"`
		Siblings []sibling `json:"siblings"`
	}{"some-owner/some.model", commit, nil}
	for _, name := range slices.Sorted(maps.Keys(h.files)) {
		answer.Siblings = append(answer.Siblings, sibling{name, len(h.files[name])})
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// change changes what the hub serves.
func (h *fakeHub) change(do func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	do()
}

// asked forgets the requests so far and returns those for a method.
func (h *fakeHub) asked(method string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for _, r := range h.requests {
		if path, ok := strings.CutPrefix(r, method+" "); ok {
			out = append(out, path)
		}
	}
	h.requests = nil
	return out
}

const hubModel = "some-owner/some.model"

func hubFiles(t *testing.T) map[string][]byte {
	t.Helper()
	files := newToy(t, toyConfig).files(t)
	maps.Copy(files, map[string][]byte{
		"README.md": []byte("not wanted"), "pytorch_model.bin": []byte("not wanted"), "LICENSE": []byte("licence"),
		"generation_config.json": []byte("{}"), "onnx/model.onnx": []byte("not wanted"),
	})
	return files
}

// openHub opens the model and closes it again.
func openHub(t *testing.T, name string, opts Options) (string, error) {
	t.Helper()
	c, err := OpenCheckpoint(t.Context(), name, opts)
	if err != nil {
		return "", err
	}
	print := fingerprint(t, c)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	return print, nil
}

// The first opening downloads what is needed and nothing else; the second asks nobody.
func TestHubDownloadsOnce(t *testing.T) {
	h := newFakeHub(t, hubFiles(t))
	want := fingerprint(t, mustOpen(t, writeFiles(t, newToy(t, toyConfig).files(t))))
	var mu sync.Mutex
	seen := map[string]int64{}
	opts := Options{Progress: func(file string, done, total int64) {
		mu.Lock()
		defer mu.Unlock()
		if done > total {
			t.Errorf("%s: %d of %d bytes", file, done, total)
		}
		seen[file] = done
	}}
	if got, err := openHub(t, hubModel, opts); err != nil || got != want {
		t.Fatalf("got %s, %v, want %s", got, err, want)
	}
	files := []string{"LICENSE", "config.json", "generation_config.json", "model.safetensors"}
	if got := slices.Sorted(maps.Keys(seen)); !slices.Equal(got, files) {
		t.Errorf("downloaded %q", got)
	}
	if seen[modelFile] != int64(len(h.files[modelFile])) {
		t.Errorf("progress ended at %d", seen[modelFile])
	}
	if heads := h.asked(http.MethodHead); len(heads) != 4 {
		t.Errorf("asked for %q", heads)
	}
	snapshot := filepath.Join(os.Getenv("HF_HOME"), "hub", "models--some-owner--some.model", "snapshots", commitA)
	if _, err := os.Stat(filepath.Join(snapshot, modelFile)); err != nil {
		t.Error(err)
	}
	if got, err := openHub(t, hubModel, Options{}); err != nil || got != want {
		t.Errorf("from the cache: %s, %v", got, err)
	}
	if gets := h.asked(http.MethodGet); len(gets) > 0 {
		t.Errorf("a cached model asked for %q", gets)
	}
	h.Close()
	if _, err := openHub(t, hubModel, Options{}); err != nil {
		t.Errorf("offline: %v", err)
	}
	if _, err := openHub(t, hubModel+"@"+commitA, Options{}); err != nil {
		t.Errorf("offline by commit: %v", err)
	}
}

func TestHubShards(t *testing.T) {
	h := newFakeHub(t, newToy(t, toyConfig).sharded(t, nil))
	if _, err := openHub(t, hubModel, Options{}); err != nil {
		t.Fatal(err)
	}
	if heads := h.asked(http.MethodHead); len(heads) != 4 {
		t.Errorf("asked for %q", heads)
	}
}

// A branch that moved is followed when asked to; the older commit stays usable.
func TestHubRevisions(t *testing.T) {
	h := newFakeHub(t, hubFiles(t))
	first, err := openHub(t, hubModel, Options{})
	if err != nil {
		t.Fatal(err)
	}
	k := newToy(t, toyConfig)
	k.set("model.norm.weight", 0, 5)
	h.change(func() {
		h.files[modelFile] = k.files(t)[modelFile]
		h.revisions["main"], h.revisions["v1.0/x"] = commitB, commitB
	})
	if got, err := openHub(t, hubModel, Options{}); err != nil || got != first {
		t.Errorf("cached: %s, %v", got, err)
	}
	second, err := openHub(t, hubModel, Options{Refresh: true})
	if err != nil || second == first {
		t.Errorf("refreshed: %s, %v", second, err)
	}
	if got, err := openHub(t, hubModel, Options{}); err != nil || got != second {
		t.Errorf("after refreshing: %s, %v", got, err)
	}
	if got, err := openHub(t, hubModel+"@v1.0/x", Options{}); err != nil || got != second {
		t.Errorf("tag: %s, %v", got, err)
	}
	if got, err := openHub(t, hubModel+"@"+commitA, Options{}); err != nil || got != first {
		t.Errorf("commit: %s, %v", got, err)
	}
	_, err = openHub(t, hubModel+"@nowhere", Options{})
	wantError(t, err, ErrNoModel, hubModel+"@nowhere", "404", "Invalid rev id")
}

func TestHubToken(t *testing.T) {
	h := newFakeHub(t, hubFiles(t))
	h.token = "secret"
	_, err := openHub(t, hubModel, Options{})
	wantError(t, err, ErrHub, hubModel, "401")
	if !strings.Contains(Hint(err), "HF_TOKEN") {
		t.Errorf("hint %q", Hint(err))
	}
	t.Setenv("HF_TOKEN", "wrong")
	_, err = openHub(t, hubModel, Options{})
	if wantError(t, err, ErrHub, "401"); strings.Contains(err.Error()+Hint(err), "wrong") {
		t.Errorf("the token is in the message: %v", err)
	}
	t.Setenv("HF_TOKEN", "")
	if err := os.WriteFile(filepath.Join(os.Getenv("HF_HOME"), "token"), []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openHub(t, hubModel, Options{}); err != nil {
		t.Errorf("token file: %v", err)
	}
}

// Whatever goes wrong on the way is an error, leaves nothing that is taken for a model, and a second try succeeds.
func TestHubFaults(t *testing.T) {
	cut := func(w http.ResponseWriter, data []byte) bool {
		w.Header().Set("Content-Length", strconv.Itoa(len(data)))
		_, _ = w.Write(data[:len(data)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	status := func(code int) func(http.ResponseWriter, []byte) bool {
		return func(w http.ResponseWriter, _ []byte) bool {
			http.Error(w, "sorry", code)
			return true
		}
	}
	short := func(w http.ResponseWriter, data []byte) bool {
		_, _ = w.Write(data[:len(data)/2])
		return true
	}
	for _, test := range []struct {
		name, file string
		do         func(http.ResponseWriter, []byte) bool
		words      []string
		hint       string
	}{
		{"cut weights", modelFile, cut, []string{modelFile, "broke off"}, "try again"},
		{"short weights", modelFile, short, []string{modelFile, "bytes"}, "try again"},
		{"cut config", configFile, cut, []string{configFile, "broke off"}, "try again"},
		{"cut list", "info", cut, nil, ""},
		{"busy", modelFile, status(503), []string{modelFile, "503"}, "busy"},
		{"terms", modelFile, status(403), []string{modelFile, "403"}, "terms"},
		{"list fails", "info", status(500), []string{"500"}, "busy"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHub(t, hubFiles(t))
			h.fault = func(w http.ResponseWriter, _ *http.Request, file string) bool {
				return file == test.file && test.do(w, append(h.files[file], make([]byte, 10)...))
			}
			_, err := openHub(t, hubModel, Options{})
			wantError(t, err, ErrHub, append(test.words, "download "+hubModel+"@main")...)
			if !strings.Contains(Hint(err), test.hint) {
				t.Errorf("hint %q", Hint(err))
			}
			t.Setenv("HF_HUB_OFFLINE", "1")
			_, err = openHub(t, hubModel, Options{})
			wantError(t, err, ErrNoModel, "HF_HUB_OFFLINE")
			t.Setenv("HF_HUB_OFFLINE", "")
			h.change(func() { h.fault = nil })
			if _, err := openHub(t, hubModel, Options{}); err != nil {
				t.Errorf("second try: %v", err)
			}
			wantNoParts(t)
		})
	}
}

func wantNoParts(t *testing.T) {
	t.Helper()
	err := filepath.WalkDir(os.Getenv("HF_HOME"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".part") {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A failed refresh does not take the model away that is already there.
func TestHubFailedRefresh(t *testing.T) {
	h := newFakeHub(t, hubFiles(t))
	if _, err := openHub(t, hubModel, Options{}); err != nil {
		t.Fatal(err)
	}
	h.Close()
	_, err := openHub(t, hubModel, Options{Refresh: true})
	wantError(t, err, ErrHub, hubModel)
	if !strings.Contains(Hint(err), "HF_ENDPOINT") {
		t.Errorf("hint %q", Hint(err))
	}
	if _, err := openHub(t, hubModel, Options{}); err != nil {
		t.Errorf("cached: %v", err)
	}
}

// What cannot be loaded is refused before its weights are fetched.
func TestHubRefusesEarly(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(map[string][]byte)
		words  []string
	}{
		{"family", func(f map[string][]byte) { f[configFile] = []byte(`{"model_type":"mamba"}`) }, []string{"mamba"}},
		{"pickle", func(f map[string][]byte) { delete(f, modelFile) }, []string{"pickle"}},
		{"nothing", func(f map[string][]byte) { delete(f, modelFile); delete(f, "pytorch_model.bin") }, []string{"neither"}},
		{"no config", func(f map[string][]byte) { delete(f, configFile) }, []string{"no config.json"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := newFakeHub(t, hubFiles(t))
			test.change(h.files)
			_, err := openHub(t, hubModel, Options{})
			wantError(t, err, ErrCheckpoint, append(test.words, "download "+hubModel)...)
			for _, path := range h.asked(http.MethodGet) {
				if strings.HasSuffix(path, ".safetensors") || strings.HasSuffix(path, ".bin") {
					t.Errorf("fetched %s", path)
				}
			}
		})
	}
}

// An answer that could lead out of the cache folder is refused.
func TestHubCommitIsChecked(t *testing.T) {
	h := newFakeHub(t, hubFiles(t))
	h.revisions["main"] = "../../../evil"
	_, err := openHub(t, hubModel, Options{})
	wantError(t, err, ErrHub, "names no commit")
}

// An interrupt ends the download at once, even when the hub never answers.
func TestHubStops(t *testing.T) {
	for _, stall := range []string{"info", modelFile} {
		h := newFakeHub(t, hubFiles(t))
		ctx, cancel := context.WithCancel(t.Context())
		release := make(chan struct{})
		h.fault = func(_ http.ResponseWriter, r *http.Request, file string) bool {
			if file == stall {
				cancel()
				<-release
			}
			return file == stall
		}
		_, err := OpenCheckpoint(ctx, hubModel, Options{})
		close(release)
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", stall, err)
		}
	}
}

func TestHubNames(t *testing.T) {
	for s, want := range map[string]string{
		"openai-community/gpt2":         "openai-community/gpt2@main",
		"a/b@v1":                        "a/b@v1",
		"a/b@refs/pr/3":                 "a/b@refs/pr/3",
		"EleutherAI/pythia-70m@step1":   "EleutherAI/pythia-70m@step1",
		"meta-llama/Llama-3.2-1B":       "meta-llama/Llama-3.2-1B@main",
		"gpt2":                          "",
		"a/b/c":                         "",
		"/a/b":                          "",
		"./a":                           "",
		"../a":                          "",
		"a/..":                          "",
		"a/b@":                          "",
		"a/b@../x":                      "",
		"a/b@/x":                        "",
		"a\\b/c":                        "",
		"a/b c":                         "",
		"a/b--c":                        "",
		"":                              "",
		"a/" + strings.Repeat("b", 100): "",
	} {
		got, ok := parseHubName(s)
		if ok != (want != "") || ok && got.String() != want {
			t.Errorf("%q: got %s, %t", s, got, ok)
		}
	}
}

func TestHubEnvironment(t *testing.T) {
	for _, name := range []string{"TOKEN", "TOKEN_PATH", "HUB_CACHE", "HUB_OFFLINE", "HOME", "ENDPOINT"} {
		t.Setenv("HF_"+name, "")
	}
	t.Setenv("XDG_CACHE_HOME", filepath.FromSlash("/x"))
	cacheFolder := func() string {
		h, err := hubFromEnvironment()
		if err != nil {
			t.Fatal(err)
		}
		return filepath.ToSlash(h.cache)
	}
	if got := cacheFolder(); got != "/x/huggingface/hub" {
		t.Errorf("XDG_CACHE_HOME: %s", got)
	}
	t.Setenv("HF_HOME", "/y")
	if got := cacheFolder(); got != "/y/hub" {
		t.Errorf("HF_HOME: %s", got)
	}
	t.Setenv("HF_HUB_CACHE", "/z")
	if got := cacheFolder(); got != "/z" {
		t.Errorf("HF_HUB_CACHE: %s", got)
	}
}
