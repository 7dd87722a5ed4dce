package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// rooms says which rooms of the house (docs/architecture.md) the packages of a room may import, besides their own and
// internal. Rooms that are not named here may import everything: cmd, bench, tui.
func rooms() map[string][]string {
	return map[string][]string{
		"internal":    {},
		"transformer": {},
		"loader":      {"transformer"},
		"probes":      {"transformer"},
		"routes":      {"transformer", "probes"},
		"editing":     {"transformer", "probes"},
	}
}

// limit keeps packages that match a prefix to some folders.
type limit struct {
	prefixes []string
	folders  []string // from the root; below them everything is allowed
	direct   bool     // only the import itself counts, not what it brings along
	why      string
}

func limits(module string) []limit {
	return []limit{
		{[]string{"github.com/charmbracelet/"}, []string{"tui", "cmd"}, false, "terminal packages stay in tui and cmd"},
		{
			[]string{
				"github.com/daulet/tokenizers", "github.com/gomlx/go-huggingface/tokenizers",
				module + "/internal/tokenizers",
			},
			[]string{"loader", "internal/tokenizers"},
			true, "only loader knows tokenizers",
		},
		{
			[]string{
				"github.com/gomlx/compute/gobackend", "github.com/gomlx/go-xla/compute/xla", "github.com/gomlx/go-xla/pjrt",
				"github.com/gomlx/gomlx/backends", module + "/internal/backend",
			},
			[]string{"cmd", "internal/backend", "bench"},
			false, "a backend is chosen by commands and tests, not by a library",
		},
	}
}

// below reports whether the path is the folder or in it.
func below(path, folder string) bool {
	return path == folder || strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/")
}

// breaks reports whether the folder may not have the import, and why.
func (l limit) breaks(folder, imported string) bool {
	if slices.ContainsFunc(l.folders, func(f string) bool { return below(folder, f) }) {
		return false
	}
	return slices.ContainsFunc(l.prefixes, func(p string) bool { return below(imported, p) })
}

// directImports reads the imports of all files, whatever their build constraints.
func directImports(t *tree) []finding {
	var found []finding
	for _, f := range t.code() {
		if f.test {
			continue
		}
		for _, spec := range f.syntax.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				continue
			}
			if why := wrongImport(t.module, f.dir(), imported); why != "" {
				found = append(found, finding{f.name, t.line(spec.Pos()), "imports " + imported + ": " + why})
			}
		}
	}
	return found
}

// wrongImport says why a package in the folder may not import the other; "" means that it may.
func wrongImport(module, folder, imported string) string {
	for _, l := range limits(module) {
		if l.breaks(folder, imported) {
			return l.why
		}
	}
	inside, ours := strings.CutPrefix(imported, module+"/")
	if !ours && imported != module {
		return ""
	}
	from, to := room(folder), room(inside)
	allowed, limited := rooms()[from]
	if !limited || to == from || to == "internal" || slices.Contains(allowed, to) {
		return ""
	}
	return fmt.Sprintf("arrows point one way: %s may import %s", from, strings.Join(append(allowed, "internal"), ", "))
}

// room is the first part of a path.
func room(path string) string {
	first, _, _ := strings.Cut(path, "/")
	return first
}

// listed is a package as go list -deps shows it.
type listed struct {
	ImportPath string
	Deps       []string
	Error      *struct{ Err string }
}

// goList lists the module's packages with everything they depend on, for builds with and without cgo.
func goList() ([]listed, error) {
	var all []listed
	for _, cgo := range []string{"0", "1"} {
		cmd := exec.Command("go", "list", "-deps", "-tags=tokenizers", "-json=ImportPath,Deps,Error", "./...")
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		packages, err := parseList(out)
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		all = append(all, packages...)
	}
	return all, nil
}

func parseList(out []byte) ([]listed, error) {
	var packages []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		err := d.Decode(&p)
		if errors.Is(err, io.EOF) {
			return packages, nil
		}
		if err != nil {
			return nil, err
		}
		if p.Error != nil {
			return nil, errors.New(p.Error.Err)
		}
		packages = append(packages, p)
	}
}

// transitiveImports finds limited packages that a package of the module brings along.
func transitiveImports(module string, packages []listed) []finding {
	var found []finding
	seen := map[string]bool{}
	for _, p := range packages {
		folder, ours := strings.CutPrefix(p.ImportPath, module+"/")
		if !ours {
			continue
		}
		for _, dep := range p.Deps {
			for _, l := range limits(module) {
				key := folder + " " + dep
				if l.direct || seen[key] || strings.HasSuffix(folder, "test") || !l.breaks(folder, dep) {
					continue
				}
				seen[key] = true
				found = append(found, finding{folder, 0, "depends on " + dep + ": " + l.why})
			}
		}
	}
	return found
}
