package tokenizers

import (
	"math"
	"strconv"
)

// parseScore reads a number as Rust's serde_json does, which rounds some in the last bit the other way than IEEE 754
// asks. Unigram compares sums of scores, and where two cuts of a text are a tie but for rounding, the bit decides.
func parseScore(text []byte) (float64, bool) {
	d := decimal{rest: text}
	negative := d.eat('-')
	if d.eat('0') {
		if d.digit() {
			return 0, false
		}
	} else if !d.digits(1, 0) {
		return 0, false
	}
	if d.eat('.') && !d.digits(0, -1) {
		return 0, false
	}
	if (d.eat('e') || d.eat('E')) && !d.power() {
		return 0, false
	}
	v, ok := d.value()
	if negative {
		v = -v
	}
	return v, ok && len(d.rest) == 0
}

// decimal is a number on its way: significand × 10^exponent.
type decimal struct {
	rest        []byte
	significand uint64
	exponent    int
	full        bool // the significand has all the digits that it can hold
}

func (d *decimal) eat(c byte) bool {
	if len(d.rest) == 0 || d.rest[0] != c {
		return false
	}
	d.rest = d.rest[1:]
	return true
}

func (d *decimal) digit() bool { return len(d.rest) > 0 && '0' <= d.rest[0] && d.rest[0] <= '9' }

// digits reads at least one digit. Each that is left out moves the exponent by left, each that is taken by taken.
func (d *decimal) digits(left, taken int) bool {
	if !d.digit() {
		return false
	}
	for ; d.digit(); d.rest = d.rest[1:] {
		v := uint64(d.rest[0] - '0')
		if d.full = d.full || d.significand > (math.MaxUint64-v)/10; d.full {
			d.exponent += left
			continue
		}
		d.significand = d.significand*10 + v
		d.exponent += taken
	}
	return true
}

func (d *decimal) power() bool {
	sign := 1
	if d.eat('-') {
		sign = -1
	} else {
		d.eat('+')
	}
	if !d.digit() {
		return false
	}
	power := 0
	for ; d.digit(); d.rest = d.rest[1:] {
		power = min(power*10+int(d.rest[0]-'0'), 1_000_000)
	}
	d.exponent += sign * power
	return true
}

func (d *decimal) value() (float64, bool) {
	v := float64(d.significand)
	for d.exponent < -308 && v != 0 {
		v /= 1e308
		d.exponent += 308
	}
	if v == 0 {
		return 0, true
	}
	if d.exponent > 308 {
		return 0, false
	}
	size := d.exponent
	if size < 0 {
		size = -size
	}
	power, err := strconv.ParseFloat("1e"+strconv.Itoa(size), 64)
	if err != nil {
		return 0, false
	}
	if d.exponent < 0 {
		v /= power
	} else {
		v *= power
	}
	return v, !math.IsInf(v, 0)
}
