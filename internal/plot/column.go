package plot

import "fmt"

// Column is pictures below each other in one file.
type Column []Picture

func (l Column) check() error {
	if len(l) == 0 {
		return fmt.Errorf("%w: no pictures", ErrData)
	}
	for _, p := range l {
		if err := p.check(); err != nil {
			return err
		}
	}
	return nil
}

func (l Column) size() (width, height float64) {
	for _, p := range l {
		w, h := p.size()
		width, height = max(width, w), height+h
	}
	return width, height
}

func (l Column) draw(c canvas) error {
	width, height := l.size()
	top := 0.0
	for _, p := range l {
		w, h := p.size()
		if err := p.draw(c.part(0, width-w, height-top-h, top)); err != nil {
			return err
		}
		top += h
	}
	return nil
}

func (l Column) html() (fragment, error) {
	var out fragment
	for _, p := range l {
		f, err := p.html()
		if err != nil {
			return out, err
		}
		out.inner = append(out.inner, f)
	}
	return out, nil
}
