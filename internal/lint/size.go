package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"strings"
	"unicode/utf8"
)

// The caps.
const (
	maxFile      = 500 // lines
	maxTestFile  = 800
	maxFunction  = 60
	mostFunction = 40 // and mostShare of all functions stay within this
	mostShare    = 0.9
	maxLine      = 120 // columns, a tab is one of them
	maxTestLine  = 160 // tables of cases read best as tables
	minTestShare = 0.5 // lines of tests for a line of other code
)

// longMark in a function's doc comment, with a reason, allows it to be longer: a flat switch reads well at any length.
const longMark = "//lint:long"

func fileSizes(t *tree) []finding {
	var found []finding
	for _, f := range t.code() {
		limit := maxFile
		if f.test {
			limit = maxTestFile
		}
		if n := f.lines(); n > limit {
			found = append(found, finding{f.name, 0, fmt.Sprintf("%d lines, at most %d", n, limit)})
		}
	}
	return found
}

func functionSizes(t *tree) []finding {
	var found []finding
	all, within := 0, 0
	for _, f := range t.code() {
		for _, d := range f.syntax.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			n := t.line(fn.End()) - t.line(fn.Pos()) + 1
			all++
			if n <= mostFunction {
				within++
			}
			if n > maxFunction && !allowedLong(fn) {
				text := fmt.Sprintf("%s has %d lines, at most %d", fn.Name.Name, n, maxFunction)
				found = append(found, finding{f.name, t.line(fn.Pos()), text})
			}
		}
	}
	if share := float64(within); share < mostShare*float64(all) {
		const form = "%d of %d functions have at most %d lines, want %.0f %%"
		text := fmt.Sprintf(form, within, all, mostFunction, 100*mostShare)
		found = append(found, finding{".", 0, text})
	}
	return found
}

func allowedLong(fn *ast.FuncDecl) bool {
	if fn.Doc == nil {
		return false
	}
	for _, c := range fn.Doc.List {
		if reason, ok := strings.CutPrefix(c.Text, longMark); ok && strings.TrimSpace(reason) != "" {
			return true
		}
	}
	return false
}

func lineLengths(t *tree) []finding {
	var found []finding
	for _, f := range t.code() {
		n, limit := 0, maxLine
		if f.test {
			limit = maxTestLine
		}
		for line := range bytes.Lines(f.text) {
			n++
			// A long literal cannot be cut without harm.
			columns := utf8.RuneCount(bytes.TrimRight(line, "\n"))
			if columns > limit && !bytes.ContainsAny(line, "`") {
				found = append(found, finding{f.name, n, fmt.Sprintf("%d columns, at most %d", columns, limit)})
			}
		}
	}
	return found
}

// testShare compares tests with all other code by lines that are not blank, over the whole repository.
func testShare(t *tree) []finding {
	tests, others := 0, 0
	for _, f := range t.files {
		if f.generated || f.syntax == nil && !isTestProgram(f) {
			continue
		}
		n := 0
		for line := range bytes.Lines(f.text) {
			if len(bytes.TrimSpace(line)) > 0 {
				n++
			}
		}
		if f.test {
			tests += n
		} else {
			others += n
		}
	}
	if float64(tests) < minTestShare*float64(others) {
		text := fmt.Sprintf("%d lines of tests for %d of other code, want at least %.0f %%", tests, others, 100*minTestShare)
		return []finding{{".", 0, text}}
	}
	return nil
}

// isTestProgram reports whether a file in testdata is a script of a test, not data.
func isTestProgram(f *file) bool {
	return f.test && (strings.HasSuffix(f.name, ".txtar") ||
		strings.Contains(f.name, "testdata/script/") && strings.HasSuffix(f.name, ".txt"))
}
