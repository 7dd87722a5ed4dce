package tokenizers

import "unicode/utf8"

// byteRune is the character that stands for a byte in byte-level vocabularies: printable Latin-1 for itself, the rest
// from U+0100 on in order.
func byteRune(b byte) rune {
	switch {
	case b <= ' ':
		return 0x100 + rune(b)
	case b <= '~':
		return rune(b)
	case b <= 0xA0:
		return 0x121 + rune(b-0x7F)
	case b == 0xAD:
		return 0x143
	}
	return rune(b)
}

// runeByte is the inverse of byteRune.
func runeByte(r rune) (byte, bool) {
	switch {
	case 0x100 <= r && r <= 0x120:
		return byte(r - 0x100), true
	case 0x121 <= r && r <= 0x142:
		return byte(r-0x121) + 0x7F, true
	case r == 0x143:
		return 0xAD, true
	case ' ' < r && r <= '~', 0xA0 < r && r <= 0xFF && r != 0xAD:
		return byte(r), true
	}
	return 0, false
}

// unbyte gives the bytes that a byte-level token stands for. Text outside the alphabet, which only added tokens have,
// stands for itself.
func unbyte(token string) []byte {
	out := make([]byte, 0, len(token))
	for _, r := range token {
		b, ok := runeByte(r)
		if !ok {
			return []byte(token)
		}
		out = append(out, b)
	}
	return out
}

// byteLevel writes the piece in the byte-level alphabet.
func (p *piece) byteLevel() {
	text := make([]byte, 0, len(p.text)+len(p.text)/4+2)
	align := make([]span, 0, cap(text))
	for i := range len(p.text) {
		before := len(text)
		text = utf8.AppendRune(text, byteRune(p.text[i]))
		from := p.at(i)
		for range len(text) - before {
			align = append(align, from)
		}
	}
	p.text, p.align = string(text), align
}
