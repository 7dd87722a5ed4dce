package main

import (
	"bytes"
	"regexp"
	"strings"
)

// word is text that has no place in the repository. The patterns are written so that they do not match themselves.
type word struct {
	pattern *regexp.Regexp
	why     string
}

func forbidden() []word {
	return []word{
		{regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b`), "unfinished work belongs in an issue"},
		{regexp.MustCompile(`(^|[\s"'=(` + "`" + `:])/(work|root|home/\w+|Users/\w+|tmp/lab)(/|\b)`), "path of one machine"},
		{
			regexp.MustCompile(`(py` + `pi\.org|pythonhosted\.org|crates` + `\.io|proxy\.golang` + `\.org|registry\.npmjs)`),
			"host of a package registry; name the package and let its tool find it",
		},
	}
}

// words looks through every text file; licences of others are theirs.
func words(t *tree) []finding {
	var found []finding
	list := forbidden()
	for _, f := range t.files {
		if f.name == "THIRD_PARTY_NOTICES.md" || strings.Contains("/"+f.name, "/testdata/fuzz/") {
			continue
		}
		n := 0
		for line := range bytes.Lines(f.text) {
			n++
			for _, w := range list {
				if m := w.pattern.Find(line); m != nil {
					text := `"` + string(bytes.TrimSpace(m)) + `": ` + w.why
					found = append(found, finding{f.name, n, text})
				}
			}
		}
	}
	return found
}
