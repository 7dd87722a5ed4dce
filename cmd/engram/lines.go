package main

import (
	"fmt"
	"os"
	"strings"
)

// lines are those of a text file, blank ones left out.
func lines(path string) ([]string, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return nil, inputError{err}
	}
	var out []string
	for _, text := range strings.Split(string(raw), "\n") {
		if text = strings.TrimSpace(text); text != "" {
			out = append(out, text)
		}
	}
	if len(out) == 0 {
		return nil, inputError{fmt.Errorf("%s: no lines", path)}
	}
	return out, nil
}
