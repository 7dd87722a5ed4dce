// Package plot draws the numbers of a result: heat maps, lines and bars, as SVG, PNG or one self-contained HTML page.
//
// A picture is a struct that holds numbers and labels; WriteFile writes it by the ending of the file's name, a Page
// joins several with tables into a page without scripts that needs nothing from the net. Drawing is gonum/plot's.
// Labels must be as package display gives token text; what could still disturb a picture is replaced. The same picture
// is the same bytes.
package plot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/engram-go/engram/internal/atomicfile"
)

// Picture is a Heatmap, Lines, Bars or a Column of them.
type Picture interface {
	// check refuses numbers and labels that do not fit each other.
	check() error
	// size is the extent of the picture in points.
	size() (width, height float64)
	// draw draws onto the canvas, all of which is the picture's.
	draw(c canvas) error
	// html is the picture's part of a page.
	html() (fragment, error)
}

// ErrFormat is wrapped by errors about file names that end in no known format.
var ErrFormat = errors.New("unknown picture format")

// ErrData is wrapped by errors about pictures whose numbers and labels do not fit each other.
var ErrData = errors.New("cannot be drawn")

// CheckName refuses names that end in neither .svg nor .png, before any work is done.
func CheckName(path string) error {
	switch strings.ToLower(filepath.Ext(path)) {
	case ".svg", ".png":
		return nil
	}
	return fmt.Errorf("write %s: %w: want a name that ends in .svg or .png", path, ErrFormat)
}

// WriteFile writes the picture as SVG or PNG, whole or not at all.
func WriteFile(ctx context.Context, path string, p Picture, opts atomicfile.Options) error {
	if err := CheckName(path); err != nil {
		return err
	}
	write := WriteSVG
	if strings.ToLower(filepath.Ext(path)) == ".png" {
		write = WritePNG
	}
	return atomicfile.Write(ctx, path, func(w io.Writer) error { return write(w, p) }, opts)
}
