package editing

import "math"

// mersenne is NumPy's legacy generator (numpy.random.RandomState): MT19937 (Matsumoto and Nishimura 1998) with normals
// by the polar method, so that noise can be drawn as the reference implementations draw it.
type mersenne struct {
	state [624]uint32
	at    int
	spare float64 // the second normal of a pair
	has   bool
}

// newMersenne seeds as numpy.random.RandomState(seed) does.
func newMersenne(seed uint32) *mersenne {
	g := &mersenne{at: 624}
	g.state[0] = seed
	for i := 1; i < len(g.state); i++ {
		g.state[i] = 1812433253*(g.state[i-1]^g.state[i-1]>>30) + uint32(i)
	}
	return g
}

// uint32 is the next word.
func (g *mersenne) uint32() uint32 {
	if g.at == len(g.state) {
		g.twist()
	}
	y := g.state[g.at]
	g.at++
	y ^= y >> 11
	y ^= y << 7 & 0x9d2c5680
	y ^= y << 15 & 0xefc60000
	return y ^ y>>18
}

func (g *mersenne) twist() {
	const n, m = 624, 397
	for i := range n {
		y := g.state[i]&0x80000000 | g.state[(i+1)%n]&0x7fffffff
		v := g.state[(i+m)%n] ^ y>>1
		if y&1 != 0 {
			v ^= 0x9908b0df
		}
		g.state[i] = v
	}
	g.at = 0
}

// uniform is a number in [0,1) with 53 bits.
func (g *mersenne) uniform() float64 {
	a, b := g.uint32()>>5, g.uint32()>>6
	return (float64(a)*(1<<26) + float64(b)) / (1 << 53)
}

// normal is a standard normal number.
func (g *mersenne) normal() float64 {
	if g.has {
		g.has = false
		return g.spare
	}
	for {
		x, y := 2*g.uniform()-1, 2*g.uniform()-1
		if r := x*x + y*y; r < 1 && r > 0 {
			f := math.Sqrt(-2 * math.Log(r) / r)
			g.spare, g.has = f*x, true
			return f * y
		}
	}
}
