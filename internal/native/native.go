// Package native puts the native parts that engram leans on into the user's cache folder: XLA's plugins, which the
// command loads when it runs, and the tokenizer library, which is linked in when the command is built.
//
// Parts are kept by version, as <cache>/engram/<part>/<version>-<os>-<arch>/, so that a second run or a second clone
// finds them there. A part appears in its folder whole or not at all; processes that want the same part wait for each
// other. Call Find to look, Ensure to install.
package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/engram-go/engram/internal/atomicfile"
	"github.com/engram-go/engram/internal/progress"
)

// CacheEnv names the environment variable that moves the cache folder.
const CacheEnv = "ENGRAM_CACHE"

// Part is one of the native parts.
type Part int

// The native parts.
const (
	XLACPU     Part = iota // XLA's plugin for CPUs
	XLACUDA                // XLA's plugin for NVIDIA GPUs, with NVIDIA's libraries
	Tokenizers             // libtokenizers.a, needed to build with the tag tokenizers
)

// String is the part's name in folders, messages and flags.
func (p Part) String() string {
	switch p {
	case XLACPU:
		return "xla-cpu"
	case XLACUDA:
		return "xla-cuda"
	case Tokenizers:
		return "tokenizers"
	}
	return fmt.Sprintf("part(%d)", int(p))
}

// ParsePart is the part with the name.
func ParsePart(name string) (Part, error) {
	for _, p := range []Part{XLACPU, XLACUDA, Tokenizers} {
		if p.String() == name {
			return p, nil
		}
	}
	return 0, fmt.Errorf("unknown native part %q: want xla-cpu, xla-cuda or tokenizers", name)
}

// ErrUnsupported is wrapped by errors about a part that does not exist for this system.
var ErrUnsupported = errors.New("not available for this system")

// Error tells why a part could not be installed and what to do about it.
type Error struct {
	Part  Part
	Cause error // one error for each way that was tried
	hint  string
}

// Error is a sentence with one clause for each way that was tried.
func (e *Error) Error() string { return fmt.Sprintf("install %s: %v", e.Part, e.Cause) }

// Unwrap gives the causes to errors.Is.
func (e *Error) Unwrap() error { return e.Cause }

// Hint says what the user can do.
func (e *Error) Hint() string { return e.hint }

// Options of Ensure; the zero value is what a user wants.
type Options struct {
	Cache    string         // folder that holds the parts; "" means $ENGRAM_CACHE, or engram in the user's cache folder
	Progress *progress.Line // where a long installation tells what it does; nil means nowhere

	// The world outside, replaced in tests.
	Run      func(context.Context, Command) error    // runs a program; nil means os/exec
	LookPath func(program string) (string, error)    // finds a program; nil means exec.LookPath
	HTTP     *http.Client                            // nil means a client with the environment's proxies
	Releases string                                  // server with the release archives; "" means GitHub
	CUDA     func(dir string) (path string, _ error) // fills dir with the CUDA plugin; nil means go-xla's installer

	goos, goarch string
	sums         map[string]string // SHA-256 of the wheels by os/arch
}

// offer is one way to get a part in one version.
type offer struct {
	version string
	file    string // the part's path inside its folder, slashes
	via     string // for messages: how it is got
	install func(ctx context.Context, dir string) error
}

// Find is the path of an installed part in the user's cache folder.
func Find(part Part) (path string, ok bool) {
	o, err := Options{}.resolve()
	if err != nil {
		return "", false
	}
	return o.find(part)
}

// Ensure installs the part unless it is there and returns its path. Errors are of type *Error and wrap ErrUnsupported
// where no version of the part exists for the system.
func Ensure(ctx context.Context, part Part, opts Options) (path string, err error) {
	o, err := opts.resolve()
	if err != nil {
		return "", &Error{part, err, "set " + CacheEnv + " to a folder that can be written"}
	}
	if path, ok := o.find(part); ok {
		return path, nil
	}
	if len(o.offers(part)) == 0 {
		err := fmt.Errorf("%s/%s: %w", o.goos, o.goarch, ErrUnsupported)
		return "", &Error{part, err, unsupportedHint(part)}
	}
	defer o.Progress.Clear()
	unlock, err := o.lock(ctx, part)
	if err != nil {
		return "", &Error{part, err, o.hint(part, err)}
	}
	defer unlock()
	if path, ok := o.find(part); ok {
		return path, nil
	}
	if err := o.install(ctx, part); err != nil {
		return "", &Error{part, err, o.hint(part, err)}
	}
	path, ok := o.find(part)
	if !ok {
		err := errors.New("the installed files vanished")
		return "", &Error{part, err, o.hint(part, err)}
	}
	return path, nil
}

// CacheDir is the folder in which engram keeps what it can make again: $ENGRAM_CACHE, or engram in the user's cache
// folder.
func CacheDir() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "engram"), nil
}

func (opts Options) resolve() (*Options, error) {
	if opts.Cache == "" {
		dir, err := CacheDir()
		if err != nil {
			return nil, err
		}
		opts.Cache = dir
	}
	var err error
	if opts.Cache, err = filepath.Abs(opts.Cache); err != nil {
		return nil, err
	}
	if opts.Run == nil {
		opts.Run = run
	}
	if opts.LookPath == nil {
		opts.LookPath = exec.LookPath
	}
	if opts.HTTP == nil {
		transport := http.DefaultTransport.(*http.Transport).Clone()
		transport.ResponseHeaderTimeout = 30 * time.Second
		opts.HTTP = &http.Client{Transport: transport}
	}
	if opts.Releases == "" {
		opts.Releases = "https://github.com"
	}
	if opts.CUDA == nil {
		opts.CUDA = installCUDA
	}
	if opts.goos == "" {
		opts.goos, opts.goarch = runtime.GOOS, runtime.GOARCH
	}
	if opts.sums == nil {
		opts.sums = wheelSums()
	}
	return &opts, nil
}

// offers lists the ways to get the part on this system, the preferred one first.
func (o *Options) offers(part Part) []offer {
	switch part {
	case XLACPU:
		return o.xlaOffers()
	case XLACUDA:
		return o.cudaOffers()
	case Tokenizers:
		return o.tokenizersOffers()
	}
	return nil
}

// dir is the folder of the offer.
func (o *Options) dir(part Part, of offer) string {
	return filepath.Join(o.Cache, part.String(), of.version+"-"+o.goos+"-"+o.goarch)
}

func (o *Options) find(part Part) (string, bool) {
	for _, of := range o.offers(part) {
		path := filepath.Join(o.dir(part, of), filepath.FromSlash(of.file))
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
			return path, true
		}
	}
	return "", false
}

// lock waits until no other process installs the part.
func (o *Options) lock(ctx context.Context, part Part) (unlock func(), err error) {
	dir := filepath.Join(o.Cache, part.String())
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	l := flock.New(filepath.Join(dir, "lock"))
	if ok, err := l.TryLock(); err != nil {
		return nil, err
	} else if !ok {
		o.Progress.Printf("%s: waiting for another process that installs it", part)
		if _, err := l.TryLockContext(ctx, 200*time.Millisecond); err != nil {
			return nil, err
		}
	}
	// The file stays: removing it would let two processes lock two files of one name.
	return func() { _ = l.Unlock() }, nil
}

// install tries the offers in turn. The caller holds the lock, so unfinished folders belong to processes that died.
func (o *Options) install(ctx context.Context, part Part) error {
	stale, err := filepath.Glob(filepath.Join(o.Cache, part.String(), ".*"))
	if err != nil {
		return err
	}
	for _, dir := range stale {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	var failed []string
	var causes []error
	for _, of := range o.offers(part) {
		o.Progress.Printf("%s %s: %s", part, of.version, of.via)
		dir := o.dir(part, of)
		// A folder without the part in it was damaged after it was installed.
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		err := atomicfile.Dir(ctx, dir, func(tmp string) error { return of.install(ctx, tmp) })
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		failed = append(failed, fmt.Sprintf("%s: %s", of.via, strings.TrimPrefix(err.Error(), "write "+dir+": ")))
		causes = append(causes, err)
		if errors.Is(err, syscall.ENOSPC) {
			break
		}
	}
	return &attempts{strings.Join(failed, "; "), causes}
}

// attempts is the error of several offers, on one line.
type attempts struct {
	text   string
	causes []error
}

func (a *attempts) Error() string   { return a.text }
func (a *attempts) Unwrap() []error { return a.causes }

// hint is what the user can do about the failure.
func (o *Options) hint(part Part, err error) string {
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return "interrupted; run the same command again"
	case errors.Is(err, syscall.ENOSPC):
		return fmt.Sprintf("free about 1 GB below %s, or set %s to a folder on another disk", o.Cache, CacheEnv)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("set %s to a folder that can be written", CacheEnv)
	case part == Tokenizers:
		return "install cargo (the Rust toolchain) and a C compiler, or run on a network that reaches " + o.Releases +
			"; a build without the tag tokenizers uses the tokenizer in Go"
	case part == XLACPU:
		return "install python3 with pip, or run on a network that reaches " + o.Releases +
			"; until then --backend go works, several times slower"
	}
	return "run on a network that reaches the Python package index; until then --backend xla:cpu works"
}

func unsupportedHint(part Part) string {
	switch part {
	case XLACPU, XLACUDA:
		return "use --backend go, which runs everywhere"
	}
	return "build without the tag tokenizers; engram then uses its tokenizer in Go"
}
