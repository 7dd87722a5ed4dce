package tui

import (
	"cmp"
	"context"
	"slices"
	"strings"

	tea "github.com/charmbracelet/bubbletea"
)

// Column is a column of a Table.
type Column struct {
	Title string
	Width int  // columns; 0 takes what is left
	Right bool // numbers
	Hide  bool // not drawn for now
	// Key orders rows; nil means that the table cannot be sorted by the column. It is called from another goroutine.
	Key func(row int) float64
}

// Table shows some of any number of rows. Rows are asked for when they are drawn; sorting and filtering are jobs.
type Table struct {
	Columns []Column
	Cell    func(row, column int) string
	Name    string // of the job's slot

	n      int
	order  []int32 // rows in the order in which they are shown; nil means as they are
	cursor int     // place in the order
	top    int
	room   int // rows that fit
	sortBy int // column; −1 means as the rows are
	down   bool
	keep   func(row int) bool // nil keeps all
	want   int                // row that gets the cursor when the table is arranged; −1 means the first one shown

	After func() tea.Cmd // when the table has been arranged; may be nil
}

// newTable makes a table without rows.
func newTable(name string, cell func(row, column int) string, list ...Column) *Table {
	return &Table{Name: name, Cell: cell, Columns: list, sortBy: -1, want: -1}
}

// SetRows says how many rows there are; order and filter are as before once Arrange has run.
func (t *Table) SetRows(n int) {
	if n != t.n {
		t.cursor, t.top = 0, 0
	}
	t.n, t.order = n, nil
}

// Len is the number of rows shown.
func (t *Table) Len() int {
	if t.order != nil {
		return len(t.order)
	}
	return t.n
}

// Row is the row under the cursor, −1 without any.
func (t *Table) Row() int { return t.row(t.cursor) }

func (t *Table) row(place int) int {
	switch {
	case place < 0 || place >= t.Len():
		return -1
	case t.order != nil:
		return int(t.order[place])
	}
	return place
}

// Move moves the cursor.
func (t *Table) Move(n int) tea.Cmd {
	t.cursor = max(0, min(t.cursor+n, t.Len()-1))
	return nil
}

// Page is how many rows a page has.
func (t *Table) Page() int { return max(1, t.room-1) }

// Seek puts the cursor on a row, if it is shown.
func (t *Table) Seek(row int) {
	if t.order == nil {
		t.cursor = max(0, min(row, t.n-1))
	} else if i := slices.Index(t.order, int32(row)); i >= 0 {
		t.cursor = i
	}
}

// around are the rows near the cursor, those that can be seen among them.
func (t *Table) around() []int {
	const near = 64
	var out []int
	for p := max(0, t.cursor-near); p < min(t.Len(), t.cursor+near); p++ {
		out = append(out, t.row(p))
	}
	return out
}

// Sort orders by the next column that can be, or turns the order of the present one round.
func (t *Table) Sort(a *App, by int, down bool) tea.Cmd {
	t.sortBy, t.down = by, down
	return t.Arrange(a)
}

// NextSort sorts by the column beside the present one.
func (t *Table) NextSort(a *App, step int) tea.Cmd {
	for i := range t.Columns {
		c := ((t.sortBy+step*(i+1))%len(t.Columns) + len(t.Columns)) % len(t.Columns)
		if t.Columns[c].Key != nil {
			return t.Sort(a, c, true)
		}
	}
	return nil
}

// Keep filters the rows; nil shows all.
func (t *Table) Keep(a *App, keep func(row int) bool) tea.Cmd {
	t.keep = keep
	return t.Arrange(a)
}

// Arrange sorts and filters in a job. The cursor goes to the wanted row, or to the first.
func (t *Table) Arrange(a *App) tea.Cmd {
	n, keep, down := t.n, t.keep, t.down
	var by func(int) float64
	if t.sortBy >= 0 {
		by = t.Columns[t.sortBy].Key
	}
	return start(a, work[[]int32]{
		slot: "arrange " + t.Name,
		run: func(ctx context.Context, _ Progress) ([]int32, error) {
			return arranged(n, keep, by, down), nil
		},
		done: func(order []int32, err error) tea.Cmd {
			if err != nil || n != t.n {
				return nil
			}
			t.order, t.cursor, t.top = order, 0, 0
			if t.want >= 0 {
				t.Seek(t.want)
				t.want = -1
			}
			if t.After != nil {
				return t.After()
			}
			return nil
		},
	})
}

// arranged are the rows that a filter keeps, in their order; equals stay as they are, what is not a number comes last.
func arranged(n int, keep func(int) bool, by func(int) float64, down bool) []int32 {
	type keyed struct {
		row int32
		key float64
	}
	list := make([]keyed, 0, n)
	for i := range n {
		if keep == nil || keep(i) {
			k := keyed{row: int32(i)}
			if by != nil {
				if k.key = by(i); down {
					k.key = -k.key
				}
			}
			list = append(list, k)
		}
	}
	if by != nil {
		slices.SortStableFunc(list, func(x, y keyed) int {
			if nx, ny := x.key != x.key, y.key != y.key; nx || ny {
				return cmp.Compare(btoi(nx), btoi(ny))
			}
			return cmp.Compare(x.key, y.key)
		})
	}
	order := make([]int32, len(list))
	for i, k := range list {
		order[i] = k.row
	}
	return order
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// widths are the columns' widths in w columns of the terminal, two for the cursor.
func (t *Table) widths(w int) []int {
	out := make([]int, len(t.Columns))
	left, open := w-2, 0
	for i, c := range t.Columns {
		if c.Hide {
			continue
		}
		out[i] = c.Width
		left -= c.Width + 1
		if c.Width == 0 {
			open++
		}
	}
	for i, c := range t.Columns {
		if c.Width == 0 && !c.Hide {
			out[i] = max(4, left/open)
		}
	}
	return out
}

// Render draws the header and the rows around the cursor.
func (t *Table) Render(th *Theme, w, h int) []string {
	t.room = max(1, h-1)
	if t.cursor >= t.Len() {
		t.cursor = max(0, t.Len()-1)
	}
	t.top = max(0, min(t.top, t.cursor, t.Len()-t.room))
	if t.cursor >= t.top+t.room {
		t.top = t.cursor - t.room + 1
	}
	widths := t.widths(w)
	head := newLine(w).add("  ")
	for i, c := range t.Columns {
		if c.Hide {
			continue
		}
		title := c.Title
		if i == t.sortBy && t.down {
			title += "▼"
		} else if i == t.sortBy {
			title += "▲"
		}
		head.cell(th.Head, title, widths[i], c.Right).add(" ")
	}
	out := []string{head.String()}
	for place := t.top; place < min(t.Len(), t.top+t.room); place++ {
		l := newLine(w)
		mark := "  "
		if place == t.cursor {
			mark = "> "
		}
		l.add(mark)
		row := t.row(place)
		for i, c := range t.Columns {
			if c.Hide {
				continue
			}
			l.cell(Style{}, t.Cell(row, i), widths[i], c.Right).add(" ")
		}
		if place == t.cursor {
			out = append(out, l.selected(th))
		} else {
			out = append(out, l.String())
		}
	}
	return out
}

// plain is up to n rows as lines, cells split by two blanks.
func (t *Table) plain(n int) string {
	var b strings.Builder
	for place := range min(n, t.Len()) {
		for i, c := range t.Columns {
			if text := t.Cell(t.row(place), i); text != "" && !c.Hide {
				if i > 0 {
					b.WriteString("  ")
				}
				b.WriteString(strings.TrimSpace(c.Title + " " + text))
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}
