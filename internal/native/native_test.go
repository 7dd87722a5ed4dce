package native

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// entry is a file of a test archive.
type entry struct {
	name, content string
	link          bool
}

func zipOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := zip.NewWriter(&buf)
	for _, e := range entries {
		h := &zip.FileHeader{Name: e.name, Method: zip.Deflate}
		h.SetMode(0o644)
		if e.link {
			h.SetMode(fs.ModeSymlink | 0o777)
		}
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func tarOf(t *testing.T, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	w := tar.NewWriter(zw)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.content))}
		if e.link {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, e.content, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if !e.link {
			if _, err := w.Write([]byte(e.content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(w.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// world is a machine with the programs in tools and a release server with the files in releases.
type world struct {
	t        *testing.T
	opts     Options
	tools    map[string]func(context.Context, Command) error
	releases map[string][]byte // by the end of the address
	runs     atomic.Int32
	gets     atomic.Int32
}

func newWorld(t *testing.T, goos, goarch string) *world {
	w := &world{t: t, tools: map[string]func(context.Context, Command) error{}, releases: map[string][]byte{}}
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.gets.Add(1)
		for end, data := range w.releases {
			if strings.HasSuffix(r.URL.Path, end) {
				_, _ = rw.Write(data)
				return
			}
		}
		http.NotFound(rw, r)
	}))
	t.Cleanup(server.Close)
	w.opts = Options{
		Cache: filepath.Join(t.TempDir(), "cache"), HTTP: server.Client(), Releases: server.URL,
		goos: goos, goarch: goarch,
		LookPath: func(name string) (string, error) {
			if w.tools[name] == nil {
				return "", errors.New("not found")
			}
			return "/bin/" + name, nil
		},
		Run: func(ctx context.Context, c Command) error {
			w.runs.Add(1)
			return w.tools[filepath.Base(c.Path)](ctx, c)
		},
	}
	return w
}

// servePip makes pip answer with the wheel and sets the sum that is expected.
func (w *world) servePip(wheel []byte) {
	sum := sha256.Sum256(wheel)
	w.opts.sums = map[string]string{w.opts.goos + "/" + w.opts.goarch: hex.EncodeToString(sum[:])}
	w.tools["python3"] = func(_ context.Context, c Command) error {
		for i, arg := range c.Args {
			if arg == "--dest" {
				return os.WriteFile(filepath.Join(c.Args[i+1], "x.whl"), wheel, 0o644)
			}
		}
		return errors.New("pip without --dest")
	}
}

// serveCargo makes go tell where the module is and cargo build a library.
func (w *world) serveCargo(library string) {
	module := w.t.TempDir()
	if err := errors.Join(
		os.MkdirAll(filepath.Join(module, "crates", "tokenizers", "src"), 0o755),
		os.WriteFile(filepath.Join(module, "Cargo.lock"), []byte("source = \"registry+here\"\n"), 0o444),
		os.WriteFile(filepath.Join(module, "crates", "tokenizers", "src", "lib.rs"), []byte("// source"), 0o444),
	); err != nil {
		w.t.Fatal(err)
	}
	w.tools["go"] = func(_ context.Context, c Command) error {
		return json.NewEncoder(c.Stdout).Encode(map[string]string{"Dir": module})
	}
	w.tools["cargo"] = func(_ context.Context, c Command) error {
		lock, err := os.ReadFile(filepath.Join(c.Dir, "Cargo.lock"))
		if err != nil || bytes.Contains(lock, []byte("REGISTRY")) || !bytes.Contains(lock, []byte("registry+here")) {
			return fmt.Errorf("lock file names no registry (%v)", err)
		}
		out := filepath.Join(c.Args[len(c.Args)-1], library)
		return errors.Join(os.MkdirAll(filepath.Dir(out), 0o755), os.WriteFile(out, []byte("archive"), 0o644))
	}
}

// ensure installs the part and checks what is in the file.
func (w *world) ensure(part Part, want string) {
	w.t.Helper()
	path, err := Ensure(w.t.Context(), part, w.opts)
	if err != nil {
		w.t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		w.t.Errorf("installed %q (%v), want %q", got, err, want)
	}
}

// fail checks that nothing was installed, that nothing half-finished is left and that the error says want.
func (w *world) fail(ctx context.Context, part Part, want string) error {
	w.t.Helper()
	path, err := Ensure(ctx, part, w.opts)
	var e *Error
	if !errors.As(err, &e) || e.Hint() == "" || !strings.Contains(err.Error(), want) {
		w.t.Fatalf("got %q, %v; want an error with a hint and with %q", path, err, want)
	}
	if strings.Contains(err.Error(), "\n") {
		w.t.Errorf("the error is not one line: %q", err)
	}
	_ = filepath.WalkDir(w.opts.Cache, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && d.Name() != "lock" {
			w.t.Errorf("%s is left behind", path)
		}
		return nil
	})
	return err
}

func TestWheelIsInstalledOnce(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	w.servePip(zipOf(t, entry{name: "readme"}, entry{name: wheelEntry, content: "plugin"}))
	for range 3 {
		w.ensure(XLACPU, "plugin")
	}
	if w.runs.Load() != 1 || w.gets.Load() != 0 {
		t.Errorf("ran %d programs and fetched %d files, want 1 and 0", w.runs.Load(), w.gets.Load())
	}
	entries, err := os.ReadDir(filepath.Join(w.opts.Cache, "xla-cpu", "0.0.1-linux-amd64"))
	if err != nil || len(entries) != 1 {
		t.Errorf("folder holds %v (%v), want the plugin alone", entries, err)
	}
}

func TestWheelThatIsNotTheRightOneIsRefused(t *testing.T) {
	good := zipOf(t, entry{name: wheelEntry, content: "plugin"})
	for name, test := range map[string]struct {
		wheel []byte
		pin   bool // the wheel has the sum that is expected
		want  string
	}{
		"damaged":   {append(good[:len(good)-1:len(good)-1], 'x'), false, "SHA-256"},
		"truncated": {good[:len(good)/2], true, "zip"},
		"no zip":    {[]byte("<html>"), true, "zip"},
		"no plugin": {zipOf(t, entry{name: "other", content: "x"}), true, "the archive has no xla_plugins"},
		"a link":    {zipOf(t, entry{name: wheelEntry, content: "/etc/passwd", link: true}), true, "not a file"},
		"empty":     {zipOf(t, entry{name: wheelEntry}), true, "empty file"},
		"traversal": {zipOf(t, entry{name: "../../" + wheelEntry, content: "x"}), true, "has no"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "linux", "amd64")
			w.servePip(test.wheel)
			if !test.pin {
				w.opts.sums = map[string]string{"linux/amd64": strings.Repeat("0", 64)}
			}
			w.fail(t.Context(), XLACPU, test.want)
		})
	}
}

func TestHostileNamesInAWheelReachNothing(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	w.servePip(zipOf(t,
		entry{name: "../../../evil", content: "x"}, entry{name: "/tmp/../evil", content: "x"},
		entry{name: wheelEntry, content: "plugin"}, entry{name: wheelEntry + "/../../evil", content: "x"}))
	w.ensure(XLACPU, "plugin")
	_ = filepath.WalkDir(filepath.Dir(w.opts.Cache), func(path string, d fs.DirEntry, _ error) error {
		if d.Name() == "evil" {
			t.Errorf("%s was written", path)
		}
		return nil
	})
}

func TestReleaseStandsInForPip(t *testing.T) {
	for _, goos := range []string{"linux", "darwin"} {
		w := newWorld(t, goos, "arm64")
		w.releases["/"+releaseRepo+"/releases/download/"+releaseVersion+"/pjrt_cpu_"+goos+"_arm64.tar.gz"] = tarOf(t,
			entry{name: "LICENSE", content: "licence"},
			entry{name: "pjrt_c_api_cpu_v9_plugin.so", content: "evil", link: true},
			entry{name: "lib/pjrt_c_api_cpu_v9_plugin.so", content: "from the release"})
		w.ensure(XLACPU, "from the release")
		w.ensure(XLACPU, "from the release")
		if w.gets.Load() != 1 {
			t.Errorf("fetched %d times, want 1", w.gets.Load())
		}
	}
}

func TestBadReleaseIsRefused(t *testing.T) {
	good := tarOf(t, entry{name: "pjrt_c_api_cpu_plugin.so", content: strings.Repeat("plugin", 1000)})
	badCRC := bytes.Clone(good)
	badCRC[len(badCRC)-6] ^= 1
	for name, test := range map[string]struct {
		data []byte
		want string
	}{
		"missing":    {nil, "404"},
		"truncated":  {good[:len(good)-20], "unexpected EOF"},
		"no archive": {[]byte("<html>"), "EOF"},
		"no plugin":  {tarOf(t, entry{name: "x", content: "x"}), "the archive has no"},
		"checksum":   {badCRC, "checksum"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "darwin", "arm64")
			if test.data != nil {
				w.releases[".tar.gz"] = test.data
			}
			w.fail(t.Context(), XLACPU, test.want)
		})
	}
}

func TestEveryWayThatFailedIsNamed(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	w.tools["python3"] = func(context.Context, Command) error { return errors.New("no module named pip") }
	err := w.fail(t.Context(), XLACPU, "python3 -m pip: no module named pip")
	if !strings.Contains(err.Error(), "release of "+releaseRepo) || !strings.Contains(err.Error(), "404") {
		t.Errorf("error does not tell of the release: %v", err)
	}
	delete(w.tools, "python3")
	w.fail(t.Context(), XLACPU, "there is no python3 or pip")
	w.fail(t.Context(), Tokenizers, "there is no cargo")
}

func TestSecondPipIsTriedWhenTheFirstFails(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	w.servePip(zipOf(t, entry{name: wheelEntry, content: "plugin"}))
	w.tools["pip3"] = w.tools["python3"]
	w.tools["python3"] = func(context.Context, Command) error { return errors.New("no module named pip") }
	w.ensure(XLACPU, "plugin")
}

func TestSystemsWithoutAPart(t *testing.T) {
	w := newWorld(t, "plan9", "386")
	for _, part := range []Part{XLACPU, XLACUDA, Tokenizers} {
		if err := w.fail(t.Context(), part, "plan9/386"); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%v: %v does not wrap ErrUnsupported", part, err)
		}
	}
}

func TestTokenizersAreBuiltWithCargo(t *testing.T) {
	for _, where := range []string{"release", "some-triple/release"} {
		w := newWorld(t, "linux", "amd64")
		w.serveCargo(where + "/libtokenizers_ffi.a")
		w.ensure(Tokenizers, "archive")
		w.ensure(Tokenizers, "archive")
		if w.runs.Load() != 2 || w.gets.Load() != 0 {
			t.Errorf("ran %d programs and fetched %d files, want go, cargo and 0", w.runs.Load(), w.gets.Load())
		}
		entries, err := os.ReadDir(filepath.Join(w.opts.Cache, "tokenizers", "1.27.0-linux-amd64"))
		if err != nil || len(entries) != 1 {
			t.Errorf("folder holds %v (%v), want the library alone", entries, err)
		}
	}
}

func TestTokenizersFromTheRelease(t *testing.T) {
	w := newWorld(t, "darwin", "amd64")
	w.serveCargo("nowhere/x")
	w.releases["/daulet/tokenizers/releases/download/v1.27.0/libtokenizers.darwin-x86_64.tar.gz"] = tarOf(t,
		entry{name: "./libtokenizers.a", content: "prebuilt"})
	w.ensure(Tokenizers, "prebuilt")
}

func TestGoModDownloadFails(t *testing.T) {
	for name, tool := range map[string]func(context.Context, Command) error{
		"error":   func(context.Context, Command) error { return errors.New("exit status 1: no network") },
		"no json": func(_ context.Context, c Command) error { _, err := c.Stdout.Write([]byte("x")); return err },
		"no folder": func(_ context.Context, c Command) error {
			return json.NewEncoder(c.Stdout).Encode(map[string]string{"Error": "unknown revision"})
		},
		"no source": func(_ context.Context, c Command) error {
			return json.NewEncoder(c.Stdout).Encode(map[string]string{"Dir": t.TempDir()})
		},
	} {
		w := newWorld(t, "linux", "amd64")
		w.serveCargo("release/libtokenizers_ffi.a")
		w.tools["go"] = tool
		want := "go mod download"
		if name == "no source" {
			want = "Cargo.lock"
		}
		w.fail(t.Context(), Tokenizers, want)
	}
}

func TestInterruptedInstallationLeavesNothingAndCanBeRepeated(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	wheel := zipOf(t, entry{name: wheelEntry, content: "plugin"})
	w.servePip(wheel)
	pip := w.tools["python3"]
	ctx, cancel := context.WithCancel(t.Context())
	w.tools["python3"] = func(ctx context.Context, c Command) error {
		if err := pip(ctx, c); err != nil {
			return err
		}
		cancel()
		return ctx.Err()
	}
	if err := w.fail(ctx, XLACPU, "canceled"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not wrap context.Canceled", err)
	}
	if w.gets.Load() != 0 {
		t.Error("another way was tried after the interruption")
	}
	w.tools["python3"] = pip
	w.ensure(XLACPU, "plugin")
}

func TestWhatAKilledProcessLeftIsRemoved(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	w.servePip(zipOf(t, entry{name: wheelEntry, content: "plugin"}))
	parts := filepath.Join(w.opts.Cache, "xla-cpu")
	half := filepath.Join(parts, ".0.0.1-linux-amd64.tmp-ABC")
	damaged := filepath.Join(parts, "0.0.1-linux-amd64")
	if err := errors.Join(
		os.MkdirAll(filepath.Join(half, "wheel-1"), 0o755),
		os.MkdirAll(damaged, 0o755),
		os.WriteFile(filepath.Join(damaged, pluginFile), nil, 0o644),
	); err != nil {
		t.Fatal(err)
	}
	w.ensure(XLACPU, "plugin")
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unfinished folder: %v", err)
	}
}

func TestManyProcessesInstallOnce(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	w.servePip(zipOf(t, entry{name: wheelEntry, content: "plugin"}))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := Ensure(t.Context(), XLACPU, w.opts); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if w.runs.Load() != 1 {
		t.Errorf("pip ran %d times, want once", w.runs.Load())
	}
}

func TestFullDiskStopsAtOnceWithItsOwnHint(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	w.tools["python3"] = func(context.Context, Command) error {
		return &fs.PathError{Op: "write", Path: "x", Err: syscall.ENOSPC}
	}
	err := w.fail(t.Context(), XLACPU, syscall.ENOSPC.Error())
	var e *Error
	if errors.As(err, &e); !strings.Contains(e.Hint(), CacheEnv) || !strings.Contains(e.Hint(), "free") {
		t.Errorf("hint %q", e.Hint())
	}
	if w.gets.Load() != 0 {
		t.Error("another way was tried on a full disk")
	}
}

func TestCacheThatCannotBeWritten(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	blocked := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(blocked, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	w.opts.Cache = filepath.Join(blocked, "cache")
	w.fail(t.Context(), XLACPU, "file")
}

func TestCUDAIsUsedAsTheInstallerLeftIt(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	w.opts.CUDA = func(dir string) (string, error) {
		path := filepath.Join(dir, filepath.FromSlash(cudaFile))
		return path, errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("cuda"), 0o644))
	}
	w.ensure(XLACUDA, "cuda")
	bad := newWorld(t, "linux", "amd64")
	bad.opts.CUDA = func(string) (string, error) { return "", errors.New("no such package") }
	bad.fail(t.Context(), XLACUDA, "go-xla's installer: no such package")
}

func TestInterruptEndsTheWaitForCUDA(t *testing.T) {
	w := newWorld(t, "linux", "amd64")
	ctx, cancel := context.WithCancel(t.Context())
	release := make(chan struct{})
	defer close(release)
	w.opts.CUDA = func(string) (string, error) { cancel(); <-release; return "", nil }
	w.fail(ctx, XLACUDA, "canceled")
}

func TestFindLooksInTheCacheOfTheEnvironment(t *testing.T) {
	cache := t.TempDir()
	t.Setenv(CacheEnv, cache)
	if path, ok := Find(Tokenizers); ok {
		t.Fatalf("found %s in an empty folder", path)
	}
	o, err := Options{}.resolve()
	if err != nil {
		t.Fatal(err)
	}
	offers := o.offers(Tokenizers)
	if len(offers) == 0 {
		t.Skip("no tokenizer library for this system")
	}
	want := filepath.Join(o.dir(Tokenizers, offers[0]), tokenizersFile)
	if err := errors.Join(os.MkdirAll(filepath.Dir(want), 0o755), os.WriteFile(want, []byte("x"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if path, ok := Find(Tokenizers); !ok || path != want || !strings.HasPrefix(path, cache) {
		t.Errorf("found %q, %v; want %q", path, ok, want)
	}
}

func TestPartNames(t *testing.T) {
	for _, p := range []Part{XLACPU, XLACUDA, Tokenizers} {
		if got, err := ParsePart(p.String()); got != p || err != nil {
			t.Errorf("ParsePart(%v) = %v, %v", p, got, err)
		}
	}
	if _, err := ParsePart("nonsense"); err == nil {
		t.Error("unknown name accepted")
	}
}

func TestLockFilePinsEveryPackage(t *testing.T) {
	text := string(crateLock)
	packages := strings.Count(text, "[[package]]")
	if sums := strings.Count(text, "checksum = "); packages < 50 || sums != packages-1 {
		t.Errorf("%d packages with %d checksums; all but ours must have one", packages, sums)
	}
	if strings.Contains(text, "git+") {
		t.Error("a package comes from a git repository")
	}
}
