// Package editing finds where a model keeps a fact and rewrites it there.
//
// In the reading of Meng et al. (2022, arXiv 2202.05262), the down projection W of a feed-forward layer is a linear
// associative memory: at the last token of a subject its input k, the key, recalls the value W·k. The package goes the
// way from a question about a fact to a changed weight:
//
//	FindSubject, Template  which tokens of a prompt are the subject
//	Trace, AverageTrace    which states carry the answer: noise on the subject, clean states put back
//	CollectStatistics      the second moment of a layer's keys, against which an edit is measured
//	Editor, NewEditor      a way to rewrite facts: ROME and its forms, MEMIT, EMMET, AlphaEdit, PMET, FineTune, Surgery
//	Tune                   the layer and the clamp that serve a model of which nothing is published
//	Edits                  what was rewritten, as a file; what later edits did to earlier ones
//	EvaluateCounterFact    what an editor does to facts, their paraphrases and their neighbours
//
// Each analysis is one function with an options struct and a result struct, which is what the command prints with
// --json. Token ranges are half open and, like layers and positions, count from 0. Probabilities are of the softmax
// over the whole vocabulary. Randomness comes from a seed that the result records.
package editing
