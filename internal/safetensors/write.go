package safetensors

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Item is a tensor to write. WriteData is called once, in the order of the file, so tensors need not exist at the same
// time.
type Item struct {
	Name  string
	DType DType
	Shape []int
	// WriteData writes exactly the tensor's bytes, little-endian and row-major.
	WriteData func(w io.Writer) error
}

// Item is the tensor as something to write.
func (t Tensor) Item() Item {
	return Item{t.Name, t.DType, t.Shape, func(w io.Writer) error {
		_, err := w.Write(t.Data)
		return err
	}}
}

// Write writes a file: equal tensors and metadata give equal bytes whatever their order, and the same bytes as the
// reference implementation (larger element types first, then by name; header padded to eight bytes).
//
// w is not closed, synced or buffered here. After an error it holds part of a file.
func Write(w io.Writer, items []Item, meta map[string]string) error {
	items = slices.Clone(items)
	slices.SortFunc(items, func(a, b Item) int {
		_, ra := a.DType.sizeAndRank()
		_, rb := b.DType.sizeAndRank()
		if ra != rb {
			return rb - ra
		}
		return strings.Compare(a.Name, b.Name)
	})
	header, sizes, err := encodeHeader(items, meta)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return fmt.Errorf("write header: %w", err)
	}
	for i, item := range items {
		c := counter{w: w}
		if err := item.WriteData(&c); err != nil {
			return fmt.Errorf("write tensor %q: %w", item.Name, err)
		}
		if c.n != sizes[i] {
			return fmt.Errorf("write tensor %q: %d bytes for %s%v, which takes %d",
				item.Name, c.n, item.DType, item.Shape, sizes[i])
		}
	}
	return nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

func encodeHeader(items []Item, meta map[string]string) (header []byte, sizes []int64, err error) {
	b := append(make([]byte, prefix), '{')
	if len(meta) > 0 {
		b = append(appendString(b, metadata), ":{"...)
		for i, key := range slices.Sorted(maps.Keys(meta)) {
			b = appendComma(b, i)
			b = append(appendString(b, key), ':')
			b = appendString(b, meta[key])
		}
		b = append(b, '}')
	}
	seen := make(map[string]bool, len(items))
	var at int64
	for i, item := range items {
		size := item.DType.Size()
		n, ok := byteCount(int64(size), item.Shape)
		switch {
		case size == 0:
			return nil, nil, fmt.Errorf("write tensor %q: unknown dtype %q", item.Name, item.DType)
		case !ok || at+n < at || len(item.Shape) > maxRank:
			return nil, nil, fmt.Errorf("write tensor %q: shape %v cannot be stored", item.Name, item.Shape)
		case !utf8.ValidString(item.Name):
			return nil, nil, fmt.Errorf("write tensor %q: the name is not UTF-8", item.Name)
		case seen[item.Name] || item.Name == metadata:
			return nil, nil, fmt.Errorf("write tensor %q: the name is taken", item.Name)
		}
		seen[item.Name] = true
		sizes = append(sizes, n)
		if len(meta) > 0 || i > 0 {
			b = append(b, ',')
		}
		b = appendEntry(b, item, at, at+n)
		at += n
	}
	b = append(b, '}')
	for len(b)%8 != 0 {
		b = append(b, ' ')
	}
	if len(b)-prefix > MaxHeader {
		return nil, nil, fmt.Errorf("header of %d bytes is over the limit of %d", len(b)-prefix, MaxHeader)
	}
	binary.LittleEndian.PutUint64(b, uint64(len(b)-prefix))
	return b, sizes, nil
}

func appendEntry(b []byte, item Item, begin, end int64) []byte {
	b = append(appendString(b, item.Name), `:{"dtype":`...)
	b = append(appendString(b, string(item.DType)), `,"shape":[`...)
	for i, d := range item.Shape {
		b = strconv.AppendInt(appendComma(b, i), int64(d), 10)
	}
	b = strconv.AppendInt(append(b, `],"data_offsets":[`...), begin, 10)
	b = strconv.AppendInt(append(b, ','), end, 10)
	return append(b, "]}"...)
}

func appendComma(b []byte, i int) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return b
}

// appendString quotes a string, as the reference implementation does; encoding/json also escapes U+2028 and U+2029.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for _, c := range []byte(strings.ToValidUTF8(s, "\uFFFD")) {
		if i := strings.IndexByte("\b\f\n\r\t\"\\", c); i >= 0 {
			b = append(b, '\\', "bfnrt\"\\"[i])
		} else if c < 0x20 {
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return append(b, '"')
}
