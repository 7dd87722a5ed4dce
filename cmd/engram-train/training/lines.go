package training

import (
	"errors"
	"math/rand/v2"
	"strings"

	"github.com/engram-go/engram/internal/facts"
)

// Lines are documents from a text, one a line, in an order that changes every time all of them have been used.
type Lines struct {
	lines []string
	seed  uint64
	epoch uint64
	order []int
}

// ErrNoLines is returned for a text without a line that holds something.
var ErrNoLines = errors.New("no line of text")

// NewLines splits a text into its lines; empty ones are left out.
func NewLines(text string, seed uint64) (*Lines, error) {
	l := &Lines{seed: seed}
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			l.lines = append(l.lines, line)
		}
	}
	if len(l.lines) == 0 {
		return nil, ErrNoLines
	}
	return l, nil
}

// Document gives the line that an index stands for.
func (l *Lines) Document(index uint64) facts.Document {
	n := uint64(len(l.lines))
	if epoch := index / n; l.order == nil || epoch != l.epoch {
		l.epoch, l.order = epoch, rand.New(rand.NewPCG(l.seed, epoch)).Perm(len(l.lines))
	}
	return facts.Document{Text: l.lines[l.order[index%n]]}
}
