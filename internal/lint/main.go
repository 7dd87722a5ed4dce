// Command lint checks what gofumpt, go vet and staticcheck do not: the sizes of files and functions, comments, the
// share of test code, which package may import which, and words that have no place in the repository. Run it from the
// repository's root; it prints one line a finding and exits with 1 if there are any.
package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"sort"
)

func main() {
	os.Exit(run(os.DirFS("."), goList, os.Stdout, os.Stderr))
}

// finding is one broken rule.
type finding struct {
	file string
	line int // 0 means the file or folder as a whole
	text string
}

func (f finding) String() string {
	if f.line == 0 {
		return f.file + ": " + f.text
	}
	return fmt.Sprintf("%s:%d: %s", f.file, f.line, f.text)
}

// run checks the tree and returns the exit code.
func run(root fs.FS, list func() ([]listed, error), stdout, stderr io.Writer) int {
	t, err := read(root)
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
		return 2
	}
	packages, err := list()
	if err != nil {
		fmt.Fprintf(stderr, "error: %v\n", err)
		return 2
	}
	var found []finding
	for _, rule := range []func(*tree) []finding{
		fileSizes, functionSizes, lineLengths, packageComments, docComments, testShare, words, directImports,
	} {
		found = append(found, rule(t)...)
	}
	found = append(found, transitiveImports(t.module, packages)...)
	sort.SliceStable(found, func(i, j int) bool {
		if found[i].file != found[j].file {
			return found[i].file < found[j].file
		}
		return found[i].line < found[j].line
	})
	for _, f := range found {
		fmt.Fprintln(stdout, f)
	}
	if len(found) > 0 {
		fmt.Fprintf(stdout, "%d findings\n", len(found))
		return 1
	}
	return 0
}
