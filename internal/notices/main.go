// Command notices writes THIRD_PARTY_NOTICES.md: the licences of every module that some build of engram links in, read
// from Go's module cache, after the notices of what is not a module. With -check it only compares. Run it from the
// repository's root.
package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

const target = "THIRD_PARTY_NOTICES.md"

//go:embed head.md
var head string

func main() {
	check := flag.Bool("check", false, "fail if "+target+" is not up to date")
	flag.Parse()
	if err := run(*check); err != nil {
		fmt.Fprintf(os.Stderr, "error: %v\n", err)
		os.Exit(1)
	}
}

func run(check bool) error {
	modules, err := linked()
	if err != nil {
		return err
	}
	crates, err := os.ReadFile(filepath.Join("internal", "native", "crate", "licences.tsv"))
	if err != nil {
		return err
	}
	text, err := render(modules, string(crates))
	if err != nil {
		return err
	}
	if check {
		have, err := os.ReadFile(target)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, text) {
			return fmt.Errorf("%s is not up to date; run make notices", target)
		}
		return nil
	}
	return os.WriteFile(target, text, 0o644)
}

// module is a Go module and the folder of its source.
type module struct {
	Path, Version, Dir string
	Main               bool
}

// linked lists the modules of all systems and builds, sorted by path.
func linked() ([]module, error) {
	found := map[string]module{}
	for _, goos := range []string{"linux", "darwin", "windows"} {
		for _, cgo := range []string{"0", "1"} {
			cmd := exec.Command("go", "list", "-deps", "-tags=tokenizers", "-json=Module", "./...")
			cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=amd64", "CGO_ENABLED="+cgo)
			cmd.Stderr = os.Stderr
			out, err := cmd.Output()
			if err != nil {
				return nil, fmt.Errorf("go list for %s: %w", goos, err)
			}
			if err := collect(out, found); err != nil {
				return nil, fmt.Errorf("go list for %s: %w", goos, err)
			}
		}
	}
	var modules []module
	for _, m := range found {
		modules = append(modules, m)
	}
	slices.SortFunc(modules, func(a, b module) int { return strings.Compare(a.Path, b.Path) })
	return modules, nil
}

// collect reads the answer of go list into found.
func collect(out []byte, found map[string]module) error {
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct{ Module *module }
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if p.Module != nil && !p.Module.Main {
			found[p.Module.Path] = *p.Module
		}
	}
}

// render writes each licence text once, under the modules that have it.
func render(modules []module, crates string) ([]byte, error) {
	var out bytes.Buffer
	out.WriteString(head)
	for line := range strings.Lines(crates) {
		fields := strings.Split(strings.TrimSpace(line), "\t")
		if len(fields) != 3 {
			return nil, fmt.Errorf("licences.tsv: %q does not have three fields", line)
		}
		fmt.Fprintf(&out, "- %s %s: %s\n", fields[0], fields[1], fields[2])
	}
	out.WriteString("\n## Go modules\n")
	texts := map[string][]string{} // modules by licence text
	var order []string
	for _, m := range modules {
		text, err := licence(m.Dir)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", m.Path, m.Version, err)
		}
		if texts[text] == nil {
			order = append(order, text)
		}
		texts[text] = append(texts[text], m.Path+" "+m.Version)
	}
	for _, text := range order {
		fmt.Fprintf(&out, "\n### %s\n\n```text\n%s\n```\n", strings.Join(texts[text], ", "), text)
	}
	return out.Bytes(), nil
}

// licence joins the licence and notice files at the top of a module.
func licence(dir string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	name := regexp.MustCompile(`(?i)^(licen[cs]e|copying|notice|patents)(\.(md|txt))?$`)
	var texts []string
	for _, e := range entries {
		if e.IsDir() || !name.MatchString(e.Name()) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		text = bytes.ReplaceAll(text, []byte("\r\n"), []byte("\n"))
		texts = append(texts, strings.Trim(string(text), "\n"))
	}
	if len(texts) == 0 {
		return readmeLicence(dir)
	}
	return strings.Join(texts, "\n\n"), nil
}

// readmeLicence is what a module without a licence file says about its licence and author at the end of its README.
func readmeLicence(dir string) (string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		return "", errors.New("no licence file")
	}
	at := regexp.MustCompile(`(?im)^#+ licen[cs]e`).FindIndex(text)
	if at == nil {
		return "", errors.New("no licence file, and none in the README")
	}
	return strings.TrimSpace(string(text[at[0]:])), nil
}
