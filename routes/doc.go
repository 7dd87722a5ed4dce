// Package routes shows how information flows through a model's layers to a prediction, and checks whether the picture
// is true.
//
// The residual stream is a sum: at each merge point what attention, the FFN and the stream below add up to is known
// exactly. A part's proximity to the sum says how much of it the part makes up (Ferrando et al. 2022; Ferrando and
// Voita 2024); parts above a threshold are the edges of a graph whose nodes are states of tokens:
//
//	X0_t  the token at position t       A1_t  its state behind the attention of layer 1
//	M1_t  the FFN of layer 1            I1_t  its state behind layer 1; the usual root is the last one
//
// Parallel blocks have no A nodes: attention and FFN write into I. One call is one analysis:
//
//	OpenParts  runs a prompt and gives the parts of its merge points, computed when first asked for
//	Routes     the graph of the parts above a threshold that lead to a root
//
// Shares are of proximities, not of vectors: those of two parts together are not the sum of their shares. A graph says
// what built a state, not why a token is predicted; ablation tells that.
package routes
