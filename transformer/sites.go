package transformer

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Site names a tensor of a run; the names are the ones users type and files carry. B is the number of sequences, T of
// positions, d the width, H heads, Hk key-value heads, dh the head size, D memories, E experts, K experts per token.
type Site string

// The sites, in the order in which a run computes them.
const (
	Embed         Site = "embed"          // [B,T,e] token embedding, scaled, before positions are added
	ResidPre      Site = "resid_pre"      // [B,T,d] residual stream entering the block
	Query         Site = "q"              // [B,T,H,dh] after norms and rotation
	Key           Site = "k"              // [B,T,Hk,dh] after norms and rotation
	Value         Site = "v"              // [B,T,Hk,dh]
	Pattern       Site = "pattern"        // [B,H,T,T] attention probabilities, row = destination
	HeadOut       Site = "head_out"       // [B,T,H,dh] pattern·v, before the output projection
	AttnOut       Site = "attn_out"       // [B,T,d] what attention adds to the residual stream
	ResidMid      Site = "resid_mid"      // [B,T,d] residual stream between attention and FFN
	FFNIn         Site = "ffn_in"         // [B,T,d] normed FFN input
	Pre           Site = "pre"            // [B,T,D] before the activation (plain FFNs)
	GatePre       Site = "gate_pre"       // [B,T,D] gate before the activation (gated FFNs; experts [B,T,K,D])
	Up            Site = "up"             // [B,T,D] what the gate multiplies (gated FFNs; experts [B,T,K,D])
	Coef          Site = "coef"           // [B,T,D] input of the down projection; experts [B,T,K,D], before router weights
	RouterLogits  Site = "router_logits"  // [B,T,E]
	RouterIndices Site = "router_indices" // [B,T,K] chosen experts, best first
	RouterWeights Site = "router_weights" // [B,T,K] their weights
	SharedCoef    Site = "shared_coef"    // [B,T,D] coefficients of the shared expert
	SharedGate    Site = "shared_gate"    // [B,T,1] its sigmoid gate
	DownOut       Site = "down_out"       // [B,T,d] output of the down projection, before any norm
	FFNOut        Site = "ffn_out"        // [B,T,d] what the FFN adds to the residual stream
	ResidPost     Site = "resid_post"     // [B,T,d] residual stream leaving the block
	Final         Site = "final"          // [B,T,d] after the final norm: what the unembedding reads
	Logits        Site = "logits"         // [B,T,V] after any softcap
)

// Sites lists every site in the order of computation.
func Sites() []Site {
	return []Site{
		Embed, ResidPre, Query, Key, Value, Pattern, HeadOut, AttnOut, ResidMid, FFNIn, RouterLogits,
		RouterIndices, RouterWeights, Pre, GatePre, Up, Coef, SharedCoef, SharedGate, DownOut, FFNOut,
		ResidPost, Final, Logits,
	}
}

// ErrSite is wrapped by errors about sites that do not exist, or not in this model.
var ErrSite = errors.New("no such site")

// ParseSite finds a site by its name.
func ParseSite(name string) (Site, error) {
	if s := Site(name); slices.Contains(Sites(), s) {
		return s, nil
	}
	names := make([]string, 0, len(Sites()))
	for _, s := range Sites() {
		names = append(names, string(s))
	}
	return "", fmt.Errorf("%w: %q; sites are %s", ErrSite, name, strings.Join(names, ", "))
}

// InBlock reports whether the site exists once per layer.
func (s Site) InBlock() bool { return s != Embed && s != Final && s != Logits }

// HasSite reports whether the layer of this architecture has the site. Layer is ignored for sites outside blocks.
func (c *Config) HasSite(s Site, layer int) bool {
	if !s.InBlock() {
		return true
	}
	experts := c.HasExperts(layer)
	switch s {
	case Pre:
		return c.FFN.Kind == PlainFFN
	case GatePre, Up:
		return c.FFN.Kind != PlainFFN
	case RouterLogits, RouterIndices, RouterWeights:
		return experts
	case SharedCoef, SharedGate:
		return experts && c.FFN.SharedHidden > 0
	}
	return true
}

// siteDims is the shape of one position at a site, without batch and position axes; for Pattern it is [H] and the
// key axis is apart. The last element count is what interventions index by unit (see siteUnits).
func (c *Config) siteDims(s Site, layer int) []int {
	a, f := &c.Attention, &c.FFN
	switch s {
	case Embed:
		return []int{c.EmbedWidth}
	case Query, HeadOut:
		return []int{a.Heads, a.HeadSize}
	case Key, Value:
		return []int{a.KVHeads, a.HeadSize}
	case Pre, GatePre, Up, Coef:
		if c.HasExperts(layer) {
			return []int{f.TopK, f.ExpertHidden}
		}
		return []int{f.Hidden}
	case RouterLogits:
		return []int{f.Experts}
	case RouterIndices, RouterWeights:
		return []int{f.TopK}
	case SharedCoef:
		return []int{f.SharedHidden}
	case SharedGate:
		return []int{1}
	case Logits:
		return []int{c.Vocab}
	}
	return []int{c.Width}
}

// Neuron names a memory of an FFN layer, written L10N123. In expert layers Index is expert·ExpertHidden + neuron.
type Neuron struct{ Layer, Index int }

// String writes the neuron as L10N123.
func (n Neuron) String() string { return fmt.Sprintf("L%dN%d", n.Layer, n.Index) }

// ParseNeuron reads a neuron written as L10N123.
func ParseNeuron(s string) (Neuron, error) {
	layer, index, err := parseUnit(s, 'N')
	return Neuron{layer, index}, err
}

// Head names an attention head, written L9H6.
type Head struct{ Layer, Index int }

// String writes the head as L9H6.
func (h Head) String() string { return fmt.Sprintf("L%dH%d", h.Layer, h.Index) }

// ParseHead reads a head written as L9H6.
func ParseHead(s string) (Head, error) {
	layer, index, err := parseUnit(s, 'H')
	return Head{layer, index}, err
}

func parseUnit(s string, kind byte) (layer, index int, err error) {
	n, _ := fmt.Sscanf(s, "L%d"+string(kind)+"%d", &layer, &index)
	// Scanning allows blanks, signs and leading zeros; a name has one spelling.
	if n != 2 || layer < 0 || index < 0 || s != fmt.Sprintf("L%d%c%d", layer, kind, index) {
		return 0, 0, fmt.Errorf("%q is not of the form L10%c123", s, kind)
	}
	return layer, index, nil
}
