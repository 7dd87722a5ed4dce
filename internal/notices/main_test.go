package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// source makes a module's folder with the files.
func source(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestOneTextForAllModulesThatShareIt(t *testing.T) {
	a := source(t, map[string]string{"LICENSE": "be good\r\n"})
	b := source(t, map[string]string{"LICENSE.txt": "be good\n"})
	c := source(t, map[string]string{"COPYING": "be better\n", "NOTICE": "by c\n", "README.md": "no licence\n"})
	text, err := render([]module{{Path: "x/a", Version: "v1", Dir: a}, {"x/b", "v2", b, false}, {"x/c", "v3", c, false}},
		"crate\t1.0\tMIT\n")
	if err != nil {
		t.Fatal(err)
	}
	got := string(text)
	for _, want := range []string{
		"- crate 1.0: MIT\n", "### x/a v1, x/b v2\n\n```text\nbe good\n```\n",
		"### x/c v3\n\n```text\nbe better\n\nby c\n```\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if strings.Contains(got, "no licence") || strings.Count(got, "be good") != 1 {
		t.Errorf("wrong texts in %q", got)
	}
}

func TestMissingLicenceIsAnError(t *testing.T) {
	_, err := render([]module{{Path: "x/a", Version: "v1", Dir: t.TempDir()}}, "")
	if err == nil || !strings.Contains(err.Error(), "x/a v1: no licence file") {
		t.Errorf("got %v", err)
	}
	if _, err := render([]module{{Path: "x/a", Dir: "missing"}}, ""); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if _, err := render(nil, "one two\n"); err == nil {
		t.Error("a bad list of crates is no error")
	}
}

func TestCollectTakesOthersModulesOnce(t *testing.T) {
	found := map[string]module{}
	out := `{"Module":{"Path":"x/a","Version":"v1","Dir":"d"}} {} {"Module":{"Path":"me","Main":true}}
		{"Module":{"Path":"x/a","Version":"v1","Dir":"d"}}`
	if err := collect([]byte(out), found); err != nil {
		t.Fatal(err)
	}
	if len(found) != 1 || found["x/a"].Dir != "d" {
		t.Errorf("found %v", found)
	}
	if err := collect([]byte("{"), found); err == nil {
		t.Error("a cut answer is no error")
	}
}

func TestCheckSeesAnOldFile(t *testing.T) {
	t.Chdir("../..")
	if _, err := linked(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	crates := filepath.Join(dir, "internal", "native", "crate")
	if err := errors.Join(
		os.MkdirAll(crates, 0o755),
		os.WriteFile(filepath.Join(crates, "licences.tsv"), nil, 0o644),
		os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module example.org/m\n\ngo 1.26\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "m.go"), []byte("package m\n"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	if err := run(true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if err := run(false); err != nil {
		t.Fatal(err)
	}
	if err := run(true); err != nil {
		t.Errorf("a new file is not up to date: %v", err)
	}
	if err := os.WriteFile(target, []byte("old"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run(true); err == nil || !strings.Contains(err.Error(), "make notices") {
		t.Errorf("an old file: %v", err)
	}
}

// TestLicenceInTheReadme: a module without a licence file is taken at the word of its README, one without any is refused.
func TestLicenceInTheReadme(t *testing.T) {
	dir := t.TempDir()
	if _, err := licence(dir); err == nil {
		t.Error("a module without a licence passes")
	}
	readme := filepath.Join(dir, "README.md")
	if err := os.WriteFile(readme, []byte("# m\n\n## License\n\nMIT\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := licence(dir); err != nil || got != "## License\n\nMIT" {
		t.Errorf("licence %q, %v", got, err)
	}
	if err := os.WriteFile(readme, []byte("# m\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := licence(dir); err == nil {
		t.Error("a README without a licence passes")
	}
}
