// Package transformer runs transformer language models whose architecture is data, and opens every tensor on the way.
//
// A Model comes from package loader. Run runs it over token ids and keeps the sites a Capture names; an Intervention
// changes the values at a site while it runs; Resume takes a finished run up again at a layer and a position and
// recomputes only what can differ from there on, for a batch of interventions at once; Gradient differentiates a
// function of the logits by the value at any site; Generate and Decode extend a text with the keys and values kept;
// Readout projects states to the vocabulary. Keys, Values and Value read an FFN layer as key–value memories (Geva et
// al. 2021).
//
// Sites have the names and shapes of their constants: B sequences, T positions, d width, D memories (neurons of an FFN
// layer), H heads, dh head size. Layers and positions count from 0. At every site of every supported model:
// ffn_out = Σ coef·value + bias, resid_post = resid_pre + attn_out + ffn_out (except in post-norm models), and heads
// sum to attn_out. Numbers are float32; weights stored in 16 bits are widened, never folded, centred or transposed
// silently. Results do not depend on padding, on the other rows of a batch or on the shape a program was compiled for,
// up to rounding.
//
// Everything that runs a model is calls of one block program, compiled once per shape and kind of capture or
// intervention, with the layer's weights as arguments. The package imports no backend: whoever opens a model brings
// one.
//
// Calls return errors, also for what goes wrong inside the graph library; they wrap the sentinel errors of the package
// where a caller can act on them. A model may be used from several goroutines; its calls run one after the other.
package transformer
