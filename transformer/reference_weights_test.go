package transformer_test

import (
	"encoding/binary"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/engram-go/engram/internal/safetensors"
	"github.com/engram-go/engram/loader"
	"github.com/engram-go/engram/transformer"
)

// refNames are the tensor names of a family, layers as %d, without ".weight" and ".bias"; names are parted by blanks
// and written slot=name.
type refNames struct {
	layer           string
	outside, inside string
	conv            bool // matrices are stored [in,out]
	fused           bool // q, k and v of each head stand together in one tensor
}

const llamaLayer = "attn_norm=input_layernorm ffn_norm=post_attention_layernorm q=self_attn.q_proj k=self_attn.k_proj " +
	"v=self_attn.v_proj o=self_attn.o_proj "

const llamaFFN = "gate=mlp.gate_proj up=mlp.up_proj down=mlp.down_proj "

const llamaOutside = "embed=model.embed_tokens final_norm=model.norm unembed=lm_head"

// refFamilies cover every block layout, kind of FFN and kind of position information.
//
//lint:long a table
func refFamilies() map[string]refNames {
	return map[string]refNames{
		"gpt2": {
			layer: "transformer.h.%d.", conv: true,
			outside: "embed=transformer.wte embed_positions=transformer.wpe final_norm=transformer.ln_f",
			inside:  "attn_norm=ln_1 ffn_norm=ln_2 qkv=attn.c_attn o=attn.c_proj up=mlp.c_fc down=mlp.c_proj",
		},
		"llama": {layer: "model.layers.%d.", outside: llamaOutside, inside: llamaLayer + llamaFFN},
		"gpt_neox": {
			layer: "gpt_neox.layers.%d.", fused: true,
			outside: "embed=gpt_neox.embed_in final_norm=gpt_neox.final_layer_norm unembed=embed_out",
			inside: "attn_norm=input_layernorm ffn_norm=post_attention_layernorm qkv=attention.query_key_value " +
				"o=attention.dense up=mlp.dense_h_to_4h down=mlp.dense_4h_to_h",
		},
		"gptj": {
			layer:   "transformer.h.%d.",
			outside: "embed=transformer.wte final_norm=transformer.ln_f unembed=lm_head",
			inside: "attn_norm=ln_1 q=attn.q_proj k=attn.k_proj v=attn.v_proj o=attn.out_proj " +
				"up=mlp.fc_in down=mlp.fc_out",
		},
		"gemma2": {
			layer: "model.layers.%d.", outside: llamaOutside,
			inside: strings.Replace(llamaLayer, "ffn_norm", "attn_post_norm", 1) + llamaFFN +
				"ffn_norm=pre_feedforward_layernorm ffn_post_norm=post_feedforward_layernorm",
		},
		"olmo2": {
			layer: "model.layers.%d.", outside: llamaOutside,
			inside: strings.Replace(llamaLayer, "ffn_norm", "attn_post_norm", 1) + llamaFFN +
				"ffn_post_norm=post_feedforward_layernorm q_norm=self_attn.q_norm k_norm=self_attn.k_norm",
		},
		"opt_post": {
			layer: "model.decoder.layers.%d.",
			outside: "embed=model.decoder.embed_tokens embed_positions=model.decoder.embed_positions " +
				"embed_project=model.decoder.project_in unembed_project=model.decoder.project_out",
			inside: "attn_post_norm=self_attn_layer_norm ffn_post_norm=final_layer_norm q=self_attn.q_proj " +
				"k=self_attn.k_proj v=self_attn.v_proj o=self_attn.out_proj up=fc1 down=fc2",
		},
		"bloom": {
			layer: "transformer.h.%d.", fused: true,
			outside: "embed=transformer.word_embeddings embed_norm=transformer.word_embeddings_layernorm " +
				"final_norm=transformer.ln_f",
			inside: "attn_norm=input_layernorm ffn_norm=post_attention_layernorm qkv=self_attention.query_key_value " +
				"o=self_attention.dense up=mlp.dense_h_to_4h down=mlp.dense_4h_to_h",
		},
		"mixtral": {
			layer: "model.layers.%d.", outside: llamaOutside,
			inside: llamaLayer + "router=block_sparse_moe.gate expert_gate=block_sparse_moe.experts.#.w1 " +
				"expert_up=block_sparse_moe.experts.#.w3 expert_down=block_sparse_moe.experts.#.w2",
		},
		"qwen2_moe": {
			layer: "model.layers.%d.", outside: llamaOutside,
			inside: llamaLayer + llamaFFN + "router=mlp.gate expert_gate=mlp.experts.#.gate_proj " +
				"expert_up=mlp.experts.#.up_proj expert_down=mlp.experts.#.down_proj " +
				"shared_gate=mlp.shared_expert.gate_proj shared_up=mlp.shared_expert.up_proj " +
				"shared_down=mlp.shared_expert.down_proj shared_router=mlp.shared_expert_gate",
		},
		"bert": {
			layer: "bert.encoder.layer.%d.",
			outside: "embed=bert.embeddings.word_embeddings embed_positions=bert.embeddings.position_embeddings " +
				"embed_types=bert.embeddings.token_type_embeddings embed_norm=bert.embeddings.LayerNorm " +
				"head_dense=cls.predictions.transform.dense head_norm=cls.predictions.transform.LayerNorm " +
				"unembed=cls.predictions",
			inside: "attn_post_norm=attention.output.LayerNorm ffn_post_norm=output.LayerNorm q=attention.self.query " +
				"k=attention.self.key v=attention.self.value o=attention.output.dense up=intermediate.dense " +
				"down=output.dense",
		},
	}
}

func referenceFamilies() []string {
	var all []string
	for name := range refFamilies() {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// refReader finds a family's tensors.
type refReader struct {
	t     testing.TB
	c     *transformer.Config
	f     refNames
	file  *safetensors.File
	layer int
}

// readReference reads a golden checkpoint's weights by the names of its family.
func readReference(t testing.TB, g *golden) *reference {
	t.Helper()
	dir := g.dir
	open, err := loader.OpenCheckpoint(t.Context(), dir, loader.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	file, err := safetensors.Open(filepath.Join(dir, "model.safetensors"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r := &refReader{t: t, c: open.Config, f: refFamilies()[filepath.Base(dir)], file: file, layer: -1}
	m := &reference{
		dir: dir, c: r.c, embed: r.table("embed"), learnt: r.table("embed_positions"),
		embedNorm: r.norm("embed_norm"), finalNorm: r.norm("final_norm"), headNorm: r.norm("head_norm"),
		projectIn: r.linear("embed_project"), projectOut: r.linear("unembed_project"),
		headDense: r.linear("head_dense"), unembed: r.linear("unembed"),
	}
	if types := r.table("embed_types"); types != nil {
		m.types = types[0]
	}
	if m.unembed == nil {
		m.unembed = &refLinear{w: m.embed}
	}
	if m.unembed.w == nil {
		m.unembed.w = m.embed
	}
	for l := range r.c.Layers {
		r.layer = l
		m.layers = append(m.layers, r.block())
	}
	return m
}

func (r *refReader) block() *refLayer {
	w := &refLayer{
		attnNorm: r.norm("attn_norm"), attnPostNorm: r.norm("attn_post_norm"), ffnNorm: r.norm("ffn_norm"),
		ffnPostNorm: r.norm("ffn_post_norm"), qNorm: r.norm("q_norm"), kNorm: r.norm("k_norm"),
		q: r.linear("q"), k: r.linear("k"), v: r.linear("v"), o: r.linear("o"),
		gate: r.linear("gate"), up: r.linear("up"), down: r.linear("down"),
	}
	if w.q == nil {
		r.split(r.linear("qkv"), w)
	}
	if !r.c.HasExperts(r.layer) {
		return w
	}
	w.gate, w.up, w.down = nil, nil, nil
	w.router, w.sharedRouter = r.linear("router"), r.linear("shared_router")
	w.sharedGate, w.sharedUp, w.sharedDown = r.linear("shared_gate"), r.linear("shared_up"), r.linear("shared_down")
	for e := range r.c.FFN.Experts {
		find := func(slot string) *refLinear { return r.named(strings.Replace(r.name(slot), "#", fmt.Sprint(e), 1)) }
		w.experts = append(w.experts, refExpert{find("expert_gate"), find("expert_up"), find("expert_down")})
	}
	return w
}

// split takes a joint projection apart.
func (r *refReader) split(all *refLinear, w *refLayer) {
	w.q, w.k, w.v = &refLinear{}, &refLinear{}, &refLinear{}
	h, dh := r.c.Attention.Heads, r.c.Attention.HeadSize
	for o, row := range all.w {
		part := o / (h * dh)
		if r.f.fused {
			part = o / dh % 3
		}
		to := []*refLinear{w.q, w.k, w.v}[part]
		to.w, to.b = append(to.w, row), append(to.b, all.b[o])
	}
}

// name is what the family calls a slot; "" if it has none.
func (r *refReader) name(slot string) string {
	list, prefix := r.f.outside, ""
	if r.layer >= 0 {
		list, prefix = r.f.inside, fmt.Sprintf(r.f.layer, r.layer)
	}
	for _, entry := range strings.Fields(list) {
		if name, ok := strings.CutPrefix(entry, slot+"="); ok {
			return prefix + name
		}
	}
	return ""
}

func (r *refReader) linear(slot string) *refLinear { return r.named(r.name(slot)) }

func (r *refReader) named(name string) *refLinear {
	l := &refLinear{w: r.matrix(name + ".weight")}
	if b := r.matrix(name + ".bias"); b != nil {
		l.b = b[0]
	}
	if l.w == nil && l.b == nil {
		return nil
	}
	if r.f.conv {
		stored := l.w
		l.w = nil
		for o := range stored[0] {
			var row vec
			for i := range stored {
				row = append(row, stored[i][o])
			}
			l.w = append(l.w, row)
		}
	}
	return l
}

func (r *refReader) table(slot string) []vec { return r.matrix(r.name(slot) + ".weight") }

func (r *refReader) norm(slot string) *refNorm {
	gain, bias := r.matrix(r.name(slot)+".weight"), r.matrix(r.name(slot)+".bias")
	if gain == nil {
		return nil
	}
	n := &refNorm{Norm: r.c.Norm, gain: gain[0]}
	if bias != nil {
		n.bias = bias[0]
	}
	return n
}

// matrix reads a tensor as rows; a vector is one row, an absent tensor nil.
func (r *refReader) matrix(name string) []vec {
	if _, ok := r.file.Lookup(name); !ok {
		return nil
	}
	raw, err := r.file.Tensor(name)
	if err != nil {
		r.t.Fatal(err)
	}
	n := raw.Shape[len(raw.Shape)-1]
	var rows []vec
	for from := 0; from < len(raw.Data); from += 4 * n {
		row := make(vec, n)
		for i := range row {
			row[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(raw.Data[from+4*i:])))
		}
		rows = append(rows, row)
	}
	return rows
}

// trace is everything that a reference run computed.
type trace map[spot]vec

// trace runs the reference under interventions.
func (m *reference) trace(ids [][]int, ivs []transformer.Intervention) trace {
	return m.traceWith(ids, ids, ivs, nil)
}

// traceWith runs the rows that are not nil; whole are all rows as the interventions count them, and nudge changes
// values behind the interventions.
func (m *reference) traceWith(whole, ids [][]int, ivs []transformer.Intervention, nudge visitor) trace {
	out := trace{}
	act := actor{c: m.c, ids: whole, ivs: ivs}
	m.forward(ids, func(at spot, x vec) vec {
		x = act.on(at, x)
		if nudge != nil {
			x = nudge(at, x)
		}
		out[at] = x
		return x
	})
	return out
}

// tensor gathers a site in the shape in which the engine gives it.
func (tr trace) tensor(c *transformer.Config, ids [][]int, s transformer.Site, layer int) *transformer.Tensor {
	total := 0
	for _, row := range ids {
		total = max(total, len(row))
	}
	if s == transformer.Pattern {
		return tr.pattern(c, ids, layer, total)
	}
	var out *transformer.Tensor
	for row := range ids {
		for p := range ids[row] {
			x := tr[spot{s, layer, row, p}]
			if s.InBlock() && c.HasExperts(layer) && isMemory(s) {
				x = tr.chosen(c, spot{s, layer, row, p})
			}
			if out == nil {
				out = transformer.NewTensor(append([]int{len(ids), total}, axes(c, s, layer, len(x))...)...)
			}
			for i, v := range x {
				out.Data[(row*total+p)*len(x)+i] = float32(v)
			}
		}
	}
	return out
}

func isMemory(s transformer.Site) bool {
	return s == transformer.GatePre || s == transformer.Up || s == transformer.Coef
}

// axes are the axes of one position at a site.
func axes(c *transformer.Config, s transformer.Site, layer, n int) []int {
	switch {
	case s == transformer.Query || s == transformer.Key || s == transformer.Value || s == transformer.HeadOut:
		return []int{n / c.Attention.HeadSize, c.Attention.HeadSize}
	case isMemory(s) && c.HasExperts(layer):
		return []int{c.FFN.TopK, c.FFN.ExpertHidden}
	}
	return []int{n}
}

// chosen takes the chosen experts' memories in the order of the router.
func (tr trace) chosen(c *transformer.Config, at spot) vec {
	d := c.FFN.ExpertHidden
	var out vec
	for _, e := range tr[spot{transformer.RouterIndices, at.layer, at.row, at.pos}] {
		out = append(out, tr[at][int(e)*d:(int(e)+1)*d]...)
	}
	return out
}

func (tr trace) pattern(c *transformer.Config, ids [][]int, layer, total int) *transformer.Tensor {
	out := transformer.NewTensor(len(ids), c.Attention.Heads, total, total)
	for row, tokens := range ids {
		for p := range tokens {
			x := tr[spot{transformer.Pattern, layer, row, p}]
			for h := range c.Attention.Heads {
				for j := range tokens {
					out.Data[((row*c.Attention.Heads+h)*total+p)*total+j] = float32(x[h*len(tokens)+j])
				}
			}
		}
	}
	return out
}
