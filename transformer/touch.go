package transformer

import (
	"fmt"

	"github.com/gomlx/compute"
	. "github.com/gomlx/gomlx/core/graph"
)

// touched is the graph side of a touch: which site a program variant changes, and how. Values and selections are
// inputs.
type touched struct {
	site    Site
	affine  bool
	clamp   bool
	project bool
}

// String is the touch's part of a program key.
func (t touched) String() string {
	return fmt.Sprintf("%s(%t,%t,%t)", t.site, t.affine, t.clamp, t.project)
}

// inputs are the names of the touch's program inputs.
func (t touched) inputs() []string {
	var out []string
	if t.affine {
		out = append(out, t.name("mul"), t.name("add"))
	}
	if t.clamp {
		out = append(out, t.name("low"), t.name("high"))
	}
	if t.project {
		out = append(out, t.name("dirs"), t.name("alpha"), t.name("beta"))
	}
	return out
}

func (t touched) name(what string) string { return "touch." + string(t.site) + "." + what }

func (t *touch) graph() touched {
	return touched{site: t.site, affine: t.affine, clamp: t.clamp, project: t.rank > 0}
}

// upload sends the touch's values to the device under the names of its inputs. Features of a site with several axes get
// those axes back; pattern becomes [rows, H, positions, keys].
func (t *touch) upload(be compute.Backend, c *Config, layer int, f frame, args values) error {
	rows, slots := t.size(f)
	g := t.graph()
	put := func(what string, data []float32, dims ...int) (err error) {
		args[g.name(what)], err = upload(be, data, dims...)
		return err
	}
	units, each := c.unitsOf(t.site, layer, f)
	if t.affine {
		dims := []int{rows, slots, units, each}
		mul, add := t.mul, t.add
		switch {
		case t.site == Pattern:
			mul, add = swapAxes(mul, rows, slots, units, each), swapAxes(add, rows, slots, units, each)
			dims = []int{rows, units, slots, each}
		case c.isExpertMemory(t.site, layer):
			dims = []int{rows, slots, c.FFN.Experts, c.FFN.ExpertHidden}
		case each == 1:
			dims = []int{rows, slots, units}
		}
		if err := put("mul", mul, dims...); err != nil {
			return err
		}
		if err := put("add", add, dims...); err != nil {
			return err
		}
		if t.clamp {
			if err := put("low", finite(t.low), dims...); err != nil {
				return err
			}
			if err := put("high", finite(t.high), dims...); err != nil {
				return err
			}
		}
	}
	if t.rank == 0 {
		return nil
	}
	if err := put("dirs", t.dirs, t.rank, units*each); err != nil {
		return err
	}
	if err := put("alpha", t.alpha, rows, slots, t.rank); err != nil {
		return err
	}
	return put("beta", t.beta, rows, slots, t.rank)
}

// swapAxes exchanges the two middle axes of [a,b,c,d].
func swapAxes(x []float32, a, b, c, d int) []float32 {
	out := make([]float32, len(x))
	for i := range a {
		for j := range b {
			for k := range c {
				copy(out[((i*c+k)*b+j)*d:][:d], x[((i*b+j)*c+k)*d:][:d])
			}
		}
	}
	return out
}

// apply is x·mul + add between the bounds, then x + moves·U.
func (t touched) apply(b *block, x *Node) *Node {
	input := func(what string) *Node {
		in := b.in[t.name(what)]
		if b.chosen != nil && x.Rank() == 4 {
			in = b.pick(in, x)
		}
		return fit(in, x)
	}
	if t.affine {
		x = Add(Mul(x, input("mul")), input("add"))
	}
	if t.clamp {
		x = Min(Max(x, input("low")), input("high"))
	}
	if t.project {
		u := b.in[t.name("dirs")]
		flat := Reshape(x, x.Shape().Dim(0), x.Shape().Dim(1), -1)
		x = Reshape(Add(flat, matmul(t.moves(b, flat, false), u)), x.Shape().Dimensions...)
	}
	return x
}

// pull is the cotangent before the touch for the cotangent v after it.
func (t touched) pull(b *block, v *Node) *Node {
	if t.project {
		u := b.in[t.name("dirs")]
		flat := Reshape(v, v.Shape().Dim(0), v.Shape().Dim(1), -1)
		v = Reshape(Add(flat, matmul(t.moves(b, flat, true), u)), v.Shape().Dimensions...)
	}
	if t.affine {
		v = Mul(v, fit(b.in[t.name("mul")], v))
	}
	return v
}

// moves says by how much x [B,S,width] moves along each direction, [B,S,r]:
// c_k = alpha_k·(x + Σ_j<k c_j u_j)·u_k + beta_k, so that later projections see earlier ones. A cotangent takes the way
// back: in reverse, without beta.
func (t touched) moves(b *block, x *Node, back bool) *Node {
	u := b.in[t.name("dirs")]
	along := matmul(x, Transpose(u, 0, 1))
	alpha, beta := fit(b.in[t.name("alpha")], along), fit(b.in[t.name("beta")], along)
	gram := InsertAxes(matmul(u, Transpose(u, 0, 1)), 0) // [1,r,r]
	c := make([]*Node, u.Shape().Dim(0))
	for i := range c {
		k := i
		if back {
			k = len(c) - 1 - i
		}
		at := func(x *Node) *Node { return Slice(x, AxisRange(), AxisRange(), AxisRange(k, k+1)) }
		c[k] = Mul(at(along), at(alpha))
		if !back {
			c[k] = Add(c[k], at(beta))
		}
		if i < len(c)-1 {
			along = Add(along, Mul(c[k], Slice(gram, AxisRange(), AxisRange(k, k+1))))
		}
	}
	if len(c) == 1 {
		return c[0]
	}
	return Concatenate(c, -1)
}

// fit broadcasts a touch's input to the site.
func fit(t, x *Node) *Node { return BroadcastToShape(t, x.Shape()) }

// pick takes the chosen experts' features of t [rows|1, positions|1, E, F] for x [B,S,K,F].
func (b *block) pick(t, x *Node) *Node {
	dims := t.Shape().Dimensions
	if dims[0]*dims[1] == 1 {
		y := Einsum("nke,ef->nkf", b.chosen, Reshape(t, dims[2], dims[3]))
		return Reshape(y, x.Shape().Dimensions...)
	}
	y := Einsum("nke,nef->nkf", b.chosen, Reshape(t, dims[0]*dims[1], dims[2], dims[3]))
	return Reshape(y, x.Shape().Dimensions...)
}
