package routes

import (
	"fmt"
	"slices"

	"github.com/engram-go/engram/probes"
	"github.com/engram-go/engram/transformer"
)

// Interventions and parts. What is changed ahead of a part is in the part: embed, the stream that enters the first
// layer, q, k, v, pattern, and everything from ffn_in to ffn_out. Where a sum or what heads bring is changed, y becomes
// f·y + b: the parts of y are multiplied by f, which is 0 where a value is set, and b is a part of the Bias.

// checkChanges refuses interventions under which the parts would not add up to the states, or not be what flows.
func (o *PartsOptions) checkChanges(c *transformer.Config) error {
	if len(o.Interventions.Changes) == 0 {
		return nil
	}
	switch {
	case o.Run != nil:
		return fmt.Errorf("%w: interventions act on prompts that are run, not on finished runs", ErrParts)
	case o.Compat || o.OmitBias:
		return fmt.Errorf("%w under interventions without the part of the biases", ErrParts)
	}
	for i := range o.Interventions.Changes {
		change := &o.Interventions.Changes[i]
		if why := o.refused(change, c); why != "" {
			return fmt.Errorf("%w under %s: %s", ErrParts, change, why)
		}
	}
	return nil
}

// refused says why parts cannot be told under a change, "" if they can.
func (o *PartsOptions) refused(c *probes.Change, cfg *transformer.Config) string {
	adds := c.Mode == probes.ModeAdd || c.Mode == probes.ModeSteer
	switch c.Site {
	case transformer.Final, transformer.Logits:
		return fmt.Sprintf("routes end ahead of %s, at the last layer's state", c.Site)
	case transformer.ResidPre:
		if c.Layer > 0 {
			return fmt.Sprintf("what enters layer %d leaves layer %d, the same node; change L%d.resid_post",
				c.Layer, c.Layer-1, c.Layer-1)
		}
	case transformer.HeadOut:
		if c.Mode == probes.ModeClampMin || c.Mode == probes.ModeClampMax {
			return "a bound of head_out says nothing about what a head brings from each source"
		}
	case transformer.AttnOut:
		switch {
		case cfg.Layout == transformer.PostNorm:
			return "a norm stands behind attn_out; change heads, such as L0H1"
		case !adds && (c.Units != nil || c.Vector != nil):
			return "only part of attn_out is replaced, and parts are whole vectors"
		}
	case transformer.ResidMid, transformer.ResidPost:
		if !adds {
			return fmt.Sprintf("%s is a sum of parts; only what is added to it is a part of its own", c.Site)
		}
	case transformer.DownOut, transformer.FFNOut:
		if o.FFNBias {
			return fmt.Sprintf("%s is changed, and with it the bias that is to be a part of its own", c.Site)
		}
	}
	return ""
}

// checkEdgeChanges refuses interventions under which what components read is no sum of what others write.
func checkEdgeChanges(iv *probes.Interventions, cfg *transformer.Config) error {
	if err := iv.Check(cfg); err != nil {
		return err
	}
	for i := range iv.Changes {
		c := &iv.Changes[i]
		switch c.Site {
		case transformer.Final, transformer.Logits:
			return fmt.Errorf("%w under %s: they end ahead of %s", transformer.ErrEdges, c, c.Site)
		case transformer.AttnOut, transformer.ResidPre, transformer.ResidMid, transformer.ResidPost:
			first := c.Site == transformer.ResidPre && c.Layer == 0
			if !first && c.Mode != probes.ModeAdd && c.Mode != probes.ModeSteer {
				return fmt.Errorf("%w under %s: %s is a sum of what was written", transformer.ErrEdges, c, c.Site)
			}
		}
	}
	return nil
}

// touches reports whether a change acts at one of some sites of a layer; layer −1 is any.
func (p *Parts) touches(layer int, sites ...transformer.Site) bool {
	return slices.ContainsFunc(p.changes, func(iv transformer.Intervention) bool {
		return (layer < 0 || iv.Layer == layer) && slices.Contains(sites, iv.Site)
	})
}

// acted is what changes make of a vector: group by group, of heads at head_out and one elsewhere, times·x + added.
type acted struct {
	times []float64
	added []float64 // nil where nothing is
}

// acted gives what changes do at a site at a position; nil where they do nothing.
func (p *Parts) acted(site transformer.Site, layer, position int) (*acted, error) {
	a := &p.Model.Config.Attention
	groups, size, each := 1, p.Model.Config.Width, 1
	if site == transformer.HeadOut {
		groups, size, each = a.Heads, a.HeadSize, a.HeadSize
	}
	var out *acted
	for i := range p.changes {
		iv := &p.changes[i]
		if iv.Site != site || iv.Layer != layer || iv.Positions != nil && !slices.Contains(iv.Positions, position) {
			continue
		}
		if out == nil {
			out = &acted{times: slices.Repeat([]float64{1}, groups), added: make([]float64, groups*size)}
		}
		out.join(iv, each)
	}
	if out == nil || !slices.Contains(out.times, 0) {
		return out, nil
	}
	// What was replaced is all that is there now.
	now, err := p.state(site, layer, position)
	if err != nil {
		return nil, err
	}
	for g, f := range out.times {
		if f == 0 {
			copy(out.added[g*size:(g+1)*size], now[g*size:])
		}
	}
	return out, nil
}

// join lets an intervention act behind those before it; each is how many components its units have. What a group holds
// that is set is read from the run.
func (a *acted) join(iv *transformer.Intervention, each int) {
	units, at := iv.Units, 0
	if units == nil {
		for u := range len(a.added) / each {
			units = append(units, u)
		}
	}
	for _, u := range units {
		for k := u * each; k < (u+1)*each; k++ {
			switch iv.Op {
			case transformer.OpAdd:
				a.added[k] += float64(iv.Value[min(at, len(iv.Value)-1)])
			case transformer.OpScale:
				a.added[k] *= float64(iv.Value[0])
			}
			at++
		}
	}
	if iv.Op == transformer.OpAdd {
		return
	}
	for g := range a.times {
		switch {
		case iv.Units != nil && !slices.Contains(iv.Units, g):
		case iv.Op == transformer.OpScale:
			a.times[g] *= float64(iv.Value[0])
		default:
			a.times[g] = 0
		}
	}
}

// puts are what changes add at a site at a position, nil for nothing.
func (p *Parts) puts(site transformer.Site, layer, position int) ([]float64, error) {
	a, err := p.acted(site, layer, position)
	if a == nil || err != nil {
		return nil, err
	}
	return a.added, nil
}

// attended is what changes do to what attention writes into a merge point.
type attended struct {
	heads []float64 // by which each head's vectors are multiplied, nil for 1
	whole float64   // by which the biases behind the heads are
	put   []float64 // what is added to the heads' sum, ahead of a norm behind it; nil for nothing
	added []float64 // what is added behind that, and to the sum with the stream
}

// head is by which a head's vectors are multiplied.
func (a *attended) head(h int) float64 {
	if a.heads == nil {
		return a.whole
	}
	return a.heads[h] * a.whole
}

// behind is what becomes of the biases behind the heads, with what is added there.
func (a *attended) behind(bias []float64) []float64 {
	for k := range bias {
		bias[k] = bias[k]*a.whole + a.added[k]
	}
	return bias
}

// attended gives what changes do between the heads of a layer and the state behind attention.
func (p *Parts) attended(layer, position int) (*attended, error) {
	out := &attended{whole: 1, added: make([]float64, p.Model.Config.Width)}
	heads, err := p.acted(transformer.HeadOut, layer, position)
	if err != nil {
		return nil, err
	}
	if heads != nil {
		out.heads = heads.times
		if out.put, err = p.projected(layer, heads.added); err != nil {
			return nil, err
		}
	}
	sum, err := p.acted(transformer.AttnOut, layer, position)
	if err != nil {
		return nil, err
	}
	if sum != nil {
		out.whole = sum.times[0]
		addTo(out.added, sum.added)
	}
	mid, err := p.puts(transformer.ResidMid, layer, position)
	addTo(out.added, mid)
	return out, err
}

// projected is what the output projection makes of heads' outputs, nil of zeros.
func (p *Parts) projected(layer int, z []float64) ([]float64, error) {
	if !slices.ContainsFunc(z, func(v float64) bool { return v != 0 }) {
		return nil, nil
	}
	o, err := p.Model.HeadProjection(layer)
	if err != nil {
		return nil, err
	}
	out := make([]float64, p.Model.Config.Width)
	for k := range out {
		for e, w := range o.At(k).Data {
			out[k] += float64(w) * z[e]
		}
	}
	return out, nil
}
