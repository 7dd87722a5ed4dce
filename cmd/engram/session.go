package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"

	"github.com/gomlx/compute"

	"github.com/engram-go/engram/internal/backend"
	"github.com/engram-go/engram/internal/progress"
	"github.com/engram-go/engram/internal/result"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// session is the model a command works on, or its checkpoint where nothing has to be computed.
type session struct {
	model      *transformer.Model
	backend    compute.Backend
	info       backend.Info
	checkpoint *loader.Checkpoint
	about      *result.Model
	tokenizer  transformer.Tokenizer
}

func backendNames() []string { return append([]string{backend.Auto}, backend.Names()...) }

// options are those of package loader that the global flags name.
func (a *app) options() (loader.Options, *progress.Line) {
	line := a.progress()
	tell := line.Printf
	if a.tell != nil {
		tell = a.tell
	}
	return loader.Options{
		Check: a.flags.check, Stream: a.flags.stream,
		Progress: func(file string, done, total int64) { tell("%s: %d of %d MB", file, done/1e6, total/1e6) },
	}, line
}

// progress is the progress line, nil where nobody could read it.
func (a *app) progress() *progress.Line {
	f, ok := a.stderr.(*os.File)
	if !ok || a.flags.quiet {
		return nil
	}
	return progress.ForFile(f)
}

// open opens the model on the backend that the flags name. tokens is about how many the command will run.
func (a *app) open(ctx context.Context, tokens int) (*transformer.Model, error) {
	return a.openFor(ctx, func(c *transformer.Config) int64 { return int64(tokens) * parameters(c) })
}

// openFor is open for work of about that many multiply-adds.
func (a *app) openFor(ctx context.Context, work func(*transformer.Config) int64) (*transformer.Model, error) {
	if a.lent != nil && a.flags.model == a.lent.name {
		return a.borrow()
	}
	opts, line := a.options()
	defer line.Clear()
	s := &session{}
	a.session = s
	name, err := a.backendFor(ctx, work, opts)
	if err != nil {
		return nil, err
	}
	if s.backend, s.info, err = backend.Open(name); err != nil {
		return nil, err
	}
	a.announce(s.info)
	opts.Backend = s.backend
	if s.model, err = loader.Open(ctx, a.flags.model, opts); err != nil {
		return nil, err
	}
	s.about = &result.Model{Name: s.model.Name, Fingerprint: s.model.Fingerprint, DType: s.model.DType}
	s.tokenizer = s.model.Tokenizer
	return s.model, a.applyEdits(s.model)
}

// openCheckpoint opens the model's files and its tokenizer, for commands that compute nothing.
func (a *app) openCheckpoint(ctx context.Context) (*loader.Checkpoint, error) {
	opts, line := a.options()
	defer line.Clear()
	s := &session{}
	a.session = s
	var err error
	if s.checkpoint, err = loader.OpenCheckpoint(ctx, a.flags.model, opts); err != nil {
		return nil, err
	}
	if s.tokenizer, err = s.checkpoint.Tokenizer(); err != nil {
		return nil, err
	}
	print, err := s.checkpoint.Fingerprint(ctx, loader.FingerprintOptions{})
	if err != nil {
		return nil, err
	}
	s.about = &result.Model{Name: s.checkpoint.Name, Fingerprint: print, DType: string(s.checkpoint.DType())}
	return s.checkpoint, nil
}

// announce says when nothing faster than the Go backend opened.
func (a *app) announce(info backend.Info) {
	if info.Fallback != "" {
		a.note("running on the Go backend, which is slower: %s; engram setup installs XLA", info.Fallback)
	}
}

// backendFor settles which backend to open. A name is taken at its word; otherwise it depends on the work.
func (a *app) backendFor(
	ctx context.Context, work func(*transformer.Config) int64, opts loader.Options,
) (string, error) {
	name := a.flags.backend
	if name == "" {
		name = os.Getenv(backend.Env)
	}
	if name != "" && name != backend.Auto {
		return name, nil
	}
	opts.Check = false
	c, err := loader.OpenCheckpoint(ctx, a.flags.model, opts)
	if err != nil {
		return "", err
	}
	size := work(c.Config)
	if err := c.Close(); err != nil {
		return "", err
	}
	return preferred(size), nil
}

// parameters is about how many weights take part in a token's way through the blocks and the head.
func parameters(c *transformer.Config) int64 {
	a, f := &c.Attention, &c.FFN
	attention := int64(c.Width) * int64(a.HeadSize) * int64(2*a.Heads+2*a.KVHeads)
	ffn := 3 * int64(c.Width) * int64(max(f.Hidden, f.TopK*f.ExpertHidden))
	return int64(c.Layers)*(attention+ffn) + int64(c.Width)*int64(c.Vocab)
}

// close ends the session, unless its model is another's.
func (a *app) close() error {
	s := a.session
	if s == nil {
		return nil
	}
	a.session = nil
	if a.lent != nil && s.model == a.lent.model {
		return nil
	}
	return s.close()
}

func (s *session) close() error {
	var err error
	if s.model != nil {
		err = s.model.Close()
	}
	if s.backend != nil {
		s.backend.Finalize()
	}
	if s.checkpoint != nil {
		err = errors.Join(err, s.checkpoint.Close())
	}
	return err
}

// note tells something about the way to the result, in one line.
func (a *app) note(format string, args ...any) {
	if !a.flags.quiet {
		fmt.Fprintf(a.stderr, "note: %s\n", oneLine(fmt.Sprintf(format, args...)))
	}
}

// print gives the result as JSON, or as text.
func (a *app) print(schema string, value any, conventions map[string]string, text func(*page)) error {
	if !a.flags.json {
		p := newPage(a.stdout)
		if a.session != nil {
			p.tokens = a.session.tokenizer
		}
		text(p)
		return p.flush()
	}
	if len(a.flags.edits) > 0 && a.session != nil {
		conventions = maps.Clone(conventions)
		if conventions == nil {
			conventions = map[string]string{}
		}
		conventions["edits"] = fmt.Sprintf("%d in force, from %s", len(a.edits), strings.Join(a.flags.edits, ", "))
	}
	e := result.Envelope{Schema: "engram." + schema, Engram: versionText(), Conventions: conventions, Result: value}
	if s := a.session; s != nil {
		e.Model, e.Backend = s.about, s.info.Name
	}
	return e.Write(a.stdout)
}

// regular refuses an output path that names something other than a file: replacing a device would not fill it.
func regular(path string) error {
	if path == "" {
		return usagef("--out: no file named")
	}
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return refusal{fmt.Errorf("write %s: not a regular file", path)}
	}
	return nil
}

// writable refuses an output file that could not be written in the end, before any work is done.
func writable(path string, replace bool) error {
	if err := regular(path); err != nil {
		return err
	}
	if _, err := os.Lstat(path); err == nil && !replace {
		return fmt.Errorf("write %s: %w", path, os.ErrExist)
	}
	return nil
}

// readable refuses an input file that is not there, before any work is done.
func readable(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return inputError{err}
	}
	return f.Close()
}
