package main

import (
	"bytes"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"strings"
	"unicode/utf8"
)

// tree is the repository as the rules see it.
type tree struct {
	module string // module path
	fset   *token.FileSet
	files  []*file
}

// file is one text file; syntax is set in Go files.
type file struct {
	name      string // path from the root, slashes
	text      []byte
	syntax    *ast.File
	test      bool // test code: _test.go, packages named …test, scripts and programs in testdata
	generated bool
}

// lines is the number of lines.
func (f *file) lines() int { return bytes.Count(f.text, []byte("\n")) }

// dir is the folder of the file.
func (f *file) dir() string { return path.Dir(f.name) }

// read reads every text file that belongs to the project.
func read(root fs.FS) (*tree, error) {
	t := &tree{fset: token.NewFileSet()}
	err := fs.WalkDir(root, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if skipped(name) {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || name == ".git" { // a file in work trees beside the repository
			return nil
		}
		return t.add(root, name)
	})
	if err == nil && t.module == "" {
		err = errors.New("no go.mod with a module path; run lint from the repository's root")
	}
	return t, err
}

// skipped folders are not the project's text: git's and what make leaves.
func skipped(dir string) bool {
	base := path.Base(dir)
	return dir == "build" || len(base) > 1 && base[0] == '.' && base != ".ci"
}

// maxText keeps data files out.
const maxText = 1 << 20

func (t *tree) add(root fs.FS, name string) error {
	info, err := fs.Stat(root, name)
	if err != nil || info.Size() > maxText {
		return err
	}
	text, err := fs.ReadFile(root, name)
	if err != nil {
		return err
	}
	if bytes.IndexByte(text, 0) >= 0 || !utf8.Valid(text) {
		return nil
	}
	f := &file{name: name, text: text}
	inTestdata := strings.Contains("/"+name, "/testdata/")
	switch {
	case name == "go.mod":
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "module "); ok {
				t.module = strings.TrimSpace(rest)
			}
		}
	case inTestdata:
		f.test = true
	case strings.HasSuffix(name, ".go"):
		if f.syntax, err = parser.ParseFile(t.fset, name, text, parser.ParseComments); err != nil {
			return err
		}
		f.test = strings.HasSuffix(name, "_test.go") || strings.HasSuffix(path.Dir(name), "test")
		f.generated = ast.IsGenerated(f.syntax)
	}
	t.files = append(t.files, f)
	return nil
}

// code are the Go files that people write.
func (t *tree) code() []*file {
	var code []*file
	for _, f := range t.files {
		if f.syntax != nil && !f.generated {
			code = append(code, f)
		}
	}
	return code
}

// line is the line of a position.
func (t *tree) line(p token.Pos) int { return t.fset.Position(p).Line }
