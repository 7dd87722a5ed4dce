package transformer

import (
	"fmt"
	"math/bits"

	. "github.com/gomlx/gomlx/core/graph"
	"github.com/gomlx/gomlx/core/tensors"
)

// Visit looks at sites layer by layer while they are on the device, and keeps nothing of them: a run over many rows
// needs the memory of one layer. Layers without the sites are left out.
//
// In expert layers coef is [B,T,E·D]: every memory's coefficient times its router's weight, 0 where the router did not
// choose the expert; such positions do not take part in MaxPositions and TopFeatures.
type Visit struct {
	Sites []Site
	// Counts says which positions reductions see; nil means all of every row.
	Counts func(row, position int) bool
	// Do is called after each layer. What it is given ends with the call, during which the model cannot be used.
	Do func(*Visited) error
}

// Visited is what a run has computed of one layer.
type Visited struct {
	Layer int

	run    *Run
	sites  values
	chosen *tensors.Tensor // [B,S,E], where coef is that of experts
	mask   *tensors.Tensor // [B,S]
	counts []float32       // the mask on the host
	count  int
}

// Element is one number of a site: feature counts through the axes behind rows and positions.
type Element struct{ Row, Position, Feature int }

// check refuses visits that a model cannot serve.
func (v *Visit) check(c *Config) error {
	if v == nil {
		return nil
	}
	if v.Do == nil {
		return fmt.Errorf("%w: a visit that does nothing", ErrSite)
	}
	for _, s := range v.Sites {
		if _, err := ParseSite(string(s)); err != nil {
			return err
		}
		if !s.InBlock() || s == Pattern || (s == GatePre || s == Up) && c.FFN.Kind == ExpertFFN {
			return fmt.Errorf("%w: %s cannot be visited", ErrSite, s)
		}
	}
	return nil
}

// visit calls the run's visitor with a layer's sites, which are dropped then unless they are captured too.
func (m *Model) visit(r *Run, layer int) (err error) {
	v := r.capture.Visit
	if v == nil {
		return nil
	}
	got := &Visited{Layer: layer, run: r, sites: values{}}
	for _, s := range v.Sites {
		if t := r.device[place{s, layer}]; t != nil {
			got.sites[string(s)] = t
		}
	}
	if len(got.sites) == 0 {
		return nil
	}
	got.counts, got.count = r.mask(v.Counts)
	if got.mask, err = upload(m.backend, got.counts, r.f.rows, r.f.slots); err != nil {
		return err
	}
	defer free(got.mask)
	if got.sites[string(Coef)] != nil && m.Config.HasExperts(layer) {
		out, err := m.spreadExperts(r, layer)
		if err != nil {
			return err
		}
		defer free(out["coef"], out["chosen"])
		got.sites[string(Coef)], got.chosen = out["coef"], out["chosen"]
	}
	err = v.Do(got)
	for _, s := range r.capture.sites() {
		if p := (place{s, layer}); r.device[p] != nil && !r.owns(r.device[p]) {
			delete(r.device, p)
		}
	}
	got.sites = nil
	return err
}

// spreadExperts gives the coefficients of experts a place for every memory.
func (m *Model) spreadExperts(r *Run, layer int) (values, error) {
	f := &m.Config.FFN
	args := values{
		"coef": r.device[place{Coef, layer}], "indices": r.device[place{RouterIndices, layer}],
		"weights": r.device[place{RouterWeights, layer}],
	}
	return m.compute(recipe{
		key: "spread experts", inputs: []string{"coef", "indices", "weights"}, outputs: []string{"coef", "chosen"},
		build: func(in nodes) nodes {
			b, s := in["coef"].Shape().Dim(0), in["coef"].Shape().Dim(1)
			chosen := OneHot(in["indices"], f.Experts, in["coef"].DType())
			weighted := Mul(chosen, InsertAxes(in["weights"], -1))
			return nodes{
				"coef":   Reshape(Einsum("bske,bskf->bsef", weighted, in["coef"]), b, s, f.Experts*f.ExpertHidden),
				"chosen": ReduceSum(chosen, 2),
			}
		},
	}, args)
}

// site is a visited site on the device.
func (v *Visited) site(s Site) (*tensors.Tensor, error) {
	if t := v.sites[string(s)]; t != nil {
		return t, nil
	}
	return nil, fmt.Errorf("%w: %s of layer %d is not visited", ErrSite, s, v.Layer)
}

// Features is the number of features of a position at a site.
func (v *Visited) Features(s Site) int {
	if t := v.sites[string(s)]; t != nil {
		return product(t.Shape().Dimensions[2:])
	}
	return 0
}

// Count is how many positions the reductions see.
func (v *Visited) Count() int { return v.count }

// Reduce makes a site small on the device.
func (v *Visited) Reduce(s Site, d Reduce) (*Reduced, error) {
	x, err := v.site(s)
	if err != nil {
		return nil, err
	}
	args, features := values{"x": x, "counts": v.mask}, v.Features(s)
	m := v.run.model
	if s == Coef && v.chosen != nil {
		args["chosen"] = v.chosen
		features = product(m.Config.siteDims(s, v.Layer))
	}
	if err := d.checkK(features, s); err != nil {
		return nil, err
	}
	got, err := m.reduceOnDevice(d, args)
	if err != nil {
		return nil, err
	}
	got.Count = v.count
	return v.run.trimReduced(d, got, v.counts), nil
}

// View gives do a function for the features of a position, which are not to be changed and end with the call. On a CPU
// they are the device's own memory; other devices copy the whole site to the host.
func (v *Visited) View(s Site, do func(at func(row, position int) []float32)) error {
	x, err := v.site(s)
	if err != nil {
		return err
	}
	n, f := v.Features(s), v.run.f
	err = tensors.ConstFlatData(x, func(flat []float32) {
		do(func(row, position int) []float32 { return flat[(row*f.slots+position-f.first)*n:][:n] })
	})
	if err != nil {
		return fmt.Errorf("read %s of layer %d: %w", s, v.Layer, err)
	}
	return nil
}

// Take reads some elements of a site; other devices than a CPU pick them before anything is copied.
func (v *Visited) Take(s Site, list []Element) ([]float32, error) {
	out := make([]float32, len(list))
	if len(list) == 0 {
		return out, nil
	}
	m := v.run.model
	if m.backend.HasSharedBuffers() {
		return out, v.View(s, func(at func(row, position int) []float32) {
			for i, e := range list {
				out[i] = at(e.Row, e.Position)[e.Feature]
			}
		})
	}
	x, err := v.site(s)
	if err != nil {
		return nil, err
	}
	return out, m.gather(x, v.flat(s, list), out)
}

// flat are the indices of elements in a site's tensor.
func (v *Visited) flat(s Site, list []Element) []int32 {
	n, f := v.Features(s), v.run.f
	index := make([]int32, len(list))
	for i, e := range list {
		index[i] = int32((e.Row*f.slots+e.Position-f.first)*n + e.Feature)
	}
	return index
}

// gather reads a tensor's elements at flat indices on the device.
func (m *Model) gather(x *tensors.Tensor, index []int32, out []float32) error {
	padded := make([]int32, max(64, 1<<bits.Len(uint(len(index)-1)))) // few shapes to compile
	copy(padded, index)
	at, err := upload(m.backend, padded, len(padded), 1)
	if err != nil {
		return err
	}
	defer free(at)
	got, err := m.compute(recipe{
		key: "take", inputs: []string{"x", "at"}, outputs: []string{"y"},
		build: func(in nodes) nodes { return nodes{"y": Gather(Reshape(in["x"], -1), in["at"])} },
	}, values{"x": x, "at": at})
	if err != nil {
		return err
	}
	defer free(got["y"])
	y, err := download(got["y"])
	if err != nil {
		return err
	}
	copy(out, y.Data)
	return nil
}
