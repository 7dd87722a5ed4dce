package tui

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/charmbracelet/x/ansi"
	"github.com/muesli/termenv"
)

// TestArrangedSortsAndFilters compares with a plain sort: what is no number comes last, equals stay as they are.
func TestArrangedSortsAndFilters(t *testing.T) {
	keys := []float64{3, math.NaN(), 1, 3, -2, 7}
	by := func(i int) float64 { return keys[i] }
	for _, c := range []struct {
		down bool
		keep func(int) bool
		want []int32
	}{
		{false, nil, []int32{4, 2, 0, 3, 5, 1}},
		{true, nil, []int32{5, 0, 3, 2, 4, 1}},
		{true, func(i int) bool { return i > 2 }, []int32{5, 3, 4}},
	} {
		if got := arranged(len(keys), c.keep, by, c.down); !slices.Equal(got, c.want) {
			t.Errorf("down %v: %v, want %v", c.down, got, c.want)
		}
	}
	if got := arranged(3, nil, nil, false); !slices.Equal(got, []int32{0, 1, 2}) {
		t.Errorf("unsorted rows are %v", got)
	}
}

// numbers is a table of n rows with their squares.
func numbers(n int) *Table {
	t := newTable("numbers", func(row, column int) string {
		if column == 0 {
			return fmt.Sprintf("row %d", row)
		}
		return fmt.Sprint(row * row % 1000)
	}, Column{Title: "name"}, Column{Title: "square", Width: 8, Right: true, Key: func(r int) float64 { return float64(r * r % 1000) }})
	t.SetRows(n)
	return t
}

// TestTableKeepsTheCursorInView: whatever moves the cursor, its row is drawn, once, and nothing else has the mark.
func TestTableKeepsTheCursorInView(t *testing.T) {
	th := newTheme(termenv.Ascii, true)
	tab := numbers(300_000)
	for _, by := range []int{0, 5, 100, 1 << 30, -3, -250_000, -1 << 30} {
		tab.Move(by)
		lines := tab.Render(th, 60, 20)
		marked := 0
		for _, l := range lines {
			if strings.HasPrefix(ansi.Strip(l), "> ") {
				marked++
				if want := fmt.Sprintf("row %d ", tab.Row()); !strings.Contains(l, want) {
					t.Errorf("the cursor is on %q, not on %s", l, want)
				}
			}
		}
		if marked != 1 || len(lines) != 20 || !slices.Contains(tab.around(), tab.Row()) {
			t.Errorf("after %d: %d marks in %d lines", by, marked, len(lines))
		}
	}
	tab.SetRows(3)
	tab.Seek(2)
	if got := tab.plain(10); !strings.Contains(got, "name row 2  square 4") || tab.Row() != 2 {
		t.Errorf("plain text %q", got)
	}
	tab.SetRows(0)
	if tab.Row() != -1 || len(tab.Render(th, 60, 20)) != 1 {
		t.Errorf("an empty table has row %d", tab.Row())
	}
}

// grid has every kind of value.
func grid(signed bool) *Heatmap {
	values := [][]float64{{0, 0.25, 0.5, 1}, {math.NaN(), math.Inf(1), 2, -3}, {-1, -0.5, math.Inf(-1), 0.75}}
	return &Heatmap{
		Rows: 3, Columns: 4, Width: 6, LabelWidth: 5, Signed: signed,
		At: func(r, c int) Cell {
			return Cell{Value: values[r][c], Text: "x", None: r == 0 && c == 3}
		},
		RowLabel: func(r int) string { return fmt.Sprint("layer ", r) }, ColumnLabel: func(c int) string { return fmt.Sprint(c) },
	}
}

// TestCellsThatAreNoNumbersHaveGlyphs, with colours and without; the cursor never depends on colour.
func TestCellsThatAreNoNumbersHaveGlyphs(t *testing.T) {
	for _, profile := range []termenv.Profile{termenv.TrueColor, termenv.ANSI256, termenv.ANSI, termenv.Ascii} {
		h := grid(false)
		h.Move(1, 1)
		text := ansi.Strip(strings.Join(h.Render(newTheme(profile, true), 60, 10), "\n"))
		for _, want := range []string{"?x", ">∞x", "^x", "vx", "∓x", "> lay", ">1"} {
			if !strings.Contains(text, want) {
				t.Errorf("profile %v: no %q in\n%s", profile, want, text)
			}
		}
	}
	bare := strings.Join(grid(true).Render(newTheme(termenv.Ascii, true), 60, 10), "\n")
	for _, want := range []string{"░x", "▒x", "-x", "▓x"} {
		if !strings.Contains(bare, want) {
			t.Errorf("no %q without colours:\n%s", want, bare)
		}
	}
}

// TestHeatmapScrolls: the cell under the cursor is always drawn.
func TestHeatmapScrolls(t *testing.T) {
	h := &Heatmap{
		Rows: 100, Columns: 50, Width: 8, LabelWidth: 4, RowLabel: func(r int) string { return fmt.Sprint(r) },
		ColumnLabel: func(c int) string { return fmt.Sprint("c", c) },
		At:          func(r, c int) Cell { return Cell{Text: fmt.Sprintf("%d,%d", r, c)} },
	}
	th := newTheme(termenv.TrueColor, false)
	for _, m := range [][2]int{{0, 0}, {99, 49}, {-50, -20}, {3, 1}, {-99, -99}} {
		h.Move(m[0], m[1])
		lines := h.Render(th, 80, 12)
		if text := strings.Join(lines, "\n"); len(lines) > 12 || !strings.Contains(ansi.Strip(text), fmt.Sprintf(">%d,%d", h.Row, h.Column)) {
			t.Errorf("cell %d,%d is not in\n%s", h.Row, h.Column, text)
		}
		for _, l := range lines {
			if ansi.StringWidth(l) > 80 {
				t.Errorf("a line of %d columns", ansi.StringWidth(l))
			}
		}
	}
}
